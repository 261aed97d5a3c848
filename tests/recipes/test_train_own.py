"""`rein-hf train own --data DIR`: a folder of one's own needs no YAML; splits and sizes follow from it."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

import rein_hf
from rein_hf.commands import cli, train
from rein_hf.data import load_domain
from tests.support.runs import HEAD


OWN = Path("recipes/configs/own.yaml").resolve()
GREEN, RED = [0, 200, 0], [250, 0, 0]


def write_data(root: Path, count: int, size=(96, 80), splits: list[str] | None = None, transposed=()) -> Path:
    rng = np.random.default_rng(0)
    for kind in ("images", "labels"):
        (root / kind).mkdir(parents=True)
    for index in range(count):
        width, height = size[::-1] if index in transposed else size
        label = np.zeros((height, width), np.uint8)
        label[: rng.integers(8, height - 8)] = 1
        Image.fromarray(np.stack([label * 200] * 3, -1)).save(root / "images" / f"{index:02}.png")
        Image.fromarray(label).save(root / "labels" / f"{index:02}.png")
    (root / "classes.json").write_text(
        json.dumps({"names": ["ground", "sky"], "ignore_id": 255, "palette": [GREEN, RED]})
    )
    if splits:
        rows = [f"{index:02},{split}" for index, split in enumerate(splits)]
        (root / "index.csv").write_text("\n".join(["stem,split", *rows]))
    return root


def parsed(*words: str) -> dict:
    recipe, _ = train.parse([str(OWN), *words])
    return {"train": recipe.train, "evaluate": recipe.evaluate, "crop": recipe.crop}


def names(spec: str) -> list[str]:
    return load_domain(spec).dataset.with_format(None)["name"]


def test_each_tenth_image_is_for_validation(tmp_path):
    data = str(write_data(tmp_path / "data", 21))
    found = parsed("--data", data)
    assert found == {"train": [f"{data}#skip_every=10"], "evaluate": [f"val={data}#every=10"], "crop": 64}
    assert names(found["evaluate"][0]) == ["00", "10", "20"]
    assert names(found["train"][0]) == [f"{index:02}" for index in range(21) if index % 10]


def test_few_images_leave_one_for_validation(tmp_path):
    data = str(write_data(tmp_path / "data", 3))
    found = parsed("--data", data)
    assert names(found["evaluate"][0]) == ["00"] and names(found["train"][0]) == ["01", "02"]
    one = write_data(tmp_path / "one", 1)
    with pytest.raises(ValueError, match="one holds 1 image to train on; expected two at least"):
        parsed("--data", str(one))


@pytest.mark.parametrize(
    ("splits", "expected"),
    [
        (["train", "val", "test"], ("{}@train", "val={}@val")),
        (["training", "training", "validation"], ("{}@training", "val={}@validation")),
        (["train", "train", "test"], ("{}@train#skip_every=2", "val={}@train#every=2")),
    ],
)
def test_splits_of_the_index(tmp_path, splits, expected):
    data = str(write_data(tmp_path / "data", 3, splits=splits))
    found = parsed("--data", data)
    assert (found["train"], found["evaluate"]) == tuple([spec.format(data)] for spec in expected)


def test_splits_of_other_names_are_not_guessed(tmp_path):
    data = write_data(tmp_path / "data", 3, splits=["day", "day", "night"])
    with pytest.raises(ValueError, match="index.csv has the splits day, night; expected one called train.*@day"):
        parsed("--data", str(data))


@pytest.mark.parametrize(
    ("size", "transposed", "crop", "evaluated"),
    [
        ((96, 80), (), 64, None),
        ((40, 30), (), 64, None),
        ((640, 480), (), 480, None),
        ((530, 520), (), 512, None),
        ((1600, 1200), (1,), 512, (683, 683)),
    ],
)
def test_sizes_follow_from_the_images(tmp_path, size, transposed, crop, evaluated):
    data = str(write_data(tmp_path / "data", 4, size, transposed=transposed))
    found = parsed("--data", data)
    assert found["crop"] == crop
    assert load_domain(found["evaluate"][0]).size == evaluated


def test_what_is_given_stays(tmp_path):
    data = str(write_data(tmp_path / "data", 4))
    found = parsed(
        "--data", data, "--crop", "32", "--evaluate", f"[other={data}]", "--load_best_model_at_end", "false"
    )
    assert found == {"train": [data], "evaluate": [f"other={data}"], "crop": 32}
    with pytest.raises(ValueError, match="--data .* and --train are both given; expected one of them"):
        parsed("--data", data, "--train", data)
    other = tmp_path / "other.yaml"
    other.write_text(yaml.safe_dump({"backbone": "x", "train": ["a"], "evaluate": ["b"], "crop": 96}))
    recipe, _ = train.parse([str(other), f"--data={data}"])
    assert (recipe.train, recipe.evaluate, recipe.crop) == ([f"{data}#skip_every=4"], [f"val={data}#every=4"], 96)


def test_no_data_is_said_in_one_line(tmp_path, capsys):
    assert cli.main(["train", "own"]) == 2
    assert (
        capsys.readouterr()
        .err.strip()
        .splitlines()[-1]
        .endswith("own.yaml: it names no data; expected --data DIR, a folder of your own, or --train.")
    )
    assert cli.main(["train", "own", "--data", str(tmp_path / "nowhere")]) == 2
    error = capsys.readouterr().err
    assert "nowhere" in error and "holds no image" in error and "Traceback" not in error
    assert cli.main(["train", "own", "--data"]) == 2
    assert "--data has no value" in capsys.readouterr().err


def test_epochs_are_answered_in_steps_of_the_training_images(tmp_path):
    data = write_data(tmp_path / "data", 20)
    with pytest.raises(ValueError, match="For 2 epochs of 18 images give --max_steps 9"):
        parsed("--data", str(data), "--epochs", "2")


def test_from_a_folder_to_a_segmented_photo(tmp_path, vit_folder, capsys, monkeypatch):
    """The three commands of README, in a folder that holds nothing but data."""
    write_data(tmp_path / "data", 5)
    monkeypatch.chdir(tmp_path)
    small = ["--backbone", vit_folder, "--head", json.dumps(HEAD), "--num_queries", "8", "--use_cpu", "--disable_tqdm"]
    steps = ["--max_steps", "2", "--total_batch_size", "2", "--report_to", "none"]
    assert cli.main(["inspect", "--domains", "data", "--output_dir", "looked"]) == 0
    assert "      0 ground " in capsys.readouterr().out
    assert cli.main(["train", "own", "--data", "data", *small, *steps, "--output_dir", "mine"]) == 0
    said = capsys.readouterr().out
    assert "  on data: 4 images, data#skip_every=5\n" in said and "Best step by the mIoU of val: 2 (" in said
    assert "The weights of the best step lie in mine (" in said
    assert cli.main(["predict", "--model", "mine", "--input", "data/images/01.png", "--output_dir", "photos"]) == 0
    model = rein_hf.from_pretrained("mine")
    assert model.config.palette == [GREEN, RED] and model.config.id2label == {0: "ground", 1: "sky"}
    with Image.open("photos/01_label.png") as label, Image.open("photos/01_color.png") as colours:
        labels, colours = np.asarray(label), np.asarray(colours.convert("RGB"))
    assert labels.shape == (80, 96) and np.array_equal(colours, np.array([GREEN, RED])[labels])


def test_skip_every(tmp_path):
    data = str(write_data(tmp_path / "data", 7))
    assert names(f"{data}#skip_every=3") == ["01", "02", "04", "05"]
    assert names(f"{data}#skip_every=3#every=2") == ["01", "04"]
    assert names(f"{data}#skip_every=3#exclude=00") == ["02", "03", "05", "06"]
    with pytest.raises(ValueError, match="skip_every is '1'; expected a number of at least 2"):
        load_domain(f"{data}#skip_every=1")
    with pytest.raises(ValueError, match="skip_every is 'x'"):
        load_domain(f"{data}#skip_every=x")
