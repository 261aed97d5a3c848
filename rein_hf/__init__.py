"""Rein for the Hugging Face stack: domain-generalised semantic segmentation with a few MB of adapter.

Importing the package registers its methods (Rein, AdaptFormer, VPT) with peft, and the pyramid backbone with
transformers. Without that import
`PeftConfig.from_pretrained` of a Rein adapter ends in `KeyError: 'REIN'`.
"""

from .adaptformer import AdaptFormerConfig, AdaptFormerLayer, AdaptFormerModel
from .backbone import ViTPyramidBackbone, ViTPyramidConfig
from .evaluation import MeanIoU
from .head import HEAD_MODULES
from .hub import Description, describe
from .inference import ReinImageProcessor, Segmentation, predict_labels, segment, semantic_scores, slide_inference
from .loading import from_pretrained
from .segmenter import add_adapter, add_rein, build_image_processor, build_segmenter
from .soma import SomaConfig, SomaModel
from .tuner import ReinConfig, ReinLayer, ReinModel, ReinQueries, ReinStages
from .views import BlockView, block_views, colorize, overlay
from .vpt import VPTConfig, VPTLayer, VPTModel


__all__ = [
    "AdaptFormerConfig",
    "AdaptFormerLayer",
    "AdaptFormerModel",
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
    "Segmentation",
    "SomaConfig",
    "SomaModel",
    "VPTConfig",
    "VPTLayer",
    "VPTModel",
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
