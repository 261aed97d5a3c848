"""A segmenter as one file that runs without this package: ONNX, or torch.export's .pt2.

rein-hf export --model USER/ADAPTER --output_dir segmenter.onnx           # one size: the model's crop
rein-hf export --model USER/ADAPTER --output_dir segmenter.pt2 --dynamic  # any size, any number of images

The file holds the backbone, Rein, the head, and what is calculated before and after them:
- input `images` (B, H, W, 3), uint8 RGB as an image file holds it, upright; rescaling and normalisation are inside;
- output `labels` (B, H, W), uint8 ids of at most 255 classes and, with `--scores true`, `scores` (B, classes, H, W),
  float32.
H and W are the model's crop or, with `--dynamic true`, any numbers of pixels from 3 patches + 1 (49 for patches of 16)
to `--largest`: images are padded to whole patches and labels cropped inside the file. The result is that of
`rein_hf.segment(..., crop=max(H, W))`, one window over the whole image. Sliding windows are not inside: for an image
that is much larger than the model's crop, average the `scores` of overlapping windows.

The file is run by onnxruntime or torch on images of several sizes, and is not kept if labels or scores are not those
of the model. Needs `pip install "rein-hf[export]"`, except for .pt2 files. Everything is in float32.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoImageProcessor

import rein_hf

from ..inference import slide_inference
from ..labels import class_names_of
from .cli import require_at_least, run
from .export_file import load_exported, metadata_of, save_exported
from .export_graph import SMALLEST_SIDE, SegmenterGraph, trace


# Scores may differ by this much, and labels where the best two scores differ by less.
TOLERANCE = 1e-3

# The longest side of images of any size, unless --largest says otherwise.
LARGEST = 2048


@dataclass
class ExportArguments:
    model: str = field(metadata={"help": "Adapter or whole segmenter: folder or Hub id."})
    output_dir: str = field(
        metadata={"help": "File to write, *.onnx or *.pt2, or the folder of segmenter.onnx.", "aliases": ["--output"]}
    )
    backbone: str | None = field(default=None, metadata={"help": "Backbone instead of the one the adapter names."})
    dynamic: bool = field(default=False, metadata={"help": "For images of any size, and any number of them."})
    largest: int | None = field(
        default=None, metadata={"help": f"With --dynamic: longest side in pixels, {LARGEST} by default."}
    )
    batch_size: int = field(
        default=1, metadata={"help": "Images that go in together; with --dynamic, that the file is tested with."}
    )
    scores: bool = field(default=False, metadata={"help": "Output class scores beside the labels."})


class Progress:
    """Says on the screen which of `steps` begins, and how long the last one took."""

    def __init__(self, steps: int) -> None:
        self.steps, self.number, self.begun = steps, 0, time.monotonic()

    def begin(self, what: str) -> None:
        self.end()
        self.number, self.begun = self.number + 1, time.monotonic()
        print(f"{self.number}/{self.steps} {what} ...", end=" ", flush=True)

    def end(self) -> None:
        if self.number:
            print(f"{time.monotonic() - self.begun:.0f} s", flush=True)


def main(args: ExportArguments) -> dict[str, float]:
    """Returns the share of equal labels and, where scores are output, their largest difference.

    Raises:
        ValueError: an argument makes no sense, or would have no effect; the model has more than 255 classes.
        RuntimeError: what the file gives is not what the model gives.
    """
    output = Path(args.output_dir)
    if output.is_dir() or not output.suffix:
        output /= "segmenter.onnx"
    if output.suffix not in (".onnx", ".pt2"):
        raise ValueError(f"--output_dir is {output}; expected a folder, or a file ending in .onnx or .pt2.")
    require_at_least(args, batch_size=1, largest=1)
    if args.largest is not None and not args.dynamic:
        raise ValueError(f"--largest {args.largest} has no effect without --dynamic true.")
    model = rein_hf.from_pretrained(args.model, backbone=args.backbone).float().requires_grad_(False)
    class_names_of(model.config.id2label, f"--model {args.model}: id2label")
    processor = AutoImageProcessor.from_pretrained(args.model)
    vit = model.config.backbone_config.backbone_config
    smallest, largest = (SMALLEST_SIDE - 1) * vit.patch_size + 1, args.largest or LARGEST
    if args.dynamic and largest < smallest + vit.patch_size:
        raise ValueError(f"--largest is {largest}; expected {smallest + vit.patch_size} pixels at least.")
    graph = SegmenterGraph(model, processor, args.scores, args.dynamic).eval()
    shapes = [(args.batch_size, vit.image_size, vit.image_size)]
    if args.dynamic:  # first that of the trace, of unequal numbers, so that none is taken for another
        odd = min(vit.image_size + vit.patch_size // 2 - 1, largest)
        shapes = [(args.batch_size + 1, smallest + vit.patch_size, smallest), (1, smallest + 5, odd), *shapes]
    output.parent.mkdir(parents=True, exist_ok=True)
    sides = (smallest, largest) if args.dynamic else None
    metadata = metadata_of(model, processor, args.model, sides, args.batch_size)
    progress = Progress(steps=4)
    progress.begin(
        f"traces the model for {'any size' if args.dynamic else f'{vit.image_size}x{vit.image_size} pixels'}"
    )
    program = trace(graph, coloured_noise(*shapes[0]), sides)
    # in a folder of its own until it is known to be right
    with tempfile.TemporaryDirectory(prefix=".", dir=output.parent) as folder:
        unchecked = Path(folder, output.name)
        progress.begin(f"writes {output.name}")
        save_exported(program, unchecked, args.scores, metadata)
        del program
        progress.begin(f"loads {output.name}")
        run = load_exported(unchecked)
        progress.begin(f"compares it with the model on images of {len(shapes)} sizes")
        found = [compare_with_model(model, processor, run, coloured_noise(*shape)) for shape in shapes]
        files = sorted(Path(folder).iterdir(), key=lambda file: file == unchecked)  # weights first, if they are apart
        megabytes = sum(file.stat().st_size for file in files) / 1e6
        for file in files:
            os.replace(file, output.with_name(file.name))
    worst = {"equal_labels": min(one["equal_labels"] for one in found)}
    if args.scores:
        worst["score_difference"] = max(one["score_difference"] for one in found)
    progress.end()
    print(f"{output}: {megabytes:.0f} MB; compared with the model on images of {shapes}: {worst}")
    print(f"In its metadata: {', '.join(metadata)}.")
    return worst


def coloured_noise(batch: int, height: int, width: int) -> torch.Tensor:
    """Images (B, H, W, 3) of coloured clouds, always the same ones."""
    clouds = np.random.default_rng(0).uniform(0, 256, (batch, 3, 6, 6))
    images = F.interpolate(torch.from_numpy(clouds), size=(height, width), mode="bilinear", align_corners=False)
    return images.to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def compare_with_model(
    model: nn.Module, processor, run: Callable[[torch.Tensor], list[torch.Tensor]], images: torch.Tensor
) -> dict[str, float]:
    """The results of a file, which `run` gives, beside those of the model for one window over each image.

    Raises:
        RuntimeError: a score differs by more than `TOLERANCE`, or a label where the best two scores differ by more.
    """
    batch, height, width = images.shape[:3]
    pixel_values = processor(list(images.permute(0, 3, 1, 2)), return_tensors="pt")["pixel_values"]
    scores = slide_inference(model, pixel_values[..., :height, :width], crop=max(height, width))
    found = dict(zip(("labels", "scores"), run(images), strict=False))
    best, *others = scores.topk(min(2, scores.shape[1]), dim=1).values.unbind(1)
    differ = found["labels"] != scores.argmax(dim=1)
    wrong = (differ & (best - others[0] > TOLERANCE)).sum().item() if others else differ.sum().item()
    result = {"equal_labels": 1 - differ.double().mean().item()}
    if "scores" in found:
        result["score_difference"] = (found["scores"] - scores).abs().max().item()
    if wrong or result.get("score_difference", 0.0) > TOLERANCE:
        raise RuntimeError(
            f"The file does not give what the model gives for {batch} images of {width}x{height}: {result}, "
            f"{wrong} labels are wrong."
        )
    return result


if __name__ == "__main__":
    sys.exit(run("export"))
