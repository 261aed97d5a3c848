"""What [`rein_hf.segment`] and [`rein_hf.overlay`] take for a photo: a file, a Pillow image, an array or a tensor."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
from PIL import Image

from .opening import open_image, upright_rgb


def to_photos(source: Any) -> tuple[list[Any], bool]:
    """The photos that are meant, not yet opened, and whether several were given.

    Args:
        source: one photo as [`to_photo`] takes it, a list of them, or a batch: an array (B, H, W, 3), a tensor
            (B, 3, H, W).
    """
    if isinstance(source, list | tuple):
        return list(source), True
    if isinstance(source, np.ndarray | torch.Tensor) and source.ndim == 4:
        return list(source), True
    return [source], False


def to_photo(source: Any) -> Image.Image:
    """A photo as people see it: RGB of 8 bits, upright.

    Args:
        source: one of

            - a path (`str` or `os.PathLike`),
            - a `PIL.Image.Image` of any size and mode,
            - an array (H, W, 3), RGB (of OpenCV: `image[..., ::-1]`), or (H, W), gray,
            - a tensor (3, H, W), or (1, H, W), gray.

            Arrays and tensors are of uint8, or of floats from 0 (black) to 1 (white), as torchvision's `ToTensor`
            makes them.

    Raises:
        ValueError: a file cannot be read; an array or tensor has another shape, type or other values.
        TypeError: it is none of these.
    """
    if isinstance(source, str | os.PathLike):
        return open_image(source)
    if isinstance(source, Image.Image):
        return upright_rgb(source)
    if isinstance(source, torch.Tensor):
        shape = tuple(source.shape)
        if source.ndim != 3 or shape[0] not in (1, 3) or 0 in shape:
            raise ValueError(f"A photo is a tensor of shape {shape}; expected (3, H, W), RGB, or (1, H, W), gray.")
        pixels = source.detach().cpu()
        pixels = (pixels.float() if pixels.is_floating_point() else pixels).numpy()
        return _from_pixels(np.moveaxis(pixels, 0, -1).squeeze(-1) if shape[0] == 1 else np.moveaxis(pixels, 0, -1))
    if isinstance(source, np.ndarray):
        if source.ndim not in (2, 3) or (source.ndim == 3 and source.shape[2] != 3) or 0 in source.shape:
            raise ValueError(f"A photo is an array of shape {source.shape}; expected (H, W, 3), RGB, or (H, W), gray.")
        return _from_pixels(source)
    raise TypeError(
        f"A photo is a {type(source).__name__}; expected a path, a PIL image, an array (H, W, 3), a tensor (3, H, W), "
        "or a list of them."
    )


def _from_pixels(pixels: np.ndarray) -> Image.Image:
    """An RGB image of pixels (H, W, 3) or (H, W)."""
    if np.issubdtype(pixels.dtype, np.floating):
        low, high = float(pixels.min()), float(pixels.max())
        if not (0 <= low and high <= 1):  # nor NaN
            raise ValueError(
                f"A photo holds floats from {low:g} to {high:g}; expected 0 to 1. Values from 0 to 255 should be of "
                "uint8; pixel_values of an image processor go to rein_hf.slide_inference."
            )
        pixels = (255 * pixels).round().astype(np.uint8)
    if pixels.dtype != np.uint8:
        raise ValueError(f"A photo holds {pixels.dtype}; expected uint8, or floats from 0 to 1.")
    return Image.fromarray(np.ascontiguousarray(pixels)).convert("RGB")
