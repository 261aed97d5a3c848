"""A segmenter as one file that runs without this package: ONNX, or torch.export's .pt2.

python recipes/export.py --model USER/ADAPTER --output segmenter.onnx                # one window of the model's crop
python recipes/export.py --model USER/ADAPTER --output segmenter.pt2 --dynamic true  # images of many sizes

Inside are the backbone, Rein, the head and the arithmetic before and after them:
- input `images` (B, H, W, 3), uint8 RGB as an image file holds it; rescaling and normalisation are in the graph;
- output `labels` (B, H, W), uint8 class ids and, with `--scores true`, `scores` (B, classes, H, W), float32.
H and W are the model's crop or, with `--dynamic true`, any multiples of 32 from 64 to `--largest`: pad the image with
its mean colour and cut the labels. Sliding windows are not inside: average `scores` of overlapping windows for those.

The file is then run, by onnxruntime or torch, on coloured noise, and refused if its labels or scores are not the
model's. Needs `pip install "rein-hf[export]"`, .pt2 files excepted. Everything is in float32.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoImageProcessor, HfArgumentParser

import rein_hf
from rein_hf.head import class_and_mask_logits, head_of


# Largest difference of scores, and two best scores closer than this may change places.
TOLERANCE = 1e-3

# Sides of images of many sizes are multiples of this: of two patches of 16.
STEP = 32


@dataclass
class ExportArguments:
    model: str = field(metadata={"help": "Adapter or whole segmenter: folder or Hub id."})
    output: str = field(metadata={"help": "File to write: *.onnx or *.pt2."})
    backbone: str | None = field(default=None, metadata={"help": "Backbone instead of the one the adapter names."})
    dynamic: bool = field(default=False, metadata={"help": "For images of many sizes."})
    largest: int = field(default=2048, metadata={"help": "With --dynamic: longest side in pixels."})
    batch_size: int = field(default=1, metadata={"help": "Images that go in together."})
    scores: bool = field(default=False, metadata={"help": "Output class scores beside the labels."})


class SegmenterGraph(nn.Module):
    """From uint8 images to labels, in operations that can be traced."""

    def __init__(self, model: nn.Module, processor, scores: bool) -> None:
        super().__init__()
        self.model, self.rescale, self.scores = model, processor.rescale_factor, scores
        self.of_masks = head_of(model.config.model_type).classifies_masks
        self.register_buffer("mean", torch.tensor(processor.image_mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(processor.image_std).view(3, 1, 1))

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Labels (B, H, W) and, if asked for, scores (B, K, H, W) of images (B, H, W, 3)."""
        pixel_values = (images.permute(0, 3, 1, 2).float() * self.rescale - self.mean) / self.std
        if self.of_masks:
            classes, masks = class_and_mask_logits(self.model, pixel_values)
            # `rein_hf.semantic_scores`, not strip by strip: a graph cannot repeat itself for a height it does not know
            masks = F.interpolate(masks, size=images.shape[1:3], mode="bilinear", align_corners=False)
            scores = torch.einsum("bmk,bmhw->bkhw", classes.softmax(dim=-1)[..., :-1], masks.sigmoid())
        else:
            scores = self.model(pixel_values=pixel_values).logits
        labels = scores.argmax(dim=1).to(torch.uint8)
        return (labels, scores) if self.scores else (labels,)


def main(args: ExportArguments) -> dict[str, float]:
    """Returns the largest difference of scores, where they are output, and the share of equal labels.

    Raises:
        ValueError: `output` is of another kind, or the image sizes make no sense.
        RuntimeError: what the file gives is not what the model gives.
    """
    output = Path(args.output)
    if output.suffix not in (".onnx", ".pt2"):
        raise ValueError(f"--output is {output}; expected a file ending in .onnx or .pt2.")
    if args.dynamic and args.largest < 3 * STEP:
        raise ValueError(f"--largest is {args.largest}; expected {3 * STEP} pixels at least.")
    model = rein_hf.from_pretrained(args.model, backbone=args.backbone).float().requires_grad_(False)
    processor = AutoImageProcessor.from_pretrained(args.model)
    expected = SegmenterGraph(model, processor, scores=True).eval()
    graph = SegmenterGraph(model, processor, args.scores).eval()
    crop = model.config.backbone_config.backbone_config.image_size
    sizes = [(crop, crop)]
    if args.dynamic:  # of unequal sides for the trace, so that none is taken for the other, and the trained size
        sizes = [(3 * STEP, 2 * STEP), (2 * STEP, min(5 * STEP, args.largest // STEP * STEP)), (crop, crop)]
    output.parent.mkdir(parents=True, exist_ok=True)
    program = trace(graph, coloured_noise(args.batch_size, sizes[0]), args.largest if args.dynamic else None)
    # beside its place until it is known to be right
    with tempfile.TemporaryDirectory(prefix=".", dir=output.parent) as folder:
        unchecked = Path(folder, output.name)
        save_exported(program, unchecked, args.scores)
        del program
        run = load_exported(unchecked)
        found = [compare_with_model(expected, run, coloured_noise(args.batch_size, size)) for size in sizes]
        files = sorted(Path(folder).iterdir(), key=lambda file: file == unchecked)  # weights first, if they are apart
        megabytes = sum(file.stat().st_size for file in files) / 1e6
        for file in files:
            os.replace(file, output.with_name(file.name))
    worst = {"equal_labels": min(one["equal_labels"] for one in found)}
    if args.scores:
        worst["score_difference"] = max(one["score_difference"] for one in found)
    print(f"{output}: {megabytes:.0f} MB; on {sizes}: {worst}")
    return worst


def trace(graph: SegmenterGraph, images: torch.Tensor, largest: int | None) -> torch.export.ExportedProgram:
    """The graph for images of the size given or, with `largest`, of all multiples of `STEP` up to it."""
    sides = None
    if largest is not None:
        rows, columns = (torch.export.Dim(name, min=2, max=largest // STEP) for name in ("rows", "columns"))
        sides = ({1: STEP * rows, 2: STEP * columns},)
    with torch.no_grad():
        # strict: the symbolic tracer takes lists of unknown sizes that the other one makes constants of
        return torch.export.export(graph, (images,), dynamic_shapes=sides, strict=True)


def save_exported(program: torch.export.ExportedProgram, output: Path, scores: bool) -> None:
    if output.suffix == ".pt2":
        torch.export.save(program, output)
        return
    names = ["labels", "scores"] if scores else ["labels"]
    size = sum(tensor.nbytes for tensor in program.state_dict.values())
    torch.onnx.export(
        program,
        (),
        output,
        dynamo=True,
        verbose=False,
        input_names=["images"],
        output_names=names,
        external_data=size > 1.9e9,  # a file of ONNX holds 2 GB; weights beyond go into another beside it
    )


def load_exported(output: Path) -> Callable[[torch.Tensor], list[torch.Tensor]]:
    """A function that runs the file on images."""
    if output.suffix == ".pt2":
        return torch.export.load(output).module()
    import onnxruntime

    session = onnxruntime.InferenceSession(output, providers=["CPUExecutionProvider"])
    return lambda images: [torch.from_numpy(array) for array in session.run(None, {"images": images.numpy()})]


def coloured_noise(batch: int, size: tuple[int, int]) -> torch.Tensor:
    """Images (B, H, W, 3) of coloured clouds, always the same ones."""
    clouds = np.random.default_rng(0).uniform(0, 256, (batch, 3, 6, 6))
    images = F.interpolate(torch.from_numpy(clouds), size=size, mode="bilinear", align_corners=False)
    return images.to(torch.uint8).permute(0, 2, 3, 1).contiguous()


@torch.no_grad()
def compare_with_model(expected: SegmenterGraph, run: Callable, images: torch.Tensor) -> dict[str, float]:
    """The file's results beside the model's.

    Raises:
        RuntimeError: a score differs by more than `TOLERANCE`, or a label that is not as good as a tie.
    """
    labels, scores = expected(images)
    found = dict(zip(("labels", "scores"), run(images), strict=False))
    best, second = scores.topk(2, dim=1).values.unbind(1)
    differ = found["labels"] != labels
    wrong = (differ & (best - second > TOLERANCE)).sum().item()
    result = {"equal_labels": 1 - differ.double().mean().item()}
    if "scores" in found:
        result["score_difference"] = (found["scores"] - scores).abs().max().item()
    if wrong or result.get("score_difference", 0.0) > TOLERANCE:
        raise RuntimeError(f"The file does not give what the model gives: {result}, {wrong} labels are wrong.")
    return result


if __name__ == "__main__":
    main(HfArgumentParser(ExportArguments).parse_args_into_dataclasses()[0])
