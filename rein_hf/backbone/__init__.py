"""The backbone: four feature maps of strides 4, 8, 16 and 32 from one pretrained vision transformer."""

from .config import SCALES, ViTPyramidConfig
from .frozen_weights import cast_frozen_weights, own_autocast
from .inference_blocks import use_inference_blocks
from .normalization import own_normalization
from .pyramid import ViTPyramidBackbone, backbone_of, rescale
from .residual_norms import NormedSum, norm_of_sum
from .traced_sizes import crop_to, pad_to_multiple
from .vit import build_vit, load_vit, resample_to


__all__ = [
    "NormedSum",
    "SCALES",
    "ViTPyramidBackbone",
    "ViTPyramidConfig",
    "backbone_of",
    "build_vit",
    "cast_frozen_weights",
    "crop_to",
    "load_vit",
    "norm_of_sum",
    "own_autocast",
    "own_normalization",
    "pad_to_multiple",
    "resample_to",
    "rescale",
    "use_inference_blocks",
]
