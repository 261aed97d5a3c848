"""The paper's evaluation: sliding windows over whole images, one confusion matrix per data set, a file of results."""

from .metrics import MeanIoU
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
    "evaluate_domain",
    "evenly_spaced_indices",
    "evenly_spaced_samples",
    "in_classes_of",
    "move_to",
    "predict_sample",
]
