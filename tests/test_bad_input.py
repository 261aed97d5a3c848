"""What a user gets wrong first: one clear error each, naming the file, what was found and what was expected."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rein_hf.data import load_domain, load_folder


@pytest.fixture
def folder(tmp_path) -> Path:
    """Three images with labels, an index of two splits, the 19 classes."""
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
    for index in range(3):
        Image.fromarray(np.full((12, 16, 3), 40 * index, np.uint8)).save(tmp_path / "images" / f"{index}.png")
        Image.fromarray(np.full((12, 16), index, np.uint8)).save(tmp_path / "labels" / f"{index}.png")
    (tmp_path / "index.csv").write_text("stem,split,scene\n0,train,a\n1,train,a\n2,test,b\n")
    return tmp_path


def test_the_folder_itself_is_right(folder):
    domain = load_domain(f"streets={folder}@train")
    assert domain.dataset.with_format(None)["domain"] == ["streets/a", "streets/a"]
    sample = load_domain(f"{folder}@test").dataset[0]
    assert sample["name"] == "2" and set(np.unique(sample["label"])) == {2}


def test_missing_label(folder):
    (folder / "labels" / "1.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 3 images have no label: \['.*labels/1.png'\] missing"):
        load_folder(folder)


def test_missing_image(folder):
    (folder / "images" / "2.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"index.csv lists 1 missing image\(s\): \['2'\]"):
        load_folder(folder)


def test_no_images(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"images holds no image \(.jpg, .*.png, .*\)"):
        load_folder(tmp_path)


def test_label_of_another_size(folder):
    Image.new("L", (16, 13)).save(folder / "labels" / "0.png")
    with pytest.raises(ValueError, match=r"labels/0.png is 16x13 pixels; its image is 16x12"):
        load_folder(folder).dataset[0]


def test_label_id_outside_the_table(folder):
    Image.fromarray(np.full((12, 16), 33, np.uint8)).save(folder / "labels" / "0.png")
    with pytest.raises(ValueError, match=r"labels/0.png holds the ids \[33\], which the table .* does not know"):
        load_folder(folder).dataset[0]


@pytest.mark.parametrize(("mode", "found"), [("RGB", "RGB"), ("I;16", "I;16")])
def test_label_of_another_kind(folder, mode, found):
    Image.new(mode, (16, 12)).save(folder / "labels" / "0.png")
    with pytest.raises(ValueError, match=rf"labels/0.png is of mode {found}; expected one channel of 8 bits"):
        load_folder(folder).dataset[0]


def test_palette_labels_are_read_as_ids(folder):
    label = Image.fromarray(np.full((12, 16), 5, np.uint8)).convert("P")
    label.putpalette([255, 0, 0] * 256)
    label.save(folder / "labels" / "0.png")
    assert set(np.unique(load_folder(folder).dataset[0]["label"])) == {5}


@pytest.mark.parametrize("content", [b"no image", None])
def test_unreadable_image(folder, content):
    path = folder / "images" / "0.png"
    path.write_bytes(path.read_bytes()[:45] if content is None else content)
    with pytest.raises(ValueError, match=r"images/0.png cannot be read as an image"):
        load_folder(folder).dataset[0]


def test_unknown_split(folder):
    with pytest.raises(ValueError, match=r"index.csv has no split 'val'; found \['test', 'train'\]"):
        load_folder(folder, split="val")
    (folder / "index.csv").unlink()
    with pytest.raises(FileNotFoundError, match="index.csv is missing; it is needed to choose the split 'val'"):
        load_folder(folder, split="val")


def test_index_of_other_columns(folder):
    (folder / "index.csv").write_text("file,fold\n0,1\n")
    with pytest.raises(ValueError, match=r"begins with columns \['file', 'fold'\]; expected stem, split"):
        load_folder(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"names": ["a"]}, r"classes.json lacks \['ignore_id'\]"),
        (
            {"names": ["a"], "ignore_id": 1, "train_id_to_class": [0, 1]},
            "expected one of the 1 classes for each of the 19",
        ),
    ],
)
def test_wrong_classes(folder, content, message):
    (folder / "classes.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        load_folder(folder)
