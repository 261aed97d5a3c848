"""From an image to a class for every pixel: windows, scores, and the image processor."""

from .ahead import batched_by_size, label_maps, prepare_image, read_ahead
from .budget import is_out_of_memory
from .class_scores import semantic_scores
from .compiled import compile_segmenter
from .image_processing import ReinImageProcessor
from .preparation import prepare_for_inference
from .segmentation import Segmentation, segment, segment_with_confidence
from .sizes import requested_size
from .transfer import pixel_values_of, start_copy, to_device
from .windows import predict_labels, slide_inference, window_sides


__all__ = [
    "ReinImageProcessor",
    "Segmentation",
    "batched_by_size",
    "compile_segmenter",
    "is_out_of_memory",
    "label_maps",
    "pixel_values_of",
    "predict_labels",
    "prepare_for_inference",
    "prepare_image",
    "read_ahead",
    "requested_size",
    "segment",
    "segment_with_confidence",
    "semantic_scores",
    "slide_inference",
    "start_copy",
    "to_device",
    "window_sides",
]
