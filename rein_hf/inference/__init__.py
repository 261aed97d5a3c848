"""From an image to a class for every pixel: windows, scores, and the image processor."""

from .image_processing import ReinImageProcessor
from .windows import predict_labels, segment, semantic_scores, slide_inference


__all__ = [
    "ReinImageProcessor",
    "predict_labels",
    "segment",
    "semantic_scores",
    "slide_inference",
]
