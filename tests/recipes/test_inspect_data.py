"""recipes/inspect_data.py: what it counts, draws and finds wrong."""

import json

import numpy as np
import pytest
from PIL import Image
from transformers import HfArgumentParser

from recipes import inspect_data
from tests.support.miniatures import write_miniature


pytestmark = pytest.mark.filterwarnings("ignore:.* holds .* of the .* images")


def run(*arguments: str) -> int:
    parser = HfArgumentParser(inspect_data.InspectionArguments)
    return inspect_data.main(*parser.parse_args_into_dataclasses(list(arguments)))


def test_counts_sizes_and_pictures(tmp_path, capsys):
    maps = [np.full((20, 30), 7), np.full((20, 30), 26), np.full((24, 30), 0)]
    write_miniature("gta5", tmp_path / "gta5", maps)
    spec, out = f"gta5:{tmp_path / 'gta5'}", tmp_path / "out"
    assert run("--domains", spec, "--output_dir", str(out)) == 1
    found = json.loads((out / "report.json").read_text())[spec]
    assert (found["images"], found["sizes"]) == (3, {"30x20": 2, "30x24": 1})
    assert found["classes"]["road"] == {"share": 0.5, "images": 1} == found["classes"]["car"]
    assert found["classes"]["sky"] == {"share": 0.0, "images": 0}
    assert found["ignored"] == pytest.approx(24 / 64)
    assert found["problems"] == [f"{tmp_path / 'gta5'} holds 3 of the 24966 images of gta5 ."]
    assert {path.name for path in out.iterdir()} == {"report.json", "contact_sheet.png", "classes.png"}
    with Image.open(out / "contact_sheet.png") as sheet:
        assert sheet.width == 3 * 320
    printed = capsys.readouterr().out
    assert "3 images" in printed and "2 of 30x20" in printed and "PROBLEM: " in printed
    assert "37.5% of the pixels do not count; absent: sidewalk, building" in printed


def test_every_bad_file_is_named(tmp_path):
    pairs = write_miniature(
        "bdd100k", tmp_path / "bdd", [np.random.default_rng(0).integers(0, 9, (40, 60))] * 5, "val"
    )
    pairs[0][0].write_bytes(pairs[0][0].read_bytes()[:300])
    Image.new("RGB", (60, 40)).save(pairs[1][1])
    Image.new("L", (60, 41)).save(pairs[2][1])
    Image.new("L", (60, 40), 33).save(pairs[3][1])
    spec = f"bdd100k:{tmp_path / 'bdd'}@val"
    assert run("--domains", spec, "--output_dir", str(tmp_path / "out"), "--workers", "2") == 5
    problems = json.loads((tmp_path / "out" / "report.json").read_text())[spec]["problems"]
    assert "holds 5 of the 1000 images" in problems[0]
    for problem, path, reason in zip(
        problems[1:],
        [pairs[0][0], pairs[1][1], pairs[2][1], pairs[3][1]],
        ["cannot be read as an image", "is of mode RGB", "is 60x41 pixels; its image is 60x40", "holds the ids [33]"],
        strict=True,
    ):
        assert problem.startswith(str(path)) and reason in problem


def test_a_domain_that_does_not_open_and_one_that_does(tmp_path, capsys):
    write_miniature("acdc", tmp_path / "acdc", [np.zeros((20, 30), int)] * 4, "test")
    missing, unlabelled = f"gta5:{tmp_path / 'nowhere'}", f"acdc:{tmp_path / 'acdc'}@test"
    assert run("--domains", missing, unlabelled, "--output_dir", str(tmp_path / "out"), "--sheet_rows", "0") == 2
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert "nowhere" in report[missing]["problems"][0] and report[missing]["images"] == 0
    assert report[unlabelled]["images"] == 4 and report[unlabelled]["ignored"] == 1
    assert not (tmp_path / "out" / "contact_sheet.png").exists()


def test_limit(tmp_path):
    write_miniature("gta5", tmp_path / "gta5", [np.full((20, 30), index) for index in range(7)])
    spec = f"gta5:{tmp_path / 'gta5'}"
    run("--domains", spec, "--output_dir", str(tmp_path / "out"), "--limit", "3")
    assert json.loads((tmp_path / "out" / "report.json").read_text())[spec]["images"] == 3
