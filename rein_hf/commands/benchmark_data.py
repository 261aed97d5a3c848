"""How fast training samples are made, on one core: images per second of each stage, compared with decoding alone.

    OMP_NUM_THREADS=1 python -m rein_hf.commands.benchmark_data --domains ../shared/data/streets --size 1914x1052

With `--size` the images are first written as PNGs of that size into a temporary folder (1914x1052 is GTA5's). The
stages take turns in every round, so that another load on the machine slows all of them alike.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from .. import build_image_processor
from ..data import Augmentation, Collator, Domain, load_domain, load_folder
from ..evaluation import evenly_spaced_indices
from ..labels import IGNORE
from .cli import run


@dataclass
class DataBenchmarkArguments:
    domains: str = field(
        metadata={
            "help": "One, described as in rein_hf.data.",
            "aliases": ["--domain"],
        }
    )
    size: str | None = field(default=None, metadata={"help": "WIDTHxHEIGHT in pixels of PNGs to be made of them."})
    crop: int = field(default=512, metadata={"help": "Side of the training crops in pixels."})
    images: int = field(default=16, metadata={"help": "How many images are read in each round."})
    rounds: int = field(default=5, metadata={"help": "How often everything is measured."})


def main(args: DataBenchmarkArguments) -> dict[str, float]:
    """Median seconds per image of each stage, by the stage's name; every stage includes the one before."""
    with tempfile.TemporaryDirectory() as folder:
        domain = load_domain(args.domains)
        if args.size:
            domain = resize_domain(domain, args.size, args.images, Path(folder))
        indices = evenly_spaced_indices(len(domain.dataset), args.images)
        files = domain.dataset.with_format(None).select(indices)
        augment = Augmentation(args.crop)
        collate = Collator(build_image_processor(), args.crop, defer_masks=True)

        def decode(round: int) -> None:
            for row in files:
                for role in ("image", "label"):
                    Image.open(row[role]["path"]).load()

        def read(round: int) -> None:
            for index in indices:
                domain.dataset[index]

        def prepare(round: int, batch: int | None = None) -> None:
            samples = []
            for index in indices:
                sample = domain.dataset[index]
                rng = np.random.default_rng([round, index])
                image, label = augment(sample["image"], sample["label"], rng)
                samples.append({**sample, "image": image, "label": label})
            for start in range(0, len(samples), batch) if batch else ():
                collate(samples[start : start + batch])

        stages = {
            "decode the files alone": decode,
            "+ ids by table, checks": read,
            "+ augmentation": prepare,
            "+ batches of 4": lambda round: prepare(round, 4),
        }
        seconds = {name: [] for name in stages}
        for round in tqdm(range(args.rounds)):
            for name, stage in stages.items():
                start = time.perf_counter()
                stage(round)
                seconds[name].append((time.perf_counter() - start) / len(indices))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    print("| stage | ms per image | images/s | of the limit |\n|---|---|---|---|")
    limit = medians["decode the files alone"]
    for name, value in medians.items():
        print(f"| {name} | {1000 * value:.1f} | {1 / value:.1f} | {limit / value:.0%} |")
    return medians


def resize_domain(domain: Domain, size: str, count: int, folder: Path) -> Domain:
    """`count` images of a domain and their labels, resized and written as PNGs, as a folder of data of its classes."""
    width, height = map(int, size.split("x"))
    for kind, role, resample in (("images", "image", Image.BICUBIC), ("labels", "label", Image.NEAREST)):
        (folder / kind).mkdir()
        for index in evenly_spaced_indices(len(domain.dataset), count):
            picture = domain.dataset[index][role].resize((width, height), resample)
            picture.save(folder / kind / f"{index:05}.png")
    classes = json.dumps({"names": domain.classes, "ignore_id": IGNORE})
    (folder / "classes.json").write_text(classes, encoding="utf-8")
    return load_folder(folder)


if __name__ == "__main__":
    sys.exit(run("benchmark_data"))
