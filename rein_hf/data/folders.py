"""Your own data: a folder of images and labels.

images/STEM.jpg    or any other of `rein_hf.data.IMAGE_SUFFIXES`, in small or capital letters
labels/STEM.png    one channel of at most 8 bits (gray values or palette indices), a class id per pixel
index.csv     optional: `stem`, `split` and, as a third column, a group (scene, sequence, ...); a line per image
classes.json  optional: `names` of the classes by id, `ignore_id`, and `train_id_to_class`: the class of each of
              Cityscapes' 19, for data of other classes; `palette`, a colour [red, green, blue] of each class, for
              pictures. Without it ids are Cityscapes' train ids and 255.

Both text files are in UTF-8. Stems are compared as Unicode text, so that a name written on a Mac (letter and accent
apart) is that of one written elsewhere. Hidden files are passed over; a warning names any other file that is not used.
"""

from __future__ import annotations

import csv
import io
import unicodedata
import warnings
from collections.abc import Iterable
from pathlib import Path

from ..files import read_text
from ..images import IMAGE_SUFFIXES, is_hidden
from .decoding import Row


LABEL_SUFFIXES = (".png",)


def find_rows(root: Path, split: str | None) -> list[Row]:
    """The images of a split and their labels, in the order of index.csv or of their names. A `UserWarning` names files
    in the two folders that no split uses.

    Raises:
        FileNotFoundError: the folder, its images or the label of an image is missing.
        ValueError: index.csv is not as described, or lists an image twice; no image is in the split; two images, or
            two labels, have one stem.
    """
    images, other_images = _files_by_stem(root / "images", IMAGE_SUFFIXES)
    if not images:
        there = f"; found {len(other_images)} other file(s): {_some(other_images)}" if other_images else ""
        raise FileNotFoundError(f"{root / 'images'} holds no image ({', '.join(IMAGE_SUFFIXES)}){there}.")
    labels, other_labels = _files_by_stem(root / "labels", LABEL_SUFFIXES)
    if split and not (root / "index.csv").is_file():
        raise FileNotFoundError(f"{root / 'index.csv'} is missing; it is needed to choose the split {split!r}.")
    listed = _read_index(root / "index.csv", list(images))
    chosen = [row for row in listed if split in (None, row[1])]
    if not chosen:
        splits = sorted({row[1] for row in listed})
        raise ValueError(f"{root / 'index.csv'} has no split {split!r}; found {splits}.")
    missing = [stem for stem, _, _ in chosen if stem not in images]
    if missing:
        raise FileNotFoundError(f"{root / 'index.csv'} lists {len(missing)} missing image(s): {missing[:5]}.")
    missing = [str(root / "labels" / f"{stem}.png") for stem, _, _ in chosen if stem not in labels]
    if missing:
        there = f"; {root / 'labels'} holds files that are no PNG: {_some(other_labels)}" if other_labels else ""
        raise FileNotFoundError(f"{len(missing)} of {len(chosen)} images have no label: {missing[:5]} missing{there}.")
    stems = {stem for stem, _, _ in listed}
    _tell_unused(root, "file(s) in images/ of a format that is not read", other_images)
    _tell_unused(root, "file(s) in labels/ that are no PNG", other_labels)
    _tell_unused(root, "image(s) that index.csv does not list", [images[stem] for stem in images if stem not in stems])
    _tell_unused(root, "label(s) without image", [labels[stem] for stem in labels if stem not in images])
    return [Row(stem, images[stem], labels[stem], group) for stem, _, group in chosen]


def normalize_name(name: str) -> str:
    """A name in the form in which names are compared: an accented letter is one character (NFC)."""
    return unicodedata.normalize("NFC", name)


def _files_by_stem(folder: Path, suffixes: tuple[str, ...]) -> tuple[dict[str, Path], list[Path]]:
    """The files with one of the suffixes by stem, and what else lies there."""
    files, others = {}, []
    for path in sorted(folder.glob("*")):
        stem = normalize_name(path.stem)
        if is_hidden(path):
            continue
        if path.suffix.lower() not in suffixes or path.is_dir():
            others.append(path)
        elif stem in files:
            raise ValueError(f"{folder} holds several {folder.name} of one stem: {files[stem]}, {path}.")
        else:
            files[stem] = path
    return files, others


def _some(paths: Iterable[Path]) -> str:
    names = [path.name + ("/" if path.is_dir() else "") for path in paths]
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def _tell_unused(root: Path, kind: str, paths: list[Path]) -> None:
    if paths:
        warnings.warn(f"{root}: {len(paths)} {kind}, not used: {_some(paths)}.", stacklevel=4)


def _read_index(path: Path, stems: list[str]) -> list[tuple[str, str, str]]:
    """(stem, split, group) of the images that index.csv lists; without it, all of them, of no split and no group.

    Raises:
        ValueError: it is not as described at the top.
    """
    if not path.is_file():
        return [(stem, "", "") for stem in stems]
    try:
        reader = csv.DictReader(io.StringIO(read_text(path), newline=""))
        columns, lines = reader.fieldnames or [], [(reader.line_num, row) for row in reader]
    except csv.Error as error:
        raise ValueError(f"{path} is no CSV: {error}.") from error
    if columns[:2] != ["stem", "split"]:
        raise ValueError(f"{path} begins with columns {columns}; expected stem, split and, if any, a group.")
    for how, wrong in (
        ("fewer", [number for number, row in lines if None in row.values()]),
        ("more", [number for number, row in lines if None in row]),
    ):
        if wrong:
            raise ValueError(f"{path} has {how} than {len(columns)} columns in the lines {wrong[:5]}.")
    found: dict[str, list[int]] = {}
    for number, row in lines:
        found.setdefault(normalize_name(row["stem"]), []).append(number)
    twice = [f"{stem} in the lines {numbers}" for stem, numbers in found.items() if len(numbers) > 1]
    if twice:
        raise ValueError(
            f"{path} lists {len(twice)} image(s) more than once: {'; '.join(twice[:5])}. Expected one line for each "
            "image, with its one split; remove the others."
        )
    group = columns[2] if len(columns) > 2 else None
    return [(normalize_name(row["stem"]), row["split"], row[group] if group else "") for _, row in lines]
