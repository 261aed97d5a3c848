"""classes.json of a folder of data: the names of its classes, and how the ids in its labels are read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from ..files import read_text
from ..labels import CITYSCAPES_CLASSES, IGNORE, check_class_names, check_palette, id_table
from .decoding import LabelDecoder, ids_from_channel


class FolderClasses(NamedTuple):
    """The names of the classes by id, how labels are decoded, the class of each train id where the classes are not
    Cityscapes', what was assumed, in a sentence, where the folder does not say it, and the classes' colours where it
    does."""

    names: tuple[str, ...]
    decoder: LabelDecoder
    class_of_train_id: tuple[int, ...] | None
    assumption: str | None
    palette: list[tuple[int, int, int]] | None


def read_classes(root: Path) -> FolderClasses:
    """The classes of a folder of data, Cityscapes' if it has no classes.json.

    Raises:
        ValueError: classes.json is not as described in `rein_hf.data.folders`.
    """
    path = root / "classes.json"
    content = {"names": list(CITYSCAPES_CLASSES), "ignore_id": IGNORE}
    assumption = None
    if path.is_file():
        content = _read_object(path)
    else:
        assumption = (
            f"{root} has no classes.json: the ids in its labels are taken for the train ids of Cityscapes' "
            f"{len(CITYSCAPES_CLASSES)} classes (0 {CITYSCAPES_CLASSES[0]}, 1 {CITYSCAPES_CLASSES[1]}, ... "
            f"{len(CITYSCAPES_CLASSES) - 1} {CITYSCAPES_CLASSES[-1]}; {IGNORE} is ignored)."
        )
    names = check_class_names(content["names"], str(path))
    ignored = content["ignore_id"]
    if not _is_id(ignored, 256):
        raise ValueError(f"{path}: ignore_id is {ignored!r}; expected a number from 0 to 255.")
    table = id_table({index: index for index in range(len(names))}, known=[IGNORE])
    table[ignored] = IGNORE
    class_of_train_id = content.get("train_id_to_class")
    if class_of_train_id is not None:
        if (
            not isinstance(class_of_train_id, list)
            or len(class_of_train_id) != len(CITYSCAPES_CLASSES)
            or not all(_is_id(index, len(names)) for index in class_of_train_id)
        ):
            raise ValueError(
                f"{path}: train_id_to_class is {class_of_train_id}; expected one of the {len(names)} classes for each "
                f"of the {len(CITYSCAPES_CLASSES)} classes of Cityscapes."
            )
        class_of_train_id = None if names == CITYSCAPES_CLASSES else tuple(class_of_train_id)
    palette = content.get("palette")
    if palette is not None:
        palette = check_palette(palette, len(names), f"{path}: palette")
    return FolderClasses(names, LabelDecoder(ids_from_channel, table), class_of_train_id, assumption, palette)


def _read_object(path: Path) -> dict[str, Any]:
    text = read_text(path)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON: {error}.") from error
    missing = {"names", "ignore_id"} - (content.keys() if isinstance(content, dict) else set())
    if missing:
        raise ValueError(f"{path} lacks {sorted(missing)}.")
    return content


def _is_id(value: Any, count: int) -> bool:
    return type(value) is int and 0 <= value < count  # True and False are ints for isinstance
