"""Opening one image: upright, and with 8 bits for each of red, green and blue, whatever the file holds.

Cameras store pixels as the sensor was held and note in EXIF how to turn them; Pillow's `open` leaves that to the
caller. Pillow's `convert("RGB")` cuts channels of more than 8 bits off at 255, which makes them white. Both are done
here, once for training, evaluation and prediction.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import ExifTags, Image

from .png import decode_png


# What is opened. Others of Pillow's formats run a program (EPS: Ghostscript) or are hardly ever met and little tested.
FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "PPM")

# Of these, what holds animations and pages.
SEVERAL_FRAMES = ("PNG", "WEBP", "TIFF", "GIF")

# The suffixes of files of these formats, in small letters.
IMAGE_SUFFIXES = tuple(
    """.jpg .jpeg .jpe .jfif .png .apng .webp .tif .tiff .bmp .gif .ppm .pgm .pbm .pnm .pfm""".split()
)

# EXIF orientation -> what turns the stored pixels upright
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Keys of `Image.info` of an image that was turned, brought to RGB, or is one of several: the EXIF orientation and the
# mode of its file, and how many frames that has.
STORED_ORIENTATION = "stored_orientation"
STORED_MODE = "stored_mode"
STORED_FRAMES = "stored_frames"

ImageSource = str | os.PathLike | IO[bytes] | Mapping[str, Any]


def open_image(source: ImageSource) -> Image.Image:
    """
    An image as it is meant to be seen, decoded.

    Args:
        source: path, open binary file, or `{"path": ..., "bytes": ...}` as the columns of data sets have it (the bytes
            count where there are some).

    Returns:
        RGB of 8 bits, turned upright, see [`upright_rgb`]. Of a file of several frames (animations, TIFF files of
        several pages) the first one; `info["stored_frames"]` is their number then.

    Raises:
        ValueError: it cannot be read, is not of [`FORMATS`], or its values have no meaning as a picture. The message
            begins with the file's name.
    """
    image = open_lazily(source)
    frames = _count_frames(image)
    decoded = decode_png(image)
    image = upright_rgb(image if decoded is None else decoded, source_name(source))
    if frames > 1:
        image.info[STORED_FRAMES] = frames
    return image


def open_lazily(source: ImageSource) -> Image.Image:
    """The image of a source as [`open_image`] takes it, as Pillow opens it: only its header is read.

    Raises:
        ValueError: it cannot be read, or is not of [`FORMATS`].
    """
    file = source
    if isinstance(source, Mapping):
        file = io.BytesIO(source["bytes"]) if source.get("bytes") else source.get("path")
    try:
        return Image.open(file, formats=FORMATS)
    except Exception as error:  # Pillow's readers raise errors of many classes for broken files
        raise ValueError(f"{source_name(source)} cannot be read as an image: {error}.") from error


def source_name(source: ImageSource | Image.Image) -> str:
    """What messages call a source: its path, or "the image" if it has none."""
    if isinstance(source, str | os.PathLike):
        return str(Path(source))
    if isinstance(source, Mapping):
        return str(source.get("path") or "the image")
    name = getattr(source, "name", None) or getattr(source, "filename", None)
    return str(name or "the image")


def upright_rgb(image: Image.Image, name: str | None = None) -> Image.Image:
    """
    An opened image as it is meant to be seen.

    - It is turned as its EXIF orientation says. Nothing else of EXIF is read, and EXIF that cannot be read counts as
      upright. `info["stored_orientation"]` of a turned image is the orientation that its file notes.
    - Channels of 16 bits become their high byte (`value >> 8`), as Pillow does for 16-bit RGB. Gray images of 32 bits
      (modes I and F) are taken for 16-bit ones if all values are whole numbers from 0 to 65535 and one is above 255.
    - Transparency is dropped: the colours below it stay. `info["stored_mode"]` is the mode that the image had.

    An image that is changed loses its other `info`, so that nobody turns it a second time.

    Args:
        image (`PIL.Image.Image`): of any mode; an RGB image that is upright is returned as it is.
        name (`str`, *optional*): what messages call it, its file's name by default.

    Raises:
        ValueError: it cannot be decoded, or is a 32-bit image of other values.
    """
    name = name or source_name(image)
    orientation = load_pixels(image, name)
    if not all(image.size):
        raise ValueError(f"{name} is {image.width}x{image.height} pixels; expected at least one.")
    if image.mode != "RGB":
        image = _rgb_of_8_bits(image, name)
    return turn_upright(image, orientation)


def load_pixels(image: Image.Image, name: str) -> int:
    """Decodes an opened image, in place, and returns the EXIF orientation (1 to 8) by which it still is to be turned.

    Raises:
        ValueError: it cannot be decoded.
    """
    noted = _tiff_orientation(image)
    try:
        image.load()
    except Exception as error:  # as in open_lazily
        raise ValueError(f"{name} cannot be read as an image: {error}.") from error
    if noted and _tiff_orientation(image) is None:  # Pillow turns TIFF files as it loads them
        image.info = {STORED_ORIENTATION: noted}
        return 1
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
        return orientation if orientation in TURNS else 1
    except Exception:  # cameras and editors write broken EXIF; Pillow's parser raises errors of many classes for it
        return 1


def turn_upright(image: Image.Image, orientation: int) -> Image.Image:
    """A decoded image of any mode turned by an EXIF orientation; itself if that is 1."""
    if orientation not in TURNS:
        return image
    turned = image.transpose(TURNS[orientation])
    turned.info = {STORED_ORIENTATION: orientation} | _notes(image)
    return turned


def is_hidden(path: Path) -> bool:
    """Whether a file is not meant as one of a user's images: `.name`, macOS's `._name.jpg` and Windows' thumbnails."""
    return path.name.startswith(".") or path.name.lower() in ("thumbs.db", "desktop.ini")


def _notes(image: Image.Image) -> dict[str, Any]:
    """What this module itself wrote into an image's `info`."""
    return {key: image.info[key] for key in (STORED_ORIENTATION, STORED_MODE) if key in image.info}


def _count_frames(image: Image.Image) -> int:
    """Of a file that Pillow has opened; only headers are read. Photos of telephones (JPEG) count as one: their further
    pictures are previews and gain maps."""
    try:
        return getattr(image, "n_frames", 1) if image.format in SEVERAL_FRAMES else 1
    except Exception:  # as in open_lazily; what is wrong with later frames does not matter
        image.seek(0)
        return 1


def _tiff_orientation(image: Image.Image) -> int | None:
    """The orientation (2 to 8) among a TIFF file's tags, which is there until it is loaded; `None` for other files."""
    orientation = _tiff_tag(image, ExifTags.Base.Orientation)
    return orientation if orientation in TURNS else None


def _tiff_tag(image: Image.Image, tag: int) -> Any:
    """A number among a TIFF file's tags; `None` for other files, and for what is not one number."""
    try:
        value = image.tag_v2.get(tag)
        value = value[0] if isinstance(value, tuple) and len(value) == 1 else value
        return value if isinstance(value, int) else None
    except Exception:  # not a TIFF file, or tags that cannot be read
        return None


def _rgb_of_8_bits(image: Image.Image, name: str) -> Image.Image:
    info = {STORED_MODE: image.mode} | _notes(image)
    if image.mode.startswith("I;16"):
        # Pillow heeds neither that a TIFF file has 12 bits nor that 0 is white in it
        bits = 12 if _tiff_tag(image, ExifTags.Base.BitsPerSample) == 12 else 16
        values = (np.asarray(image) >> (bits - 8)).clip(max=255).astype(np.uint8)
        white_is_zero = _tiff_tag(image, ExifTags.Base.PhotometricInterpretation) == 0
        image = Image.fromarray(~values if white_is_zero else values)
    elif image.mode in ("I", "F"):
        image = Image.fromarray(_high_bytes(image, name))
    try:
        # La and RGBa: colours multiplied by transparency. P: straight to RGB, Pillow warns of transparency.
        if image.mode in ("La", "RGBa", "P"):
            image = image.convert("LA" if image.mode == "La" else "RGBA")
        image = image.convert("RGB")
    except Exception as error:
        raise ValueError(f"{name} is of mode {image.mode}, which cannot become RGB: {error}.") from error
    image.info = info
    return image


def _high_bytes(image: Image.Image, name: str) -> np.ndarray:
    """The high bytes of a 16-bit picture that Pillow opened as one of 32 bits."""
    values = np.asarray(image)
    low, high = float(values.min()), float(values.max())
    whole = np.isfinite([low, high]).all() and not (values % 1).any()
    # a dark picture's values do not tell its depth; PGM (and PNG before Pillow 11) is I for 16 bits only
    of_16_bits = high > 255 or high == 0 or (image.mode == "I" and image.format in ("PPM", "PNG"))
    if not (whole and 0 <= low and high <= 65535 and of_16_bits):
        raise ValueError(
            f"{name} holds 32-bit numbers (mode {image.mode}) from {low:g} to {high:g}; expected a picture of 8 bits, "
            "or of 16 bits (whole numbers from 0 to 65535, some of them above 255). Save it as one of these."
        )
    return (values.astype(np.uint16) >> 8).astype(np.uint8)
