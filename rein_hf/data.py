"""Images with a label per pixel, as `datasets.Dataset`: lazily decoded, ids mapped once, errors that name files.

A folder of data holds

    images/STEM.jpg (or .jpeg, .png)    labels/STEM.png, 8 bit, one channel, a class id per pixel
    index.csv     optional: `stem`, `split` and, as a third column, a group (scene, sequence, ...)
    classes.json  optional: `names` of the classes by id, `ignore_id`, and `train_id_to_class`: the class of each of
                  Cityscapes' 19, for data of other classes. Without it ids are Cityscapes' train ids and 255.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import datasets
import numpy as np
from PIL import Image

from .labels import CITYSCAPES, CITYSCAPES_CLASSES, IGNORE, palette_of


IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
COLUMNS = datasets.Features(
    {
        "name": datasets.Value("string"),
        "image": datasets.Image(decode=False),
        "label": datasets.Image(decode=False),
        "domain": datasets.Value("string"),
    }
)


@dataclass(frozen=True)
class Domain:
    """
    Labelled images of one kind, and the classes of their labels.

    Args:
        name (`str`): e.g. "camvid".
        dataset (`datasets.Dataset`): columns `name`, `image` (RGB), `label` (L: class ids, 255 where there is none; of
            the image's size) and `domain`: the name, followed by "/" and the group if there is one.
        classes (`tuple[str, ...]`): name of each class of the labels, by id.
        class_of_train_id (`tuple[int, ...]`, *optional*): for data of other classes than Cityscapes, the class that a
            prediction of each train id means.
    """

    name: str
    dataset: datasets.Dataset
    classes: tuple[str, ...] = CITYSCAPES_CLASSES
    class_of_train_id: tuple[int, ...] | None = None

    def predictions(self, labels: np.ndarray, classes: Sequence[str]) -> np.ndarray:
        """Ids (H, W) predicted by a model of `classes`, those of this domain or Cityscapes', as this domain's ids.

        Raises:
            ValueError: the model has other classes, or this domain does not tell what Cityscapes' classes are in it.
        """
        if tuple(classes) == self.classes:
            return labels
        if tuple(classes) == CITYSCAPES_CLASSES and self.class_of_train_id is not None:
            return np.asarray(self.class_of_train_id, np.uint8)[labels]
        raise ValueError(
            f"{self.name} has the classes {', '.join(self.classes)}; found a model of {', '.join(classes)}. Expected "
            "the same, or a model of Cityscapes' 19 and train_id_to_class in classes.json."
        )

    @property
    def palette(self) -> list[tuple[int, int, int]]:
        """Colour of each class: that of its name or of the first class of Cityscapes that it stands for; black for a
        class that stands for none."""
        if self.class_of_train_id is None:
            return palette_of(self.classes)
        colours = CITYSCAPES.values()
        first = {index: colour for index, colour in reversed([*zip(self.class_of_train_id, colours, strict=True)])}
        return [first.get(index, (0, 0, 0)) for index in range(len(self.classes))]


def load_domain(spec: str) -> Domain:
    """A domain by its description on a command line or in a recipe: `[NAME=]FOLDER[@SPLIT]`.

    Example:

    ```py
    load_domain("camvid=../shared/data/camvid@test").dataset[0]["image"]
    ```
    """
    name, _, path = spec.rpartition("=")
    path, _, split = path.partition("@")
    return load_folder(path, split=split or None, name=name or None)


def load_folder(root: str | Path, split: str | None = None, name: str | None = None) -> Domain:
    """A folder of the layout above.

    Args:
        root: the folder.
        split (`str`, *optional*): rows of index.csv to take; all of them by default.
        name (`str`, *optional*): name of the domain, the folder's by default.

    Raises:
        FileNotFoundError: the folder, its images or the label of an image is missing.
        ValueError: index.csv or classes.json is not as described; no image is in the split. Reading an item raises it
            as well: a file is no image, a label is not of its image's size, of one channel or holds an unknown id.
    """
    root = Path(root)
    name = name or root.name
    images = {path.stem: path for path in sorted((root / "images").glob("*")) if path.suffix.lower() in IMAGE_SUFFIXES}
    if not images:
        raise FileNotFoundError(f"{root / 'images'} holds no image ({', '.join(IMAGE_SUFFIXES)}).")
    rows = _read_index(root / "index.csv", split, list(images))
    missing = [stem for stem, _ in rows if stem not in images]
    if missing:
        raise FileNotFoundError(f"{root / 'index.csv'} lists {len(missing)} missing image(s): {missing[:5]}.")
    labels = {stem: root / "labels" / f"{stem}.png" for stem, _ in rows}
    missing = [str(path) for path in labels.values() if not path.is_file()]
    if missing:
        raise FileNotFoundError(f"{len(missing)} of {len(rows)} images have no label: {missing[:5]} missing.")
    classes, table, class_of_train_id = _read_classes(root / "classes.json")
    dataset = datasets.Dataset.from_dict(
        {
            "name": [stem for stem, _ in rows],
            "image": [str(images[stem]) for stem, _ in rows],
            "label": [str(labels[stem]) for stem, _ in rows],
            "domain": [f"{name}/{group}" if group else name for _, group in rows],
        },
        features=COLUMNS,
    )
    return Domain(name, dataset.with_transform(partial(_decode, table=table)), classes, class_of_train_id)


def _read_index(path: Path, split: str | None, stems: list[str]) -> list[tuple[str, str]]:
    """(stem, group) of the images in a split."""
    if not path.is_file():
        if split:
            raise FileNotFoundError(f"{path} is missing; it is needed to choose the split {split!r}.")
        return [(stem, "") for stem in stems]
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        columns = reader.fieldnames or []
        if columns[:2] != ["stem", "split"]:
            raise ValueError(f"{path} begins with columns {columns}; expected stem, split and, if any, a group.")
        rows = list(reader)
    splits = sorted({row["split"] for row in rows})
    chosen = [row for row in rows if split in (None, row["split"])]
    if not chosen:
        raise ValueError(f"{path} has no split {split!r}; found {splits}.")
    group = columns[2] if len(columns) > 2 else None
    return [(row["stem"], row[group] if group else "") for row in chosen]


def _read_classes(path: Path) -> tuple[tuple[str, ...], np.ndarray, tuple[int, ...] | None]:
    """Class names, table (256,) from ids in the file to class ids with -1 for unknown ids, classes of train ids."""
    spec = json.loads(path.read_text()) if path.is_file() else {"names": list(CITYSCAPES_CLASSES), "ignore_id": IGNORE}
    missing = {"names", "ignore_id"} - spec.keys()
    if missing:
        raise ValueError(f"{path} lacks {sorted(missing)}.")
    names = tuple(spec["names"])
    table = np.full(256, -1, np.int16)
    table[: len(names)] = np.arange(len(names))
    table[[spec["ignore_id"], IGNORE]] = IGNORE
    class_of_train_id = spec.get("train_id_to_class")
    if class_of_train_id is not None:
        if len(class_of_train_id) != len(CITYSCAPES_CLASSES) or not set(class_of_train_id) <= set(range(len(names))):
            raise ValueError(
                f"{path}: train_id_to_class is {class_of_train_id}; expected one of the {len(names)} classes for each "
                f"of the {len(CITYSCAPES_CLASSES)} classes of Cityscapes."
            )
        class_of_train_id = None if names == CITYSCAPES_CLASSES else tuple(class_of_train_id)
    return names, table, class_of_train_id


def _decode(batch: dict[str, list], table: np.ndarray) -> dict[str, list]:
    """The transform of a dataset: opens its files and applies the table of ids."""
    batch = dict(batch)
    if "image" in batch:
        batch["image"] = [_open(file["path"]).convert("RGB") for file in batch["image"]]
    if "label" in batch:
        paths = [file["path"] for file in batch["label"]]
        sizes = [image.size for image in batch["image"]] if "image" in batch else [None] * len(paths)
        batch["label"] = [_read_label(path, table, size) for path, size in zip(paths, sizes, strict=True)]
    return batch


def _open(path: str) -> Image.Image:
    try:
        image = Image.open(path)
        image.load()
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as an image: {error}.") from error
    return image


def _read_label(path: str, table: np.ndarray, size: tuple[int, int] | None) -> Image.Image:
    label = _open(path)
    if label.mode not in ("L", "P"):
        raise ValueError(f"{path} is of mode {label.mode}; expected one channel of 8 bits (L or P).")
    if size is not None and label.size != size:
        raise ValueError(f"{path} is {label.size[0]}x{label.size[1]} pixels; its image is {size[0]}x{size[1]}.")
    ids = table[np.asarray(label)]
    if ids.min() < 0:
        unknown = np.unique(np.asarray(label)[ids < 0]).tolist()
        raise ValueError(f"{path} holds the class ids {unknown}, which the table of its data set does not know.")
    return Image.fromarray(ids.astype(np.uint8))
