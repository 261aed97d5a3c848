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
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoImageProcessor

import rein_hf

from ..head import class_and_mask_logits, head_of
from ..inference import slide_inference
from ..labels import class_names_of
from .cli import run


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


class SegmenterGraph(nn.Module):
    """From uint8 images to labels, in operations that can be traced.

    Args:
        model: a segmenter.
        processor: its image processor.
        scores (`bool`): whether to return scores beside the labels.
        any_size (`bool`): whether sides may be other than multiples of the patch size.
    """

    def __init__(self, model: nn.Module, processor, scores: bool, any_size: bool = False) -> None:
        super().__init__()
        self.model, self.rescale, self.scores, self.any_size = model, processor.rescale_factor, scores, any_size
        self.patch = model.config.backbone_config.backbone_config.patch_size
        self.has_masks = head_of(model.config.model_type).classifies_masks
        self.register_buffer("mean", torch.tensor(processor.image_mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(processor.image_std).view(3, 1, 1))

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Labels (B, H, W) and, if asked for, scores (B, K, H, W) of images (B, H, W, 3)."""
        pixel_values = (images.permute(0, 3, 1, 2).float() * self.rescale - self.mean) / self.std
        height, width = images.shape[1:3]
        if self.any_size:
            pixel_values = _pad_to_multiple(_pad_to_multiple(pixel_values, 2, self.patch), 3, self.patch)
        if self.has_masks:
            classes, masks = class_and_mask_logits(self.model, pixel_values)
            # as `rein_hf.semantic_scores`, but not in strips of rows: a graph has no loop over a height it does not
            # know
            masks = F.interpolate(masks, size=pixel_values.shape[2:], mode="bilinear", align_corners=False)
            scores = torch.einsum("bmk,bmhw->bkhw", classes.softmax(dim=-1)[..., :-1], masks.sigmoid())
        else:
            scores = self.model(pixel_values=pixel_values).logits
        if self.any_size:
            rows, columns = (torch.arange(side, device=scores.device) for side in (height, width))
            scores = scores.index_select(2, rows).index_select(3, columns)
        labels = scores.argmax(dim=1).to(torch.uint8)
        return (labels, scores) if self.scores else (labels,)


def _pad_to_multiple(images: torch.Tensor, dim: int, multiple: int) -> torch.Tensor:
    """Images with zeros after the last pixel of `dim`, so that its size is a multiple. Indices and not `F.pad`, for
    which a traced graph would ask whether anything is to be padded."""
    size = images.shape[dim]
    index = torch.arange((size + multiple - 1) // multiple * multiple, device=images.device)
    inside = (index < size).view(-1, *[1] * (images.ndim - 1 - dim))
    return images.index_select(dim, index.clamp(max=size - 1)) * inside


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
    if args.batch_size < 1:
        raise ValueError(f"--batch_size is {args.batch_size}; expected 1 at least.")
    if args.largest is not None and not args.dynamic:
        raise ValueError(f"--largest {args.largest} has no effect without --dynamic true.")
    model = rein_hf.from_pretrained(args.model, backbone=args.backbone).float().requires_grad_(False)
    class_names_of(model.config.id2label, f"--model {args.model}: id2label")
    processor = AutoImageProcessor.from_pretrained(args.model)
    vit = model.config.backbone_config.backbone_config
    # four patches at least, so that the coarsest map has two: torch.export makes a constant of a size of 1
    smallest, largest = 3 * vit.patch_size + 1, args.largest or LARGEST
    if args.dynamic and largest < smallest + vit.patch_size:
        raise ValueError(f"--largest is {largest}; expected {smallest + vit.patch_size} pixels at least.")
    graph = SegmenterGraph(model, processor, args.scores, args.dynamic).eval()
    shapes = [(args.batch_size, vit.image_size, vit.image_size)]
    if args.dynamic:  # first that of the trace, of unequal numbers, so that none is taken for another
        odd = min(vit.image_size + vit.patch_size // 2 - 1, largest)
        shapes = [(args.batch_size + 1, smallest + vit.patch_size, smallest), (1, smallest + 5, odd), *shapes]
    output.parent.mkdir(parents=True, exist_ok=True)
    program = trace(graph, coloured_noise(*shapes[0]), (smallest, largest) if args.dynamic else None)
    # in a folder of its own until it is known to be right
    with tempfile.TemporaryDirectory(prefix=".", dir=output.parent) as folder:
        unchecked = Path(folder, output.name)
        save_exported(program, unchecked, args.scores)
        del program
        run = load_exported(unchecked)
        found = [compare_with_model(model, processor, run, coloured_noise(*shape)) for shape in shapes]
        files = sorted(Path(folder).iterdir(), key=lambda file: file == unchecked)  # weights first, if they are apart
        megabytes = sum(file.stat().st_size for file in files) / 1e6
        for file in files:
            os.replace(file, output.with_name(file.name))
    worst = {"equal_labels": min(one["equal_labels"] for one in found)}
    if args.scores:
        worst["score_difference"] = max(one["score_difference"] for one in found)
    print(f"{output}: {megabytes:.0f} MB; compared with the model on images of {shapes}: {worst}")
    return worst


def trace(graph: SegmenterGraph, images: torch.Tensor, sides: tuple[int, int] | None) -> torch.export.ExportedProgram:
    """The graph for the shape of `images` or, with the shortest and the longest side, for all between them."""
    dynamic = None
    if sides is not None:
        dynamic = [torch.export.Dim(name, min=sides[0], max=sides[1]) for name in ("height", "width")]
        dynamic = (dict(enumerate([torch.export.Dim("batch", min=1), *dynamic])),)
    with torch.no_grad():
        return torch.export.export(
            graph,
            (images,),
            dynamic_shapes=dynamic,
            strict=True,  # the symbolic tracer takes lists of unknown sizes that the other one makes constants of
            # statements on sizes that are true but too hard for its solver are tested when the file runs
            prefer_deferred_runtime_asserts_over_guards=True,
        )


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
