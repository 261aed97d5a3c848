"""Resizing as the authors' augmentation and evaluation do it: bilinear without antialiasing, as OpenCV does and PIL's
`resize` does not."""

from __future__ import annotations

from PIL import Image


def resize_to_fit(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """An RGB image resized to fit into a width and a height, its ratio kept. As in the authors' evaluation, the two
    may be swapped: the image's long side fits into the longer of them, its short side into the shorter."""
    scaled = fitted_size(image.size, size)
    if scaled == image.size:
        return image
    step = (image.width / scaled[0], image.height / scaled[1])
    return affine_sample(image, step, (0, 0), scaled, False, Image.Resampling.BILINEAR)


def fitted_size(image_size: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """Width and height that [`resize_to_fit`] gives an image of `image_size`."""
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
