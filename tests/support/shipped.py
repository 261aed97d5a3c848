"""Every data set and backbone that the shipped recipes name, in miniature and at the paths where they name them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from tests.support.miniatures import write_miniature
from tests.support.runs import HEAD
from tests.support.vision_encoders import write_encoder


# What makes a run small: sizes and lengths. Everything else is the recipe's own.
SMALL = {
    "crop": 64,
    "head": HEAD,
    "num_queries": 8,
    "max_steps": 2,
    "total_batch_size": 2,
    "use_cpu": True,
    "disable_tqdm": True,
}

CAMVID_CLASSES = ["sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "person", "bicyclist"]
CAMVID_OF_TRAIN_ID = [3, 4, 1, 1, 7, 2, 6, 6, 5, 5, 0, 9, 10, 8, 8, 8, 8, 10, 10]


def write_workplace(folder: Path) -> Path:
    """A folder to run recipes in, `folder/work`: `recipes` is the repository's, `data`, `outputs` and `../shared`
    hold two or three random images of each kind and split."""
    work, rng = folder / "work", np.random.default_rng(0)

    def label_maps(classes: int, count: int = 2, block: int = 12) -> list[np.ndarray]:
        return [rng.integers(0, classes, (6, 8)).repeat(block, 0).repeat(block, 1) for _ in range(count)]

    work.mkdir()
    (work / "recipes").symlink_to(Path("recipes").resolve())
    for layout, name, splits in (
        ("gta5", "GTA5", [""]),
        ("synthia", "SYNTHIA", [""]),
        ("urbansyn", "UrbanSyn", [""]),
        ("cityscapes", "cityscapes", ["train", "val"]),
        ("bdd100k", "bdd100k", ["val"]),
        ("mapillary", "mapillary", ["validation"]),
        ("acdc", "acdc", ["val"]),
    ):
        for split in splits:
            block = 24 if layout == "mapillary" else 12  # it is evaluated at half of its size
            write_miniature(layout, work / "data" / name, label_maps(12, block=block), split)
    for domain in ("train/day", "day", "fog", "night", "rain", "snow"):
        write_own(work / "outputs" / "demo" / "data" / domain, label_maps(19))
    shared = folder / "shared"
    write_own(shared / "data" / "streets", label_maps(19, 3), splits=["train", "train", "held_out"])
    camvid = {"names": CAMVID_CLASSES, "ignore_id": 11, "train_id_to_class": CAMVID_OF_TRAIN_ID}
    write_own(shared / "data" / "camvid", label_maps(12), camvid)
    write_encoder("sam2 hiera", shared / "weights" / "sam2-hiera-tiny")
    return work


def write_own(folder: Path, labels: list[np.ndarray], classes: dict | None = None, splits: list[str] | None = None):
    """A folder of one's own: random images, `classes.json` and `index.csv` where given."""
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True)
    for index, label in enumerate(labels):
        image = np.random.default_rng(index).integers(0, 255, (*label.shape, 3))
        Image.fromarray(image.astype(np.uint8)).save(folder / "images" / f"{index}.jpg")
        Image.fromarray(label.astype(np.uint8)).save(folder / "labels" / f"{index}.png")
    if classes:
        (folder / "classes.json").write_text(json.dumps(classes))
    if splits:
        rows = [f"{index},{split}" for index, split in enumerate(splits)]
        (folder / "index.csv").write_text("\n".join(["stem,split", *rows]))
