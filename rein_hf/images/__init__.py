"""The pixels of one image."""

from .opening import FORMATS, IMAGE_SUFFIXES, STORED_ORIENTATION, open_image, open_lazily, upright_rgb
from .resizing import affine_sample, resize_to_fit


__all__ = [
    "FORMATS",
    "IMAGE_SUFFIXES",
    "STORED_ORIENTATION",
    "affine_sample",
    "open_image",
    "open_lazily",
    "resize_to_fit",
    "upright_rgb",
]
