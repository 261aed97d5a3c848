"""Segments photos and videos: for each photo a coloured overlay and a label map (class ids, 8 bit, and once more with
the classes' colours in the file), on request confidence and what Rein does inside; for each video an overlay video.

rein-hf predict --model USER/ADAPTER --input photos/ --output_dir segmented/
rein-hf predict --model USER/ADAPTER --input drive.mp4 --output_dir segmented/    # with pip install "rein-hf[video]"

Folders are searched with their subfolders, and results lie in the same subfolders of `--output_dir`. Photos are turned
upright as their EXIF says. A photo that cannot be segmented is named and left out, and the exit status is 1 at the
end. Runs under `accelerate launch` too. `--resume true` leaves out the photos that an interrupted run of the same
model with the same options has done.

A photo of many more pixels than the windows that the model was trained on shows too little in each of them: segment a
smaller copy by `--short_side N` or `--size WxH`. Label maps and overlays have the photo's own size in any case.

A video is one that `--input` names; those in folders are passed over. It is read and written frame by frame.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image
from tqdm.auto import tqdm
from transformers import AutoImageProcessor

import rein_hf

from ..evaluation import accelerator_for, comment_of_maps, move_to
from ..images import STORED_FRAMES, open_image
from ..inference import is_out_of_memory, read_ahead, requested_size, segment, segment_with_confidence, window_sides
from ..inference.photos import ENDINGS, VIDEO_ENDING, Photo, find_photos, printable
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
from .cli import require_at_least, run
from .predict_progress import WindowProgress, closing_line, left_out, tell
from .results_folder import check_folders, check_results, comment_of_result


# Of how many blocks --explain shows what Rein does: the first, the last, and others between.
BLOCKS = 5


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
    cuda_graphs: bool = field(default=False, metadata={"help": "Launch all kernels at once: fast for one image."})
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
    require_at_least(args, crop=1, stride=1)
    requested_size((1, 1), args.size, args.short_side)  # raises before anything is loaded
    output_dir = Path(args.output_dir)
    photos, skipped = find_photos(args.input, output_dir)
    check_videos([photo.file for photo in photos if is_video(photo.file)], args)
    endings = [ending for ending in ENDINGS if getattr(args, ending.partition(".")[0], True)]
    check_folders({output_dir, *(photo.target.parent for photo in photos)})
    check_results([file for photo in photos for file in photo.results(endings)], "predict")
    model = rein_hf.from_pretrained(args.model, backbone=args.backbone)
    class_names_of(model.config.id2label, f"--model {args.model}: id2label")
    window_sides(model, args.crop, args.stride)
    if args.explain:
        try:
            rein_layers(model)
        except ValueError as error:
            raise ValueError(f"--explain true of --model {args.model}: {error}") from error
    processor = AutoImageProcessor.from_pretrained(args.model)
    options = {key: getattr(args, key) for key in "crop stride bf16 size short_side opacity legend".split()}
    comment = comment_of_maps(model, options)
    model = move_to(accelerator, model, args.compile, args.cuda_graphs)
    accelerator.wait_for_everyone()  # nobody writes while another still searches the folders
    own = photos[accelerator.process_index :: accelerator.num_processes]
    left = [photo for photo in own if not (args.resume and is_done(photo, endings, comment))]
    done, failed, progress = len(own) - len(left), 0, WindowProgress(accelerator.is_main_process)
    images = read_ahead([photo.file for photo in left], read_photo, model.device)
    bar = tqdm(images, "photos", len(left), disable=not accelerator.is_main_process)
    for photo, image in zip(left, bar, strict=True):
        try:
            if isinstance(image, Exception):
                raise image
            with accelerator.autocast(), progress.of(photo.file) as count:
                if image is None:
                    photo.target.parent.mkdir(parents=True, exist_ok=True)
                    write_overlay_video(args, model, processor, photo, count, comment)
                    pictures = {}
                else:
                    pictures = segmented(args, model, processor, image, count)
        except (ValueError, MemoryError, RuntimeError) as error:
            if not (isinstance(error, ValueError) or is_out_of_memory(error)):
                raise
            tell(left_out(photo.file, error, isinstance(image, Exception)))
            failed += 1
            continue
        if image is not None and (frames := image.info.get(STORED_FRAMES)):
            tell(f"{photo.file} has {frames} frames; the first is used.")
        photo.target.parent.mkdir(parents=True, exist_ok=True)
        for ending, picture in pictures.items():
            save_picture(picture, photo.result(ending), comment)
        done += 1
    counts = torch.tensor([done, failed], device=accelerator.device)
    done, failed = accelerator.reduce(counts, reduction="sum").tolist()
    if accelerator.is_main_process:
        print(printable(closing_line(done, failed, skipped, output_dir)))
    return failed


def is_done(photo: Photo, endings: list[str], comment: str) -> bool:
    """Whether all results of a photo or a video are there, and say that they come from what would make them now."""
    return all(comment_of_result(file) == comment for file in photo.results(endings))


def read_photo(file: Path) -> Image.Image | Exception | None:
    """A photo, or the error that its turn will raise; None for a video, which is read frame by frame."""
    try:
        return None if is_video(file) else open_photo(file)
    except (ValueError, MemoryError) as error:
        return error


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
    args: PredictionArguments,
    model: torch.nn.Module,
    processor,
    video: Photo,
    count: Callable[[int, int], None],
    comment: str,
) -> None:
    def draw(frame: Image.Image) -> Image.Image:
        size = requested_size(frame.size, args.size, args.short_side)
        label = segment(model, processor, frame, args.crop, args.stride, size, count)
        return draw_overlay(args, model, frame, label)

    with tqdm(desc=video.file.name, unit="frame", leave=False) as bar:

        def advance(done: int, frames: int) -> None:
            bar.total = frames or None
            bar.update()

        transform_video(video.file, video.result(VIDEO_ENDING), draw, advance, comment)


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


if __name__ == "__main__":
    sys.exit(run("predict"))
