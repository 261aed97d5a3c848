"""The size at which an image is segmented, as command lines ask for it."""

from __future__ import annotations

import re


def requested_size(
    image_size: tuple[int, int], size: str | None = None, short_side: int | None = None
) -> tuple[int, int] | None:
    """The `size` argument of [`segment`] for an image, from the options --size and --short_side.

    Args:
        image_size (`(int, int)`): width and height of the image in pixels.
        size (`str`, *optional*): "WIDTHxHEIGHT" in pixels, into which the image is resized to fit, its ratio kept.
        short_side (`int`, *optional*): pixels that the image's shorter side is resized to, its ratio kept.

    Returns:
        Width and height to fit the image into, or `None` if neither is given: the image keeps its size.

    Raises:
        ValueError: both are given, or they are no numbers of pixels.

    Example:

    ```py
    >>> from rein_hf.inference import requested_size
    >>> requested_size((4000, 3000), "1024x512"), requested_size((4000, 3000), short_side=512)
    ((1024, 512), (683, 512))

    ```
    """
    if size is not None and short_side is not None:
        raise ValueError(f"--size {size} and --short_side {short_side} are both given; expected one of them.")
    if size is not None:
        if not re.fullmatch("[1-9][0-9]*x[1-9][0-9]*", size):
            raise ValueError(f"--size is {size!r}; expected WIDTHxHEIGHT in pixels, such as 1024x512.")
        width, height = map(int, size.split("x"))
        return width, height
    if short_side is None:
        return None
    if short_side < 1:
        raise ValueError(f"--short_side is {short_side}; expected a number of pixels, 1 at least.")
    factor = short_side / min(image_size)
    width, height = (max(round(side * factor), 1) for side in image_size)
    return width, height
