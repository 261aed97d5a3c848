"""Rein for the Hugging Face stack: domain-generalised semantic segmentation with a few MB of adapter.

Importing the package registers Rein with peft and the pyramid backbone with transformers. Without that import
`PeftConfig.from_pretrained` of a Rein adapter ends in `KeyError: 'REIN'`.
"""

from .backbone import ViTPyramidBackbone, ViTPyramidConfig
from .description import Description, describe
from .explain import BlockView, block_views
from .heads import HEAD_MODULES
from .image_processing import ReinImageProcessor
from .inference import predict_labels, segment, semantic_scores, slide_inference
from .loading import from_pretrained
from .metrics import MeanIoU
from .pictures import colorize, overlay
from .segmenter import add_adapter, add_rein, build_image_processor, build_segmenter
from .tuner import ReinConfig, ReinLayer, ReinModel, ReinQueries, ReinStages


__all__ = [
    "BlockView",
    "Description",
    "HEAD_MODULES",
    "MeanIoU",
    "ReinConfig",
    "ReinImageProcessor",
    "ReinLayer",
    "ReinModel",
    "ReinQueries",
    "ReinStages",
    "ViTPyramidBackbone",
    "ViTPyramidConfig",
    "add_adapter",
    "add_rein",
    "block_views",
    "build_image_processor",
    "build_segmenter",
    "colorize",
    "describe",
    "from_pretrained",
    "overlay",
    "predict_labels",
    "segment",
    "semantic_scores",
    "slide_inference",
]
__version__ = "0.1.0"
