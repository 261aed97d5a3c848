"""The backbone: four feature maps of strides 4, 8, 16 and 32 from one pretrained vision transformer."""

from .config import SCALES, ViTPyramidConfig
from .frozen_weights import cast_frozen_weights, cast_norm_outputs, own_autocast
from .normalization import own_normalization
from .pyramid import ViTPyramidBackbone, backbone_of, rescale
from .traced_sizes import crop_to, pad_to_multiple
from .vit import build_vit, load_vit, resample_to


__all__ = [
    "SCALES",
    "ViTPyramidBackbone",
    "ViTPyramidConfig",
    "backbone_of",
    "build_vit",
    "cast_frozen_weights",
    "cast_norm_outputs",
    "crop_to",
    "load_vit",
    "own_autocast",
    "own_normalization",
    "pad_to_multiple",
    "resample_to",
    "rescale",
]
