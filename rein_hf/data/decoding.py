"""Decoding the image and label files of a data set when a row is read: images upright and in RGB, labels as class ids
by an id table, errors that name the file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
from PIL import Image

from ..images import STORED_ORIENTATION, decode_png, load_pixels, open_image, open_lazily, turn_upright


COLUMNS = datasets.Features(
    {
        "name": datasets.Value("string"),
        "image": datasets.Image(decode=False),
        "label": datasets.Image(decode=False),
        "domain": datasets.Value("string"),
    }
)

UNKNOWN_COLOUR = 254  # the id of a colour that a data set does not have
# Formats that keep ids exactly; None is an image made in memory.
LABEL_FORMATS = (None, "PNG", "TIFF", "BMP", "GIF")
# How Pillow unpacks gray pixels of 1, 2 and 4 bits -> the factor by which it multiplies them.
GRAY_SCALES = {"1": 255, "L;2": 85, "L;4": 17}


class LabelKindError(ValueError):
    """A label file is an image, but not of the kind that its data set has. The message goes on after the file's name:
    "is of mode RGB; expected ...".
    """


class Row(NamedTuple):
    """One image: its name, its file, its label's file if it has one, and its group (condition, sequence) or ""."""

    name: str
    image: Path
    label: Path | None
    group: str


def ids_from_channel(label: Image.Image) -> Image.Image:
    """Ids (mode L or P) of a label of one channel of at most 8 bits: gray values or palette indices, as stored.

    Args:
        label (`PIL.Image.Image`): opened and not yet decoded, or made in memory.

    Raises:
        LabelKindError: it is of another kind.
    """
    packing = _packing(label)
    if label.format not in LABEL_FORMATS:
        raise LabelKindError(f"is of the format {label.format}, which does not keep ids exactly; expected PNG")
    if packing in GRAY_SCALES and label.mode in ("1", "L"):
        return label.convert("L").point([value // GRAY_SCALES[packing] for value in range(256)])
    if label.mode not in ("L", "P") or (label.mode == "L" and packing not in ("", "L", "L;R")):
        found = packing or label.mode if label.mode in ("1", "L") else label.mode
        raise LabelKindError(f"is of mode {found}; expected one channel of 8 bits (L or P)")
    return label


def ids_from_16_bit_red(label: Image.Image) -> Image.Image:
    """Ids of SYNTHIA's labels: the red channel of a PNG of 3 x 16 bits. Pillow keeps the high byte of each value,
    which is 0 there; this makes it keep the low one.

    Raises:
        LabelKindError: it is of another kind.
    """
    if _packing(label) != "RGB;16B":
        raise LabelKindError(f"is of mode {label.mode}; expected a PNG of three channels of 16 bits")
    label.tile = [label.tile[0]._replace(args="RGB;16L")]
    return label.getchannel("R")


def ids_from_colours(label: Image.Image, colours: Mapping[int, int]) -> Image.Image:
    """Ids of a label painted in colours, 0xRRGGBB -> id; 254 for a colour that is none of them.

    Raises:
        LabelKindError: it is of another kind.
    """
    if label.mode not in ("RGB", "P"):
        raise LabelKindError(f"is of mode {label.mode}; expected colours (RGB)")
    red, green, blue = (channel.astype(np.int32) for channel in np.moveaxis(np.asarray(label.convert("RGB")), -1, 0))
    packed, known = (red << 16) | (green << 8) | blue, np.array(sorted(colours))
    place = np.searchsorted(known, packed).clip(max=len(known) - 1)
    ids = np.array([colours[colour] for colour in known], np.uint8)
    return Image.fromarray(np.where(known[place] == packed, ids[place], np.uint8(UNKNOWN_COLOUR)))


class LabelDecoder(NamedTuple):
    """How label files are decoded: a function that gives their ids (mode L or P), and the id table (256,) that gives
    the class of each."""

    ids: Callable[[Image.Image], Image.Image]
    table: np.ndarray


def make_dataset(rows: Sequence[Row], domain: str, decoder: LabelDecoder, halved: bool = False) -> datasets.Dataset:
    """The data set of a [`Domain`]: its files are opened when a row is read."""
    dataset = datasets.Dataset.from_dict(
        {
            "name": [row.name for row in rows],
            "image": [str(row.image) for row in rows],
            "label": [None if row.label is None else str(row.label) for row in rows],
            "domain": [f"{domain}/{row.group}" if row.group else domain for row in rows],
        },
        features=COLUMNS,
    )
    return dataset.with_transform(partial(decode_batch, decoder=decoder, halved=halved))


def decode_batch(batch: dict[str, list], decoder: LabelDecoder, halved: bool = False) -> dict[str, list]:
    """The transform of a data set: opens the files of a batch. Images become upright RGB, see [`open_image`], labels
    class ids (L), also turned as their file's EXIF says, if it has any; `halved` halves the sides of both.

    Raises:
        ValueError: a file cannot be read, or a label does not fit its image or the data set. It names the file.
    """
    batch = dict(batch)
    if "image" in batch:
        batch["image"] = [open_image(file) for file in _column_files(batch, "image")]
    if "label" in batch:
        images = batch["image"] if "image" in batch else [None] * len(batch["label"])
        batch["label"] = [
            file and _read_label(file, decoder, image)
            for file, image in zip(_column_files(batch, "label"), images, strict=True)
        ]
    if halved:
        if "image" in batch:
            batch["image"] = [image.reduce(2) for image in batch["image"]]
        if "label" in batch:
            batch["label"] = [label and _halve_label(label) for label in batch["label"]]
    return batch


def _column_files(batch: dict[str, list], role: str) -> Iterator[dict[str, Any] | None]:
    """The files of a column, as `{"path", "bytes"}`. Those inside a parquet file get the name of their row as path."""
    for index, file in enumerate(batch[role]):
        yield file and {**file, "path": file["path"] or f"{role} {batch['name'][index] if 'name' in batch else ''}"}


def _halve_label(label: Image.Image) -> Image.Image:
    size = tuple((side + 1) // 2 for side in label.size)  # rounded as Image.reduce does
    return label.resize(size, Image.Resampling.NEAREST)


def _packing(label: Image.Image) -> str:
    """How the file of an image that is not yet decoded packs its pixels, as Pillow names it, such as "L;4"; "" if that
    is unknown."""
    arguments = label.tile[0].args if getattr(label, "tile", None) else ""
    arguments = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return arguments if isinstance(arguments, str) else ""


def _read_label(file: dict[str, Any], decoder: LabelDecoder, image: Image.Image | None) -> Image.Image:
    label = open_lazily(file)
    try:
        ids = decoder.ids(label)
        if (decoded := decode_png(ids)) is not None:
            ids = label = decoded
        ids.load()
    except LabelKindError as error:
        raise ValueError(f"{file['path']} {error}.") from error
    except Exception as error:  # Pillow's readers raise errors of many classes for broken files
        raise ValueError(f"{file['path']} cannot be read as an image: {error}.") from error
    ids = turn_upright(ids, load_pixels(label, file["path"]))
    if image is not None and ids.size != image.size:
        _refuse_size(file["path"], ids, image)
    unknown = [index for index, count in enumerate(ids.histogram()) if count and decoder.table[index] < 0]
    if unknown:
        raise ValueError(f"{file['path']} holds the ids {unknown}, which the table of its data set does not know.")
    return ids.point((decoder.table % 256).tolist(), "L")  # several times faster than indexing with an array


def _refuse_size(name: str, label: Image.Image, image: Image.Image) -> None:
    message = f"{name} is {label.width}x{label.height} pixels; its image is {image.width}x{image.height}"
    if label.size == image.size[::-1] and (orientation := image.info.get(STORED_ORIENTATION)):
        message += (
            f" once it is turned upright, as the EXIF orientation {orientation} in its file says. The label fits the "
            "pixels as they are stored: turn the label likewise, or remove the orientation from the image's file"
        )
    elif label.size == image.size[::-1] and (orientation := label.info.get(STORED_ORIENTATION)):
        message += (
            f". The label was turned, as the EXIF orientation {orientation} in its file says: remove that from the "
            "label's file"
        )
    raise ValueError(message + ".")
