"""From an image to a class for every pixel: windows, scores, and the image processor."""

from .compiled import compile_segmenter
from .image_processing import ReinImageProcessor
from .sizes import requested_size
from .windows import predict_labels, segment, semantic_scores, slide_inference, window_sides


__all__ = [
    "ReinImageProcessor",
    "compile_segmenter",
    "predict_labels",
    "requested_size",
    "segment",
    "semantic_scores",
    "slide_inference",
    "window_sides",
]
