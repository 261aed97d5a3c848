"""Segmentation heads: Mask2Former's with fast modules and the paper's loss, and a light one that classifies pixels."""

from .criterion import ReinCriterion, pixel_loss
from .heads import HEAD_MODULES, HEADS, head_of
from .mask2former import class_and_mask_logits, use_fast_modules


__all__ = [
    "HEADS",
    "HEAD_MODULES",
    "ReinCriterion",
    "class_and_mask_logits",
    "head_of",
    "pixel_loss",
    "use_fast_modules",
]
