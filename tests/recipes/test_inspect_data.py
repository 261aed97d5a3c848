"""recipes/inspect_data.py: what it counts, draws and finds wrong."""

import json

import numpy as np
import pytest
from PIL import Image
from transformers import HfArgumentParser

from rein_hf.commands import inspect
from tests.support.miniatures import write_miniature


pytestmark = pytest.mark.filterwarnings("ignore:.* holds .* of the .* images")


def run(*arguments: str) -> int:
    parser = HfArgumentParser(inspect.InspectionArguments)
    return inspect.main(*parser.parse_args_into_dataclasses(list(arguments)))


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
    assert "37.5% of the pixels do not count (255 or the ignored id)" in printed
    assert printed.index("1 of 30x24 pixels") < printed.index("classes by id") < printed.index("PROBLEM")
    assert "\n      0 road           50.00%  1\n      1 sidewalk       absent\n" in printed


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


@pytest.mark.parametrize(("option", "value", "least"), [("limit", 0, 1), ("workers", 0, 1), ("sheet_rows", -2, 0)])
def test_numbers_that_are_too_small(tmp_path, option, value, least):
    with pytest.raises(ValueError, match=f"--{option} is {value}; expected {least} at least"):
        run("--domains", "gta5:nowhere", "--output_dir", str(tmp_path / "out"), f"--{option}", str(value))
    assert not (tmp_path / "out").exists()


def folder_of(tmp_path, images: dict[str, Image.Image], labels: dict[str, Image.Image], classes=None):
    for name, files in (("images", images), ("labels", labels)):
        (tmp_path / "own" / name).mkdir(parents=True)
        for file, image in files.items():
            image.save(tmp_path / "own" / name / file, exif=image.getexif())
    if classes is not None:
        text = json.dumps({"names": classes, "ignore_id": 255}, ensure_ascii=False)
        (tmp_path / "own" / "classes.json").write_text(text, encoding="utf-8-sig")
    return str(tmp_path / "own")


def inspected(tmp_path, spec: str) -> tuple[int, dict]:
    count = run("--domains", spec, "--output_dir", str(tmp_path / "out"), "--sheet_rows", "1")
    return count, json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))[spec]


def photo(orientation: int = 1) -> Image.Image:
    image = Image.new("RGB", (40, 32), (90, 90, 90))
    image.getexif()[0x0112] = orientation
    return image


def test_turned_images_are_told_and_labels_that_do_not_fit_are_named(tmp_path, capsys):
    images = {"a.jpg": photo(3), "b.jpg": photo(3), "c.jpg": photo(6), "d.jpg": photo(6), "e.jpg": photo()}
    labels = {f"{stem}.png": Image.new("L", (32, 40) if stem == "c" else (40, 32), 1) for stem in "abcde"}
    count, found = inspected(tmp_path, folder_of(tmp_path, images, labels, ["Straße", "Gehweg"]))
    assert count == 1 and "d.png is 40x32 pixels; its image is 32x40 once it is turned" in found["problems"][0]
    assert found["sizes"] == {"40x32": 3, "32x40": 1} and found["modes"] == {"RGB": 4}
    assert found["notes"] == [
        "3 images were turned upright as their EXIF says (2 of orientation 3, 1 of orientation 6). Labels, which have "
        "no EXIF, were not: see on the contact sheet whether they lie on the images."
    ]
    assert list(found["classes"]) == ["Straße", "Gehweg"]
    assert "NOTE: 3 images were turned" in capsys.readouterr().out


def test_images_of_several_frames_are_told(tmp_path):
    label = Image.new("L", (40, 32))
    spec = folder_of(tmp_path, {"a.gif": photo(), "b.png": photo()}, {"a.png": label, "b.png": label}, ["one"])
    photo().save(tmp_path / "own" / "images" / "a.gif", save_all=True, append_images=[Image.new("RGB", (40, 32))])
    _, found = inspected(tmp_path, spec)
    assert "a has 2 frames; the first is used." in found["notes"]


def test_images_of_16_bits_are_told_and_dark_ones_named(tmp_path):
    bright, dark = (Image.fromarray(np.full((32, 40), value, np.uint16)) for value in (40000, 4095))
    labels = {f"{stem}.png": Image.new("L", (40, 32), 1) for stem in "abc"}
    images = {"a.png": bright, "b.png": dark, "c.png": Image.new("L", (40, 32))}
    count, found = inspected(tmp_path, folder_of(tmp_path, images, labels, ["a", "b"]))
    assert count == 0 and found["modes"] == {"I;16": 2, "L": 1}
    assert found["notes"] == [
        "Of images with 16 bits the high byte is used (2 of mode I;16).",
        "1 of these are all but black, as 12-bit images in files of 16 bits are: multiply their values by 16. They "
        "are b.",
    ]


def test_assumed_ids_are_told_and_masks_of_0_and_255_are_wrong(tmp_path):
    mask = Image.new("L", (40, 32))
    mask.paste(255, (0, 0, 9, 9))
    count, found = inspected(tmp_path, folder_of(tmp_path, {"a.jpg": photo()}, {"a.png": mask}))
    (note,) = found["notes"]
    assert note.endswith("Cityscapes' 19 classes (0 road, 1 sidewalk, ... 18 bicycle; 255 is ignored).")
    assert count == 1 and "nothing but 0 (road) and 255, and 255 means ignored pixels" in found["problems"][0]


def test_files_that_are_not_used_are_problems(tmp_path):
    spec = folder_of(tmp_path, {"a.jpg": photo()}, {"a.png": Image.new("L", (40, 32), 1)}, ["a", "b"])
    for name in ("b.heic", "._a.jpg"):
        (tmp_path / "own" / "images" / name).write_bytes(b"")
    count, found = inspected(tmp_path, spec)
    assert found["problems"] == [f"{spec}: 1 file(s) in images/ of a format that is not read, not used: b.heic."]
    assert count == 1 and found["images"] == 1
