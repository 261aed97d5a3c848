"""`rein-hf train RECIPE --data DIR`: a folder of one's own, from which the keys about data follow."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Collection
from pathlib import Path

from ..data import load_folder
from ..evaluation import evenly_spaced_indices
from ..files import read_text
from ..images import open_lazily


# What the splits of index.csv may be called.
TRAIN_NAMES, VALIDATION_NAMES = ("train", "training"), ("val", "valid", "validation")
# Of a folder without such splits each N-th image is for validation.
EVERY = 10
LARGEST_CROP, SMALLEST_CROP, MULTIPLE = 512, 64, 32
# So many images are asked for their size.
SIZES = 200


def own_data_keys(folder: str, given: Collection[str]) -> dict[str, str | list[str]]:
    """The keys that `--data FOLDER` stands for.

    - `train`, `evaluate`: the splits train and val of index.csv; where it has no such split, each tenth image in the
      order of names is for validation. Frames of one sequence resemble each other: split these by an index.csv.
    - `crop`: the usual short side of the images, rounded down to a multiple of 32, from 64 to 512.
    - Images that are larger than crops are evaluated in a smaller copy, whose short side is the crop: that is how
      large things are in training.

    Args:
        folder (`str`): in the layout of `rein_hf.data.folders`.
        given: keys that the command line gives, and `crop` if the recipe does. They stay as they are.

    Raises:
        OSError: the folder, its images or a label is missing.
        ValueError: `train` is given, too; index.csv has splits, but none called train; there is only one image.
    """
    if "train" in given:
        raise ValueError(f"--data {folder} and --train are both given; expected one of them.")
    root = Path(folder)
    splits = read_splits(root)
    train = next((name for name in TRAIN_NAMES if name in splits), None)
    validation = next((name for name in VALIDATION_NAMES if name in splits), None)
    if splits and train is None:
        raise ValueError(
            f"{root / 'index.csv'} has the splits {', '.join(splits)}; expected one called train. Or name them: "
            f"--train {folder}@{splits[0]} --evaluate ..."
        )
    domain = load_folder(root, train)
    files = [row["path"] for row in domain.dataset.with_format(None)["image"]]
    short, long = median_sides(files)
    crop = max(min(short, LARGEST_CROP) // MULTIPLE * MULTIPLE, SMALLEST_CROP)
    size = ""
    if short > crop + MULTIPLE:  # a box for both, upright and oblong images
        side = round(long * crop / short)
        size = f"#size={side}x{side}"
    source = folder + (f"@{train}" if train else "")
    keys = {"train": [source], "evaluate": [f"val={folder}@{validation}{size}"]}
    if validation is None:
        if len(files) < 2:
            raise ValueError(
                f"{folder} holds {len(files)} image to train on; expected two at least, since one is for validation."
            )
        every = min(EVERY, len(files))
        keys = {"train": [f"{source}#skip_every={every}"], "evaluate": [f"val={source}#every={every}{size}"]}
        if "evaluate" in given:  # nothing is held out for it
            keys["train"] = [source]
    keys["crop"] = str(crop)
    return {key: value for key, value in keys.items() if key not in given}


def read_splits(root: Path) -> list[str]:
    """The splits that index.csv names, in its order; none without one."""
    path = root / "index.csv"
    if not path.is_file():
        return []
    rows = csv.DictReader(io.StringIO(read_text(path), newline=""))
    return list(dict.fromkeys(row.get("split") or "" for row in rows))


def median_sides(files: list[str]) -> tuple[int, int]:
    """The median of the short and of the long sides of some of the images, in pixels.

    Raises:
        ValueError: one of them cannot be read.
    """
    sizes = [open_lazily(files[index]).size for index in evenly_spaced_indices(len(files), SIZES)]
    return tuple(round(statistics.median(map(side, sizes))) for side in (min, max))
