"""Segments photos: a coloured overlay and a label map (train ids, 8 bit) per file; on request what Rein does inside.

python recipes/predict.py --model USER/ADAPTER --input photos/ --output_dir segmented/

Runs under `accelerate launch` too. `--resume true` leaves out the photos that an interrupted run has done.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image, ImageOps
from tqdm.auto import tqdm
from transformers import AutoImageProcessor, HfArgumentParser

import rein_hf
from rein_hf.data import FORMATS, IMAGE_SUFFIXES
from rein_hf.evaluation import accelerator_for
from rein_hf.inference import segment
from rein_hf.labels import palette_of
from rein_hf.views import block_views_of_photo, explanation_sheet, overlay, rein_layers, save_picture


# Of how many blocks --explain shows what Rein does: the first, the last, and others between.
BLOCKS = 5


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


def main(args: PredictionArguments) -> int:
    """Returns how many files could not be read."""
    accelerator = accelerator_for("bf16" if args.bf16 else "no")
    files = list_images(args.input)
    model = rein_hf.from_pretrained(args.model, backbone=args.backbone).to(accelerator.device)
    if args.explain:
        try:
            rein_layers(model)
        except ValueError as error:
            raise ValueError(f"--explain true of --model {args.model}: {error}") from error
    processor = AutoImageProcessor.from_pretrained(args.model)
    output_dir = Path(args.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    palette = palette_of(model.config.id2label[index] for index in range(model.config.num_labels))
    endings = ["label.png", "overlay.jpg", *(["explain.jpg"] if args.explain else [])]
    unreadable = 0
    for file in tqdm(files[accelerator.process_index :: accelerator.num_processes]):
        targets = [output_dir / f"{file.stem}_{ending}" for ending in endings]
        if args.resume and all(target.is_file() for target in targets):
            continue
        try:
            image = Image.open(file, formats=FORMATS)
            image = ImageOps.exif_transpose(image).convert("RGB")  # phones note how they were held
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            print(f"{file} cannot be read as an image: {error}; left out.", file=sys.stderr)
            unreadable += 1
            continue
        with accelerator.autocast():
            label = segment(model, processor, image, args.crop, args.stride)
        pictures = [Image.fromarray(label), overlay(image, label, palette, args.opacity)]
        if args.explain:
            with accelerator.autocast():
                pictures.append(explanation_sheet(*block_views_of_photo(model, processor, image, BLOCKS)))
        for picture, target in zip(pictures, targets, strict=True):
            save_picture(picture, target)
    return unreadable


def list_images(inputs: list[str]) -> list[Path]:
    """The files named and those in the folders named.

    Raises:
        FileNotFoundError: one of them is not there; there is none at all.
        ValueError: two have the same stem, so that one's results would replace the other's.
    """
    files = []
    for path in map(Path, inputs):
        if not path.exists():
            raise FileNotFoundError(f"--input {path} does not exist.")
        found = sorted(path.iterdir()) if path.is_dir() else [path]
        files += [file for file in found if path.is_file() or file.suffix.lower() in IMAGE_SUFFIXES]
    if not files:
        raise FileNotFoundError(f"--input {inputs} holds no image ({', '.join(IMAGE_SUFFIXES)}).")
    stems = [file.stem for file in files]
    twice = sorted({stem for stem in stems if stems.count(stem) > 1})
    if twice:
        raise ValueError(f"--input holds several files of the same stem: {twice[:5]}.")
    return files


if __name__ == "__main__":
    sys.exit(1 if main(*HfArgumentParser(PredictionArguments).parse_args_into_dataclasses()) else 0)
