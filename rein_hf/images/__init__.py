"""The pixels of one image: opened upright and at their full depth, and resized."""

from .normalization import image_tensor, normalize, normalized_levels
from .opening import (
    FORMATS,
    IMAGE_SUFFIXES,
    STORED_FRAMES,
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
from .photo_inputs import to_photo, to_photos
from .png import decode_png
from .resizing import affine_sample, fitted_size
from .workers import default_workers


__all__ = [
    "FORMATS",
    "IMAGE_SUFFIXES",
    "STORED_FRAMES",
    "STORED_MODE",
    "STORED_ORIENTATION",
    "affine_sample",
    "decode_png",
    "default_workers",
    "fitted_size",
    "image_tensor",
    "is_hidden",
    "load_pixels",
    "normalize",
    "normalized_levels",
    "open_image",
    "open_lazily",
    "source_name",
    "to_photo",
    "to_photos",
    "turn_upright",
    "upright_rgb",
]
