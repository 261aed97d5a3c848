"""Your own data: a folder of images and labels.

images/STEM.jpg (or .jpeg, .png)    labels/STEM.png, 8 bit, one channel, a class id per pixel
index.csv     optional: `stem`, `split` and, as a third column, a group (scene, sequence, ...)
classes.json  optional: `names` of the classes by id, `ignore_id`, and `train_id_to_class`: the class of each of
              Cityscapes' 19, for data of other classes. Without it ids are Cityscapes' train ids and 255.
"""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

from ..labels import CITYSCAPES_CLASSES, IGNORE, id_table
from .decoding import LabelDecoder, Row, ids_from_channel


IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")


def find_rows(root: Path, split: str | None) -> list[Row]:
    """The images of a split, in the order of index.csv or of their names.

    Raises:
        FileNotFoundError: the folder, its images or the label of an image is missing.
        ValueError: index.csv is not as described; no image is in the split; two images have one stem.
    """
    files = [path for path in sorted((root / "images").glob("*")) if path.suffix.lower() in IMAGE_SUFFIXES]
    if not files:
        raise FileNotFoundError(f"{root / 'images'} holds no image ({', '.join(IMAGE_SUFFIXES)}).")
    images = {path.stem: path for path in files}
    if len(images) < len(files):
        twice = sorted(str(path) for path in files if images[path.stem] != path)
        raise ValueError(f"{root / 'images'} holds several images of one stem: {twice[:5]}.")
    rows = _read_index(root / "index.csv", split, list(images))
    missing = [stem for stem, _ in rows if stem not in images]
    if missing:
        raise FileNotFoundError(f"{root / 'index.csv'} lists {len(missing)} missing image(s): {missing[:5]}.")
    labels = {path.stem: path for path in (root / "labels").glob("*.png")}
    missing = [str(root / "labels" / f"{stem}.png") for stem, _ in rows if stem not in labels]
    if missing:
        raise FileNotFoundError(f"{len(missing)} of {len(rows)} images have no label: {missing[:5]} missing.")
    return [Row(stem, images[stem], labels[stem], group) for stem, group in rows]


def read_classes(root: Path) -> tuple[tuple[str, ...], LabelDecoder, tuple[int, ...] | None]:
    """Names of the classes, how labels are read, and the class of each train id where the classes are others.

    Raises:
        ValueError: classes.json is not as described.
    """
    path = root / "classes.json"
    spec = {"names": list(CITYSCAPES_CLASSES), "ignore_id": IGNORE}
    if path.is_file():
        try:
            spec = json.loads(path.read_text())
        except ValueError as error:
            raise ValueError(f"{path} is no JSON: {error}.") from error
    missing = {"names", "ignore_id"} - (spec.keys() if isinstance(spec, dict) else set())
    if missing:
        raise ValueError(f"{path} lacks {sorted(missing)}.")
    names, ignore = spec["names"], spec["ignore_id"]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or not 0 < len(names) < 256:
        raise ValueError(f"{path}: names is {names!r}; expected 1 to 255 texts.")
    if not isinstance(ignore, int) or not 0 <= ignore <= 255:
        raise ValueError(f"{path}: ignore_id is {ignore!r}; expected a number from 0 to 255.")
    table = id_table({index: index for index in range(len(names))}, known=[IGNORE])
    table[ignore] = IGNORE
    class_of_train_id = spec.get("train_id_to_class")
    if class_of_train_id is not None:
        if (
            not isinstance(class_of_train_id, list)
            or len(class_of_train_id) != len(CITYSCAPES_CLASSES)
            or not all(isinstance(index, int) and 0 <= index < len(names) for index in class_of_train_id)
        ):
            raise ValueError(
                f"{path}: train_id_to_class is {class_of_train_id}; expected one of the {len(names)} classes for each "
                f"of the {len(CITYSCAPES_CLASSES)} classes of Cityscapes."
            )
        class_of_train_id = None if tuple(names) == CITYSCAPES_CLASSES else tuple(class_of_train_id)
    return tuple(names), LabelDecoder(ids_from_channel, table), class_of_train_id


def _read_index(path: Path, split: str | None, stems: list[str]) -> list[tuple[str, str]]:
    """(stem, group) of the images in a split."""
    if not path.is_file():
        if split:
            raise FileNotFoundError(f"{path} is missing; it is needed to choose the split {split!r}.")
        return [(stem, "") for stem in stems]
    try:
        text = path.read_text(encoding="utf-8-sig")  # which spreadsheets write
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8: {error}.") from error
    reader = csv.DictReader(io.StringIO(text, newline=""))
    columns = reader.fieldnames or []
    if columns[:2] != ["stem", "split"]:
        raise ValueError(f"{path} begins with columns {columns}; expected stem, split and, if any, a group.")
    try:
        rows = list(reader)
    except csv.Error as error:
        raise ValueError(f"{path} is no CSV: {error}.") from error
    if short := [number for number, row in enumerate(rows, 2) if None in row.values()]:
        raise ValueError(f"{path} has fewer than {len(columns)} columns in the lines {short[:5]}.")
    splits = sorted({row["split"] for row in rows})
    chosen = [row for row in rows if split in (None, row["split"])]
    if not chosen:
        raise ValueError(f"{path} has no split {split!r}; found {splits}.")
    group = columns[2] if len(columns) > 2 else None
    return [(row["stem"], row[group] if group else "") for row in chosen]
