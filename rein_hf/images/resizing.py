"""Resizing as the authors' augmentation and evaluation do it: bilinear without antialiasing, as OpenCV does and PIL's
`resize` does not."""

from __future__ import annotations

from collections.abc import Iterable
from numbers import Integral

from PIL import Image


def fitted_size(image_size: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """Width and height of an image of `image_size` that is resized to fit into a width and a height, its ratio kept.
    The two may be swapped: its long side fits into the longer of them, its short side into the shorter.

    Raises:
        ValueError: `size` is no width and height in pixels.
    """
    sides = tuple(size) if isinstance(size, Iterable) else ()
    if len(sides) != 2 or not all(isinstance(side, Integral) and side is not True and side >= 1 for side in sides):
        raise ValueError(f"size is {size!r}; expected (width, height) in pixels, whole numbers of at least 1.")
    factor = min(max(size) / max(image_size), min(size) / min(image_size))
    width, height = (max(1, int(side * factor + 0.5)) for side in image_size)
    return width, height


def affine_sample(
    image: Image.Image,
    step: tuple[float, float],
    origin: tuple[int, int],
    size: tuple[int, int],
    flip: bool,
    resample: Image.Resampling,
) -> Image.Image:
    """A crop of a resized image, computed in one resampling.

    Args:
        image (`PIL.Image.Image`): of mode RGB or L.
        step (`(float, float)`): x and y distance, in pixels of `image`, between neighbouring pixels of the result; the
            image is resized by 1 / `step`.
        origin (`(int, int)`): x and y of the crop's upper left corner in the resized image.
        size (`(int, int)`): width and height of the crop.
        flip (`bool`): whether the crop is mirrored left to right.
        resample: nearest or bilinear.
    """
    x_step, x_start = step[0], step[0] * origin[0]
    if flip:
        x_step, x_start = -step[0], step[0] * (origin[0] + size[0])
    matrix = (x_step, 0, x_start, 0, step[1], step[1] * origin[1])
    return image.transform(size, Image.Transform.AFFINE, matrix, resample)
