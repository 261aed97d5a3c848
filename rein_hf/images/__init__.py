"""The pixels of one image."""

from .resizing import affine_sample, resize_to_fit


__all__ = [
    "affine_sample",
    "resize_to_fit",
]
