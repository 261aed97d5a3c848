"""PNG files decoded at half of Pillow's time, where kornia-rs is installed (`pip install "rein-hf[fast]"`)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from PIL import Image


try:
    from kornia_rs.io import decode_image_png_u8
except ImportError:
    decode_image_png_u8 = None


SIGNATURE = b"\x89PNG\r\n\x1a\n"
# What a file may hold beside its pixels and text. Others turn or change pixels (orientation, transparency, animation).
PLAIN_CHUNKS = frozenset(b"IHDR IDAT IEND gAMA cHRM sRGB iCCP sBIT pHYs tIME bKGD tEXt zTXt iTXt".split())
# The texts in which an orientation may be.
EXIF_TEXTS = (b"Raw profile", b"XML:")
# Mode -> as what the decoder is to take the file.
DECODED_MODES = {"RGB": "rgb", "L": "mono"}


def decode_png(image: Image.Image) -> Image.Image | None:
    """The pixels of an opened file that Pillow has not decoded yet, equal to those that Pillow would decode.

    Args:
        image (`PIL.Image.Image`): as `PIL.Image.open` gives it. If nothing is returned, Pillow can still decode it.

    Returns:
        An image of the same size, mode and `info`; or `None`, which leaves the file to Pillow: for files that are
        damaged, are no PNGs, or whose pixels are not 8-bit RGB or gray values that are stored upright and row by row.
    """
    if decode_image_png_u8 is None or not _is_plain(image):
        return None
    position = image.fp.tell()
    try:
        image.fp.seek(0)
        data = image.fp.read()
    finally:
        image.fp.seek(position)
    if any(kind not in PLAIN_CHUNKS or text.startswith(EXIF_TEXTS) for kind, text in _chunks(data)):
        return None
    try:
        pixels = decode_image_png_u8(data, (image.height, image.width), DECODED_MODES[image.mode])
    except Exception:  # of class Exception, for whatever is wrong with a file: Pillow says what it is
        return None
    decoded = Image.fromarray(pixels if image.mode == "RGB" else np.squeeze(pixels, axis=-1))
    with image:  # closes the file, if Pillow opened it
        decoded.info = dict(image.info)
    return decoded


def _is_plain(image: Image.Image) -> bool:
    """Whether it is a PNG that is not yet decoded, of one of the `DECODED_MODES`, not interlaced."""
    tiles = getattr(image, "tile", [])
    return (
        getattr(image, "format", None) == "PNG"
        and image.mode in DECODED_MODES
        and [tile.args for tile in tiles] == [image.mode]
        and not image.info.get("interlace")
        and getattr(image, "fp", None) is not None
        and image.fp.seekable()
    )


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The type of each chunk of a PNG file, and the beginning of its content if it is a text."""
    start = len(SIGNATURE)
    while start < len(data):
        length, kind = int.from_bytes(data[start : start + 4], "big"), data[start + 4 : start + 8]
        yield kind, data[start + 8 : start + 24] if kind.endswith(b"Xt") else b""
        start += length + 12
