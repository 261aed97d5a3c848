"""Paints street scenes with exact segmentation labels: an offline stand-in for driving data under domain shift.

A seed fixes one street: a camera, a layout in metres and everything standing in it. It is painted far to near by a
pinhole camera on a canvas that keeps, next to the colours, the class, the depth, the light source and the snow cover
of every pixel. The weather of a domain is then computed from those maps, so the labels of a seed are the same in all
domains. Only numpy and Pillow paint; nothing is downloaded.

    python -m recipes.demo.paint_streets --output_dir data/streets --domains day night --seeds 0 200
"""

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter
from tqdm import tqdm

from .street import Street
from .weather import WEATHER, resolve


__all__ = ["DOMAINS", "paint", "write_dataset"]
DOMAINS = tuple(WEATHER)


def paint(seed: int, domain: str = "day", size: tuple[int, int] = (512, 256)) -> tuple[Image.Image, Image.Image]:
    """Paints one street scene; `size` is (width, height) in pixels. The same arguments give the same bytes.

    Returns: the picture (mode RGB) and its label (mode L, Cityscapes train ids 0..18), the same in all domains.
    """
    if domain not in DOMAINS:
        raise ValueError(f"domain is {domain!r}, but it has to be one of {', '.join(DOMAINS)}.")
    street = Street(np.random.default_rng([seed]), size)
    street.paint()
    frame, rng = resolve(street), np.random.default_rng([seed, DOMAINS.index(domain)])
    rgb = WEATHER[domain](frame, rng)
    rgb = rgb + 0.009 * rng.standard_normal(frame.label.shape, np.float32)
    image = Image.fromarray((np.clip(rgb, 0, 1) * 255).astype(np.uint8))
    return image.filter(ImageFilter.BoxBlur(0.3)), Image.fromarray(frame.label[..., 0])


def write_dataset(root: Path, domain: str, seeds: Iterable[int], size: tuple[int, int] = (512, 256)) -> None:
    """Writes root/images/<domain>_<seed:05d>.png and root/labels/<same name>, and skips what is already there."""
    for seed in tqdm(list(seeds), desc=f"painting {domain}", unit="scene"):
        paths = [Path(root) / kind / f"{domain}_{seed:05d}.png" for kind in ("images", "labels")]
        if all(path.exists() for path in paths):
            continue
        for image, path in zip(paint(seed, domain, size), paths, strict=True):
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                part = path.with_name(f".{path.name}.part")  # A file under its own name is whole.
                image.save(part, format="PNG")
                os.replace(part, path)
