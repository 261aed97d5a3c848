"""Segments photos: for each a coloured overlay and a label map (class ids, 8 bit), on request what Rein does inside.

rein-hf predict --model USER/ADAPTER --input photos/ --output_dir segmented/

Folders are searched with their subfolders, and results lie in the same subfolders of `--output_dir`. Photos are turned
upright as their EXIF says. A photo that cannot be segmented is named and left out, and the exit status is 1 at the
end. Runs under `accelerate launch` too. `--resume true` leaves out the photos that an interrupted run has done.

A photo of many more pixels than the windows that the model was trained on shows too little in each of them: segment a
smaller copy by `--short_side N` or `--size WxH`. Label maps and overlays have the photo's own size in any case.
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
from ..inference import requested_size, segment, window_sides
from ..inference.photos import ENDINGS, find_photos, printable, skipped_files
from ..labels import class_names_of, palette_of
from ..views import JPEG_SIDE, block_views_of_photo, explanation_sheet, overlay, rein_layers, save_picture
from .cli import run


# Of how many blocks --explain shows what Rein does: the first, the last, and others between.
BLOCKS = 5

# Above so many windows for a photo there is a hint, and a bar that counts them.
MANY_WINDOWS = 30


@dataclass
class PredictionArguments:
    model: str = field(metadata={"help": "Adapter or whole segmenter: folder or Hub id."})
    input: list[str] = field(metadata={"help": "Image files or folders of them."})
    output_dir: str = field(metadata={"help": "Where STEM_overlay.jpg and STEM_label.png go."})
    backbone: str | None = field(default=None, metadata={"help": "Backbone instead of the one the adapter names."})
    crop: int | None = field(default=None, metadata={"help": "Window in pixels; default: the model's training crop."})
    stride: int | None = field(default=None, metadata={"help": "Step between windows; default: 2/3 of the window."})
    opacity: float = field(default=0.5, metadata={"help": "Of the colours over the image, 0 to 1."})
    bf16: bool = field(default=False, metadata={"help": "Autocast to bfloat16."})
    explain: bool = field(default=False, metadata={"help": "STEM_explain.jpg too: features, and where tokens look."})
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
    model = move_to(accelerator, rein_hf.from_pretrained(args.model, backbone=args.backbone))
    names = class_names_of(model.config.id2label, f"--model {args.model}: id2label")
    window_sides(model, args.crop, args.stride)
    if args.explain:
        try:
            rein_layers(model)
        except ValueError as error:
            raise ValueError(f"--explain true of --model {args.model}: {error}") from error
    processor, palette = AutoImageProcessor.from_pretrained(args.model), palette_of(names)
    endings = ENDINGS if args.explain else ENDINGS[:2]
    accelerator.wait_for_everyone()  # nobody writes while another still searches the folders
    done, failed, progress = 0, 0, WindowProgress(accelerator.is_main_process)
    own = photos[accelerator.process_index :: accelerator.num_processes]
    for photo in tqdm(own, "photos", disable=not accelerator.is_main_process):
        targets = [photo.result(ending) for ending in endings]
        if args.resume and all(target.is_file() for target in targets):
            done += 1
            continue
        try:
            image = open_photo(photo.file)
            size = requested_size(image.size, args.size, args.short_side)
            with accelerator.autocast(), progress.of(photo.file) as count:
                label = segment(model, processor, image, args.crop, args.stride, size, count)
            pictures = [Image.fromarray(label), overlay(image, label, palette, args.opacity)]
            if args.explain:
                with accelerator.autocast():
                    pictures.append(explanation_sheet(*block_views_of_photo(model, processor, image, BLOCKS)))
        except (ValueError, MemoryError, torch.OutOfMemoryError) as error:
            reason = str(error) or "there is not enough memory."
            tell(f"{'' if str(photo.file) in reason else f'{photo.file}: '}{reason} It is left out.")
            failed += 1
            continue
        photo.target.parent.mkdir(parents=True, exist_ok=True)
        for picture, target in zip(pictures, targets, strict=True):
            save_picture(picture, target)
        done += 1
    counts = torch.tensor([done, failed], device=accelerator.device)
    done, failed = accelerator.reduce(counts, reduction="sum").tolist()
    if accelerator.is_main_process:
        print(printable(closing_line(done, failed, skipped, output_dir)))
    return failed


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
