"""Files of images and labels, read when they are asked for: ids by a table, errors that name the file."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import datasets
import numpy as np
from PIL import Image


COLUMNS = datasets.Features(
    {
        "name": datasets.Value("string"),
        "image": datasets.Image(decode=False),
        "label": datasets.Image(decode=False),
        "domain": datasets.Value("string"),
    }
)


# What is opened. Others of Pillow's formats run a program (EPS: Ghostscript) or are hardly ever met and little tested.
FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "PPM")


class Row(NamedTuple):
    """One image: its name, its file, its label's file if it has one, and its group (condition, sequence) or ""."""

    name: str
    image: Path
    label: Path | None
    group: str


def ids_from_channel(label: Image.Image) -> Image.Image:
    """Ids of a label of one channel of 8 bits, a palette's indices included.

    Raises:
        ValueError: it is of another kind.
    """
    if label.mode not in ("L", "P"):
        raise ValueError(f"is of mode {label.mode}; expected one channel of 8 bits (L or P)")
    return label


def ids_from_16_bit_red(label: Image.Image) -> Image.Image:
    """Ids of SYNTHIA's labels: the red channel of a PNG of 3 x 16 bits. PIL keeps the high byte of such
    channels, which is 0; here it is told to keep the other.

    Raises:
        ValueError: it is of another kind.
    """
    if not label.tile or label.tile[0].args != "RGB;16B":
        raise ValueError(f"is of mode {label.mode}; expected a PNG of three channels of 16 bits")
    label.tile = [label.tile[0]._replace(args="RGB;16L")]
    return label.getchannel("R")


def ids_from_colours(label: Image.Image, colours: Mapping[int, int]) -> Image.Image:
    """Ids of a label painted in colours, 0xRRGGBB -> id; 254 for a colour that is none of them.

    Raises:
        ValueError: it is of another kind.
    """
    if label.mode not in ("RGB", "P"):
        raise ValueError(f"is of mode {label.mode}; expected colours (RGB)")
    red, green, blue = (channel.astype(np.int32) for channel in np.moveaxis(np.asarray(label.convert("RGB")), -1, 0))
    packed, known = (red << 16) | (green << 8) | blue, np.array(sorted(colours))
    place = np.searchsorted(known, packed).clip(max=len(known) - 1)
    ids = np.array([colours[colour] for colour in known], np.uint8)
    return Image.fromarray(np.where(known[place] == packed, ids[place], np.uint8(254)))


class LabelDecoder(NamedTuple):
    """How the files of labels are read: to ids (mode L or P), and by a table (256,) to classes."""

    ids: Callable[[Image.Image], Image.Image]
    table: np.ndarray


def make_dataset(rows: Sequence[Row], domain: str, reading: LabelDecoder, halved: bool = False) -> datasets.Dataset:
    """A lazily decoded data set of rows, see [`Domain`]."""
    dataset = datasets.Dataset.from_dict(
        {
            "name": [row.name for row in rows],
            "image": [str(row.image) for row in rows],
            "label": [None if row.label is None else str(row.label) for row in rows],
            "domain": [f"{domain}/{row.group}" if row.group else domain for row in rows],
        },
        features=COLUMNS,
    )
    return dataset.with_transform(partial(decode_batch, reading=reading, halved=halved))


def decode_batch(batch: dict[str, list], reading: LabelDecoder, halved: bool = False) -> dict[str, list]:
    """The transform of a dataset: opens its files and applies the table of ids."""
    batch = dict(batch)
    if "image" in batch:
        images = map(_load_image, _column_files(batch, "image"))
        batch["image"] = [image if image.mode == "RGB" else image.convert("RGB") for image in images]
    if "label" in batch:
        sizes = [image.size for image in batch["image"]] if "image" in batch else [None] * len(batch["label"])
        batch["label"] = [
            file and _read_label(file, reading, size)
            for file, size in zip(_column_files(batch, "label"), sizes, strict=True)
        ]
    if halved:
        if "image" in batch:
            batch["image"] = [image.reduce(2) for image in batch["image"]]
        if "label" in batch:
            batch["label"] = [label and _halve_label(label) for label in batch["label"]]
    return batch


def _column_files(batch: dict[str, list], role: str) -> Iterator[dict | None]:
    """The files of a column, those inside a parquet file called by the name of their row."""
    for index, file in enumerate(batch[role]):
        yield file and {**file, "path": file["path"] or f"{role} {batch['name'][index] if 'name' in batch else ''}"}


def _halve_label(label: Image.Image) -> Image.Image:
    size = tuple((side + 1) // 2 for side in label.size)  # as Image.reduce rounds
    return label.resize(size, Image.Resampling.NEAREST)


def _open(file: dict) -> Image.Image:
    """An image, not yet decoded, from `{"path", "bytes"}`."""
    try:
        return Image.open(io.BytesIO(file["bytes"]) if file.get("bytes") else file["path"], formats=FORMATS)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{file['path']} cannot be read as an image: {error}.") from error


def _load_image(file: dict) -> Image.Image:
    image = _open(file)
    try:
        image.load()
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{file['path']} cannot be read as an image: {error}.") from error
    return image


def _read_label(file: dict, reading: LabelDecoder, size: tuple[int, int] | None) -> Image.Image:
    label = _open(file)
    if size is not None and label.size != size:
        raise ValueError(
            f"{file['path']} is {label.size[0]}x{label.size[1]} pixels; its image is {size[0]}x{size[1]}."
        )
    try:
        found = reading.ids(label)
        counts = found.histogram()
    except (OSError, SyntaxError) as error:
        raise ValueError(f"{file['path']} cannot be read as an image: {error}.") from error
    except ValueError as error:
        raise ValueError(f"{file['path']} {error}.") from error
    unknown = [index for index, count in enumerate(counts) if count and reading.table[index] < 0]
    if unknown:
        raise ValueError(f"{file['path']} holds the ids {unknown}, which the table of its data set does not know.")
    return found.point((reading.table % 256).tolist(), "L")  # several times faster than indexing with an array
