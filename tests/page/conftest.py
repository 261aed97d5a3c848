"""A page of two tiny adapters and two example photos."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import rein_hf
from rein_hf.page import Adapters, Service, find_examples
from tests.support.models import make_decided, perturb
from tests.support.runs import HEAD


@pytest.fixture(scope="module")
def adapter_folders(vit_folder, tmp_path_factory) -> list[Path]:
    """`day` and `night`: Rein and head with other weights each, on one backbone."""
    folders = []
    for seed, name in enumerate(("day", "night")):
        folder = tmp_path_factory.mktemp("page") / name
        classes = {0: "road", 1: "car", 2: "sky"}
        base = rein_hf.build_segmenter(vit_folder, classes, image_size=64, num_queries=8, head=HEAD)
        model = rein_hf.add_rein(base, rein_hf.ReinConfig(r=4, num_tokens=8))
        perturb(model, seed)
        make_decided(model)
        model.save_pretrained(folder)
        rein_hf.build_image_processor().save_pretrained(folder)
        folders.append(folder)
    return folders


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for name, size in (("street", (90, 70)), ("square", (64, 64))):
        noise = Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8))
        noise.resize(size, Image.Resampling.BICUBIC).save(folder / f"{name}.png")
    return folder


@pytest.fixture(scope="module")
def service(adapter_folders, photos) -> Service:
    return Service(Adapters(adapter_folders, device="cpu"), find_examples([photos]))
