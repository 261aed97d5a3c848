"""recipes/benchmark_data.py: every stage is measured, on files of the size and classes asked for."""

import json

import numpy as np
from PIL import Image

from rein_hf.commands import benchmark_data
from rein_hf.data import load_domain


def write_folder(root):
    """Two images of 60x44 pixels, with 21 classes, the last of which is there."""
    for name in ("images", "labels"):
        (root / name).mkdir(parents=True)
    for index in range(2):
        Image.new("RGB", (60, 44), (9, 9, 9)).save(root / "images" / f"{index}.png")
        Image.fromarray(np.resize(np.array([3, 20], np.uint8), (44, 60))).save(root / "labels" / f"{index}.png")
    classes = {"names": [f"Straße {index}" for index in range(21)], "ignore_id": 255}
    (root / "classes.json").write_text(json.dumps(classes), encoding="utf-8")
    return root


def test_stages(tmp_path, capsys):
    args = benchmark_data.DataBenchmarkArguments(
        domains=str(write_folder(tmp_path)), size="64x48", crop=32, images=2, rounds=1
    )
    medians = benchmark_data.main(args)
    assert list(medians) == ["decode the files alone", "+ ids by table, checks", "+ augmentation", "+ batches of 4"]
    assert all(seconds > 0 for seconds in medians.values())
    assert "| + augmentation | " in capsys.readouterr().out


def test_resized_files_keep_classes_and_ids(tmp_path):
    domain = load_domain(str(write_folder(tmp_path / "a")))
    (tmp_path / "b").mkdir()
    resized = benchmark_data.resize_domain(domain, "64x48", 2, tmp_path / "b")
    sample = resized.dataset[1]
    assert resized.classes == domain.classes and sample["image"].size == sample["label"].size == (64, 48)
    assert np.unique(sample["label"]).tolist() == [3, 20]
