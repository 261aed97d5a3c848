"""The paper's evaluation: sliding windows over whole images, one confusion matrix per data set, a file of results."""

from .metrics import MeanIoU
from .origin import comment_of_maps, is_comment_of_maps, origin_of, weights_checksum
from .precision import accelerator_for, move_to
from .protocol import (
    evaluate_domain,
    evenly_spaced_indices,
    evenly_spaced_samples,
    in_classes_of,
    predict_sample,
)
from .results import Results


__all__ = [
    "MeanIoU",
    "Results",
    "accelerator_for",
    "comment_of_maps",
    "evaluate_domain",
    "evenly_spaced_indices",
    "evenly_spaced_samples",
    "in_classes_of",
    "is_comment_of_maps",
    "move_to",
    "origin_of",
    "predict_sample",
    "weights_checksum",
]
