"""Data sets of scenes, and sheets to look at."""

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from rein_hf.views import pictures

from .scenes import DOMAINS, paint


def write_dataset(root: Path, domain: str, seeds: Iterable[int], size: tuple[int, int] = (512, 256)) -> None:
    """Writes root/images/<domain>_<seed:05d>.png and root/labels/<same name>, and skips what is already there.

    Labels are single channel 8 bit PNGs of Cityscapes train ids; `size` is (width, height) in pixels.
    """
    folders = [Path(root) / name for name in ("images", "labels")]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    for seed in tqdm(list(seeds), desc=f"painting {domain}", unit="scene"):
        paths = [folder / f"{domain}_{seed:05d}.png" for folder in folders]
        if all(path.exists() for path in paths):
            continue
        for image, path in zip(paint(seed, domain, size), paths, strict=True):
            if not path.exists():
                save_whole(image, path)


def save_whole(image: Image.Image, path: Path) -> None:
    """Saves a PNG under a temporary name first: a file that exists under its own name is whole."""
    part = path.with_name(f".{path.name}.part")
    image.save(part, format="PNG")
    os.replace(part, path)


def contact_sheet(seeds: Iterable[int], size: tuple[int, int] = (512, 256)) -> Image.Image:
    """One row per seed: day, its label in Cityscapes' colours, then the other domains; each of `size` pixels."""
    rows = []
    for seed in seeds:
        scenes = [paint(seed, domain, size) for domain in DOMAINS]
        (first, *others), label = [image for image, _ in scenes], scenes[0][1]
        rows.append((f"seed {seed}", [first, pictures.colorize(np.asarray(label)), *others]))
    return pictures.contact_sheet(rows, (DOMAINS[0], "label", *DOMAINS[1:]), width=size[0])
