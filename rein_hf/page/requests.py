"""What a request of the page holds: a dictionary that anybody may have written."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from ..data.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from ..images import open_image
from .bounds import Bounds, PageError, decode_data_uri, open_upload
from .examples import Example


# The longest side, in pixels, of the photo that the page draws, and of one that is corrupted.
SHOWN_SIDE = 1280
# What the model sees -> the short side of that copy, in windows of the model; `None`: the photo as it is.
DETAILS = {"fast": 1, "fine": 2, "every pixel": None}

EXAMPLE = "example:"


def has_corruptions() -> bool:
    """Whether the package that corrupts photos is installed (extra `corruptions`)."""
    return importlib.util.find_spec("imagecorruptions") is not None


def photo_of(request: Mapping[str, Any], examples: Sequence[Example], bounds: Bounds) -> Image.Image:
    """The photo of a request, upright, RGB: `photo` is a data URI or "example:NUMBER". With a `corruption` of a
    `severity` it is at most `SHOWN_SIDE` pixels long and corrupted, the same at each request.

    Raises:
        PageError: there is none, or it cannot be had.
    """
    source = request.get("photo")
    if isinstance(source, str) and source.startswith(EXAMPLE):
        number = source.removeprefix(EXAMPLE)
        if number not in map(str, range(len(examples))):
            raise PageError("There is no such example. Load the page again.")
        photo = open_image(examples[int(number)].path)
    else:
        photo = open_upload(source, bounds)
    name, severity = request.get("corruption"), request.get("severity")
    if not name:
        return photo
    if not isinstance(name, str) or name not in CORRUPTIONS or severity not in SEVERITIES:
        raise PageError("There is no such corruption. Load the page again.")
    if not has_corruptions():
        raise PageError('Corruptions are not installed on this server: pip install "rein-hf[corruptions]".')
    photo.thumbnail((SHOWN_SIDE, SHOWN_SIDE))  # their time grows with the pixels
    try:
        return corrupt(photo, name, severity, np.random.default_rng(0))
    except ValueError as error:
        raise PageError("The photo is too small to be corrupted; expected 32x32 pixels at least.") from error


def seen_size(request: Mapping[str, Any], size: tuple[int, int], crop: int, bounds: Bounds) -> tuple[int, int] | None:
    """What a photo of `size` is resized to fit into before the model, of windows of `crop` pixels, sees it, by the
    `detail` of a request; `None`: it stays as it is. No photo is enlarged.

    Raises:
        PageError: there is no such detail; the model would see too many pixels.

    Example:

    ```py
    >>> from rein_hf.page import Bounds
    >>> from rein_hf.page.requests import seen_size
    >>> seen_size({"detail": "fast"}, (4000, 3000), 512, Bounds())
    (683, 512)

    ```
    """
    detail = request.get("detail")
    if not isinstance(detail, str) or detail not in DETAILS:
        raise PageError(f"There is no such detail; there are {', '.join(DETAILS)}.")
    short = min(size) if DETAILS[detail] is None else min(DETAILS[detail] * crop, min(size))
    width, height = (max(round(side * short / min(size)), 1) for side in size)
    if width * height > bounds.seen_megapixels * 1_000_000:
        raise PageError(
            f"The model would have to see {width}x{height} pixels; this page takes {bounds.seen_megapixels} million "
            "at most. Ask for less detail, or cut the photo."
        )
    return None if short == min(size) else (width, height)


def label_map_of(request: Mapping[str, Any], size: tuple[int, int]) -> np.ndarray:
    """The `label_map` of a request, (H, W) uint8, of a photo of `size`.

    Raises:
        PageError: it is none of that photo.
    """
    content = decode_data_uri(request.get("label_map"), "The label map")
    try:
        with Image.open(io.BytesIO(content), formats=("PNG",)) as picture:
            if (picture.mode, picture.size) == ("L", size):
                return np.array(picture)
    except Exception as error:  # Pillow's readers raise errors of many classes for broken files
        raise PageError("The label map arrived damaged. Segment the photo again.") from error
    raise PageError("The label map is not that of the photo. Segment the photo again.")


def opacity_of(request: Mapping[str, Any]) -> float:
    """The `opacity` of a request, 0 to 1.

    Raises:
        PageError: it is none.
    """
    opacity = request.get("opacity")
    if isinstance(opacity, bool) or not isinstance(opacity, int | float) or not 0 <= opacity <= 1:
        raise PageError("The opacity is no number from 0 to 1. Load the page again.")
    return opacity


def hidden_classes(request: Mapping[str, Any], count: int) -> list[int]:
    """The ids of classes that are switched off, of `count`: `hidden` of a request.

    Raises:
        PageError: they are none.
    """
    hidden = request.get("hidden")
    if not isinstance(hidden, list) or not all(type(index) is int and 0 <= index < count for index in hidden):
        raise PageError("The classes that are switched off are none of this model. Load the page again.")
    return hidden
