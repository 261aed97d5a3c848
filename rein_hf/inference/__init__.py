"""From an image to a class for every pixel: windows, scores, and the image processor."""

from .image_processing import ReinImageProcessor
from .sizes import requested_size
from .windows import predict_labels, segment, semantic_scores, slide_inference, window_sides


__all__ = [
    "ReinImageProcessor",
    "predict_labels",
    "requested_size",
    "segment",
    "semantic_scores",
    "slide_inference",
    "window_sides",
]
