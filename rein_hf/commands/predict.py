"""Segments photos and videos: for each photo a coloured overlay and a label map (class ids, 8 bit, and once more with
the classes' colours in the file), on request confidence and what Rein does inside; for each video an overlay video.

rein-hf predict --model USER/ADAPTER --input photos/ --output_dir segmented/
rein-hf predict --model USER/ADAPTER --input drive.mp4 --output_dir segmented/    # with pip install "rein-hf[video]"

Folders are searched with their subfolders, and results lie in the same subfolders of `--output_dir`. Photos are turned
upright as their EXIF says. A photo that cannot be segmented is named and left out, and the exit status is 1 at the
end. Runs under `accelerate launch` too. `--resume true` leaves out the photos that an interrupted run has done.

A photo of many more pixels than the windows that the model was trained on shows too little in each of them: segment a
smaller copy by `--short_side N` or `--size WxH`. Label maps and overlays have the photo's own size in any case.

A video is one that `--input` names; those in folders are passed over. It is read and written frame by frame.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image
from tqdm.auto import tqdm
from transformers import AutoImageProcessor

import rein_hf

from ..evaluation import accelerator_for, move_to
from ..images import open_image
from ..inference import requested_size, segment, segment_with_confidence, window_sides
from ..inference.photos import ENDINGS, VIDEO_ENDING, Photo, find_photos, printable, skipped_files
from ..inference.video import is_video, require_video_reader, transform_video
from ..labels import class_names_of, palette_of_model
from ..views import (
    JPEG_SIDE,
    block_views_of_photo,
    explanation_sheet,
    overlay,
    palette_image,
    rein_layers,
    save_picture,
    with_legend,
)
from .cli import run


# Of how many blocks --explain shows what Rein does: the first, the last, and others between.
BLOCKS = 5

# Above so many windows for a photo there is a hint, and a bar that counts them.
MANY_WINDOWS = 30


@dataclass
class PredictionArguments:
    model: str = field(metadata={"help": "Adapter or whole segmenter: folder or Hub id."})
    input: list[str] = field(metadata={"help": "Image files or folders of them; videos."})
    output_dir: str = field(metadata={"help": "Where STEM_overlay.jpg, STEM_label.png and STEM_color.png go."})
    backbone: str | None = field(default=None, metadata={"help": "Backbone instead of the one the adapter names."})
    crop: int | None = field(default=None, metadata={"help": "Window in pixels; default: the model's training crop."})
    stride: int | None = field(default=None, metadata={"help": "Step between windows; default: 2/3 of the window."})
    opacity: float = field(default=0.5, metadata={"help": "Of the colours over the image, 0 to 1."})
    bf16: bool = field(default=False, metadata={"help": "Autocast to bfloat16."})
    compile: bool = field(default=False, metadata={"help": "torch.compile the model: pays off for many images."})
    explain: bool = field(default=False, metadata={"help": "STEM_explain.jpg too: features, and where tokens look."})
    confidence: bool = field(default=False, metadata={"help": "STEM_confidence.png too: white 1, black 0."})
    legend: bool = field(default=False, metadata={"help": "Colours and names of the classes below each overlay."})
    resume: bool = field(default=False, metadata={"help": "Leave out photos whose results output_dir holds."})
    size: str | None = field(default=None, metadata={"help": "WxH: the model sees photos resized to fit into it."})
    short_side: int | None = field(default=None, metadata={"help": "Or resized so that their short side is this."})


def main(args: PredictionArguments) -> int:
    """Returns how many photos could not be segmented, of all processes."""
    accelerator = accelerator_for("bf16" if args.bf16 else "no")
    if not 0 <= args.opacity <= 1:
        raise ValueError(f"--opacity is {args.opacity}; expected 0 to 1.")
    requested_size((1, 1), args.size, args.short_side)  # raises before anything is loaded
    output_dir = Path(args.output_dir)
    photos, skipped = find_photos(args.input, output_dir)
    check_videos([photo.file for photo in photos if is_video(photo.file)], args)
    model = move_to(accelerator, rein_hf.from_pretrained(args.model, backbone=args.backbone), args.compile)
    class_names_of(model.config.id2label, f"--model {args.model}: id2label")
    window_sides(model, args.crop, args.stride)
    if args.explain:
        try:
            rein_layers(model)
        except ValueError as error:
            raise ValueError(f"--explain true of --model {args.model}: {error}") from error
    processor = AutoImageProcessor.from_pretrained(args.model)
    endings = [ending for ending in ENDINGS if getattr(args, ending.partition(".")[0], True)]
    accelerator.wait_for_everyone()  # nobody writes while another still searches the folders
    done, failed, progress = 0, 0, WindowProgress(accelerator.is_main_process)
    own = photos[accelerator.process_index :: accelerator.num_processes]
    for photo in tqdm(own, "photos", disable=not accelerator.is_main_process):
        is_one = is_video(photo.file)
        targets = [photo.result(ending) for ending in ([VIDEO_ENDING] if is_one else endings)]
        if args.resume and all(target.is_file() for target in targets):
            done += 1
            continue
        try:
            with accelerator.autocast(), progress.of(photo.file) as count:
                if is_one:
                    photo.target.parent.mkdir(parents=True, exist_ok=True)
                    write_overlay_video(args, model, processor, photo, count)
                    pictures = {}
                else:
                    pictures = segmented(args, model, processor, open_photo(photo.file), count)
        except (ValueError, MemoryError, torch.OutOfMemoryError) as error:
            reason = str(error) or "there is not enough memory."
            tell(f"{'' if str(photo.file) in reason else f'{photo.file}: '}{reason} It is left out.")
            failed += 1
            continue
        photo.target.parent.mkdir(parents=True, exist_ok=True)
        for ending, picture in pictures.items():
            save_picture(picture, photo.result(ending))
        done += 1
    counts = torch.tensor([done, failed], device=accelerator.device)
    done, failed = accelerator.reduce(counts, reduction="sum").tolist()
    if accelerator.is_main_process:
        print(printable(closing_line(done, failed, skipped, output_dir)))
    return failed


def segmented(
    args: PredictionArguments, model: torch.nn.Module, processor, image: Image.Image, count: Callable[[int, int], None]
) -> dict[str, Image.Image]:
    """The pictures that are asked for of a photo, by the ending of their files."""
    size = requested_size(image.size, args.size, args.short_side)
    arguments = (model, processor, image, args.crop, args.stride, size, count)
    if args.confidence:
        label, _, confidence = segment_with_confidence(*arguments)
    else:
        label, confidence = segment(*arguments), None
    pictures = {
        "label.png": Image.fromarray(label),
        "color.png": palette_image(label, model),
        "overlay.jpg": draw_overlay(args, model, image, label),
    }
    if confidence is not None:
        pictures["confidence.png"] = Image.fromarray((255 * confidence).round().astype("uint8"))
    if args.explain:
        pictures["explain.jpg"] = explanation_sheet(*block_views_of_photo(model, processor, image, BLOCKS))
    return pictures


def draw_overlay(args: PredictionArguments, model: torch.nn.Module, image: Image.Image, label) -> Image.Image:
    picture = overlay(image, label, model, args.opacity)
    if not args.legend:
        return picture
    names = class_names_of(model.config.id2label, "id2label")
    legend = list(zip(names, palette_of_model(model.config), strict=True))
    picture = with_legend(picture, legend, size=max(15, picture.height // 40))
    if picture.height > JPEG_SIDE:
        raise ValueError(f"With a legend the overlay has {picture.height} lines; JPEG holds {JPEG_SIDE} at most.")
    return picture


def check_videos(videos: list[Path], args: PredictionArguments) -> None:
    """Refuses, before anything is loaded, what cannot be done with a video."""
    if not videos:
        return
    require_video_reader()
    for option in ("confidence", "explain"):
        if getattr(args, option):
            raise ValueError(f"--{option} is for photos; --input has the video {printable(videos[0])}.")


def write_overlay_video(
    args: PredictionArguments, model: torch.nn.Module, processor, video: Photo, count: Callable[[int, int], None]
) -> None:
    def draw(frame: Image.Image) -> Image.Image:
        size = requested_size(frame.size, args.size, args.short_side)
        label = segment(model, processor, frame, args.crop, args.stride, size, count)
        return draw_overlay(args, model, frame, label)

    with tqdm(desc=video.file.name, unit="frame", leave=False) as bar:

        def advance(done: int, frames: int) -> None:
            bar.total = frames or None
            bar.update()

        transform_video(video.file, video.result(VIDEO_ENDING), draw, advance)


def open_photo(file: Path) -> Image.Image:
    """A photo, upright.

    Raises:
        ValueError: it cannot be read, or its overlay could not be written.
    """
    image = open_image(file)
    if max(image.size) > JPEG_SIDE:
        raise ValueError(
            f"{file} is {image.width}x{image.height} pixels; an overlay (JPEG) has sides of {JPEG_SIDE} at most."
        )
    return image


class WindowProgress:
    """A bar over the windows of each photo that has many, and a hint at the first one of them."""

    def __init__(self, shown: bool) -> None:
        self.shown, self.hinted = shown, False

    @contextmanager
    def of(self, file: Path) -> Iterator[Callable[[int, int], None]]:
        """What is to be called with the number of windows that are done, and of all."""
        bar = None

        def count(done: int, windows: int) -> None:
            nonlocal bar
            if windows <= MANY_WINDOWS:
                return
            if not self.hinted:
                self.hinted = True
                tell(
                    f"{file} is cut into {windows} windows, each of which shows little of it. If objects are not "
                    "recognised, let the model see a smaller copy: --short_side N or --size WxH."
                )
            if bar is None:
                bar = tqdm(total=windows, desc="windows", leave=False, disable=not self.shown)
            bar.update(done - bar.n)

        try:
            yield count
        finally:
            if bar is not None:
                bar.close()


def closing_line(done: int, failed: int, skipped: list[Path], output_dir: Path) -> str:
    text = f"{done} photo{'' if done == 1 else 's'} -> {output_dir}"
    return text + (f"; {failed} could not be segmented, see above" if failed else "") + skipped_files(skipped)


def tell(text: str) -> None:
    """A line on stderr that leaves the bars whole."""
    tqdm.write(printable(text), file=sys.stderr)


if __name__ == "__main__":
    sys.exit(run("predict"))
