"""A segmenter in operations that can be traced, from uint8 images to labels, for `export.py`."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from ..backbone import crop_to, pad_to_multiple
from ..head import class_and_mask_logits, head_of


# Patches along the shortest side of images of any size: four, so that the coarsest map has two, because torch.export
# makes a constant of a size of 1.
SMALLEST_SIDE = 4


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
            pixel_values, _ = pad_to_multiple(pixel_values, 2, self.patch, SMALLEST_SIDE)
            pixel_values, _ = pad_to_multiple(pixel_values, 3, self.patch, SMALLEST_SIDE)
        if self.has_masks:
            classes, masks = class_and_mask_logits(self.model, pixel_values)
            # as `rein_hf.semantic_scores`, but not in strips of rows: a graph has no loop over a height it does not
            # know
            masks = F.interpolate(masks, size=pixel_values.shape[2:], mode="bilinear", align_corners=False)
            scores = torch.einsum("bmk,bmhw->bkhw", classes.softmax(dim=-1)[..., :-1], masks.sigmoid())
        else:
            scores = self.model(pixel_values=pixel_values).logits
        if self.any_size:
            scores = crop_to(crop_to(scores, 2, height), 3, width)
        labels = scores.argmax(dim=1).to(torch.uint8)
        return (labels, scores) if self.scores else (labels,)


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
            strict=False,  # half the time of the symbolic tracer; what only that one takes is not in the model
            # statements on sizes that are true but too hard for its solver are tested when the file runs
            prefer_deferred_runtime_asserts_over_guards=True,
        )
