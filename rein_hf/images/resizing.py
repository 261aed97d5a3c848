"""Resizing as the authors' augmentation and evaluation do it: bilinear without antialiasing, as OpenCV does and PIL's
`resize` does not."""

from __future__ import annotations

from PIL import Image


def resize_to_fit(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """An RGB image resized to fit into a width and a height, keeping its ratio: the long side into the longer of the
    two, the short side into the shorter, as in the authors' evaluation."""
    factor = min(max(size) / max(image.size), min(size) / min(image.size))
    scaled = tuple(max(1, int(side * factor + 0.5)) for side in image.size)
    if scaled == image.size:
        return image
    step = (image.width / scaled[0], image.height / scaled[1])
    return affine_sample(image, step, (0, 0), scaled, False, Image.Resampling.BILINEAR)


def affine_sample(
    image: Image.Image,
    step: tuple[float, float],
    origin: tuple[int, int],
    size: tuple[int, int],
    flip: bool,
    resample: Image.Resampling,
) -> Image.Image:
    """`size` pixels from `origin` on of the image resized by 1 / `step`, mirrored if `flip`."""
    x_step, x_start = step[0], step[0] * origin[0]
    if flip:
        x_step, x_start = -step[0], step[0] * (origin[0] + size[0])
    matrix = (x_step, 0, x_start, 0, step[1], step[1] * origin[1])
    return image.transform(size, Image.Transform.AFFINE, matrix, resample)
