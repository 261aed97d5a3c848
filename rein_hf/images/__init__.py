"""The pixels of one image: opened upright and at their full depth, and resized."""

from .opening import (
    FORMATS,
    IMAGE_SUFFIXES,
    STORED_MODE,
    STORED_ORIENTATION,
    is_hidden,
    load_pixels,
    open_image,
    open_lazily,
    source_name,
    turn_upright,
    upright_rgb,
)
from .resizing import affine_sample, resize_to_fit


__all__ = [
    "FORMATS",
    "IMAGE_SUFFIXES",
    "STORED_MODE",
    "STORED_ORIENTATION",
    "affine_sample",
    "is_hidden",
    "load_pixels",
    "open_image",
    "open_lazily",
    "resize_to_fit",
    "source_name",
    "turn_upright",
    "upright_rgb",
]
