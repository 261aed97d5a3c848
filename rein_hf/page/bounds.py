"""What the page takes from a stranger: how many bytes and pixels, which formats; and how such a photo is opened."""

from __future__ import annotations

import base64
import binascii
import io
from dataclasses import dataclass, fields

from PIL import Image

from ..images import FORMATS, open_image, open_lazily


class PageError(ValueError):
    """What is wrong with a request, in words that a visitor of the page may read: without any path of the server."""


@dataclass(frozen=True)
class Bounds:
    """What the page takes.

    Args:
        megabytes (`int`): size of a photo's file, in units of 10^6 bytes.
        megapixels (`int`): width times height of a photo, in millions.
        seen_megapixels (`int`): of the copy of it that the model sees.
        waiting (`int`): how many requests may wait while the model is at work.

    Raises:
        ValueError: one of them is not a whole number of at least 1 (`waiting`: 0).
    """

    megabytes: int = 20
    megapixels: int = 50
    seen_megapixels: int = 8
    waiting: int = 16

    def __post_init__(self) -> None:
        for field in fields(self):
            value, least = getattr(self, field.name), 0 if field.name == "waiting" else 1
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"{field.name} is {value!r}; expected a whole number, {least} at least.")

    @property
    def body_bytes(self) -> int:
        """The largest request: a photo and a label map in base64, and some words."""
        return self.megabytes * 1_000_000 * 4 // 3 + self.megapixels * 1_000_000 // 2 + 100_000


def open_upload(uri: object, bounds: Bounds) -> Image.Image:
    """A photo that a browser sent, upright, as RGB of 8 bits. Nothing is written to the disk.

    Args:
        uri: "data:image/jpeg;base64,...". The type that it names is not believed.
        bounds: of its bytes and pixels. Both are compared before a pixel is decoded.

    Raises:
        PageError: it is no such text; it is too large; it is not of [`rein_hf.images.FORMATS`] or cannot be decoded.
    """
    content = decode_data_uri(uri, "The photo")
    if len(content) > bounds.megabytes * 1_000_000:
        raise PageError(
            f"The photo's file has {len(content) / 1e6:.1f} MB; this page takes {bounds.megabytes} MB at most. Save "
            "it smaller, or as JPEG."
        )
    # Pillow refuses a picture of far too many pixels itself, with its own words
    source = {"bytes": content, "path": "the photo"}
    try:
        width, height = open_lazily(source).size
    except ValueError as error:
        if "exceeds limit" in str(error):
            raise PageError(_too_many_pixels("far more", bounds)) from error
        raise PageError(f"This is no photo that the page can read. It takes {', '.join(FORMATS)} files.") from error
    if width * height > bounds.megapixels * 1_000_000:
        found = f"{width}x{height} pixels, {width * height / 1e6:.1f} million"
        raise PageError(_too_many_pixels(found, bounds))
    try:
        return open_image(source)
    except ValueError as error:
        raise PageError(
            "The photo's file is damaged, or its values are no picture of 8 or 16 bits. Save it again, as JPEG or PNG."
        ) from error


def decode_data_uri(uri: object, what: str) -> bytes:
    """The bytes of "data:...;base64,...".

    Raises:
        PageError: it is no such text, or holds nothing; `what` begins the message.
    """
    head, comma, body = uri.partition(",") if isinstance(uri, str) else ("", "", "")
    if not (head.startswith("data:") and head.endswith(";base64") and comma):
        raise PageError(f"{what} did not arrive as a file. Choose it again.")
    try:
        content = base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError) as error:
        raise PageError(f"{what} arrived incomplete. Choose it again.") from error
    if not content:
        raise PageError(f"{what} is an empty file. Choose another.")
    return content


def encode_data_uri(content: bytes, kind: str) -> str:
    """Bytes as "data:KIND;base64,...", which a browser takes for a file."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def encode_picture(picture: Image.Image, format: str, **options) -> str:
    """A picture as the data URI of a JPEG or PNG file."""
    content = io.BytesIO()
    picture.save(content, format, **options)
    return encode_data_uri(content.getvalue(), f"image/{format.lower()}")


def _too_many_pixels(found: str, bounds: Bounds) -> str:
    return f"The photo has {found}; this page takes {bounds.megapixels} million at most. Make it smaller first."
