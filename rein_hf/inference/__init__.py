"""From an image to a class for every pixel: windows, scores, and the image processor."""

from .compiled import compile_segmenter
from .image_processing import ReinImageProcessor
from .segmentation import Segmentation, segment, segment_with_confidence
from .sizes import requested_size
from .windows import predict_labels, semantic_scores, slide_inference, window_sides


__all__ = [
    "ReinImageProcessor",
    "Segmentation",
    "compile_segmenter",
    "predict_labels",
    "requested_size",
    "segment",
    "segment_with_confidence",
    "semantic_scores",
    "slide_inference",
    "window_sides",
]
