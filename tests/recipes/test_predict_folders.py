"""recipes/predict.py and folders as they are: which photos are found, skipped, left out and never segmented twice."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image

import rein_hf
from rein_hf.commands import predict
from rein_hf.images import open_image
from rein_hf.inference.photos import find_photos
from tests.support.models import make_decided


@pytest.fixture
def model(rein_model, monkeypatch):
    """What any `--model` gives here."""
    make_decided(rein_model)
    monkeypatch.setattr(rein_hf, "from_pretrained", lambda *args, **kwargs: rein_model)
    processor = rein_hf.build_image_processor()
    monkeypatch.setattr(predict.AutoImageProcessor, "from_pretrained", lambda path: processor)
    return rein_model


def run(folder, out, **options) -> int:
    inputs = [str(path) for path in (folder if isinstance(folder, list) else [folder])]
    return predict.main(predict.PredictionArguments("any", inputs, str(out), **options))


def noise(width: int = 70, height: int = 50) -> Image.Image:
    values = np.random.default_rng(width).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return Image.fromarray(values).resize((width, height), Image.Resampling.BICUBIC)


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def found(*inputs: Path, out: Path) -> tuple[list[tuple[str, str]], set[str]]:
    """What `find_photos` gives: file (from the first input) and target (from `out`) of each photo, names of others."""
    photos, skipped = find_photos([str(path) for path in inputs], out)
    pairs = [(os.path.relpath(photo.file, inputs[0]), photo.target.relative_to(out).as_posix()) for photo in photos]
    return pairs, {path.name for path in skipped}


def test_all_formats_and_subfolders(model, tmp_path, capsys):
    photos, out = tmp_path / "photos", tmp_path / "out"
    names = ["a.jpg", "b.JPEG", "c.png", "d.webp", "e.tif", "f.BMP", "g.gif", "h.ppm", "Straße/i.tiff", "x/y/a.jpg"]
    for name in names:
        (photos / name).parent.mkdir(parents=True, exist_ok=True)
        noise().save(photos / name)
    for name in (".hidden.jpg", "._a.jpg", "notes.txt", "x/Thumbs.db"):
        (photos / name).write_text("no image")
    (photos / ".trash").mkdir()
    noise().save(photos / ".trash" / "old.jpg")
    assert run(photos, out) == 0
    stems = [name.rpartition(".")[0] for name in names]
    assert files(out) == {f"{stem}_{ending}" for stem in stems for ending in ("label.png", "color.png", "overlay.jpg")}
    text = f"10 photos -> {out}; 4 other files skipped (._a.jpg, .hidden.jpg, notes.txt, ...)\n"
    assert capsys.readouterr().out == text
    expected = rein_hf.segment(model, rein_hf.build_image_processor(), open_image(photos / "Straße/i.tiff"))
    assert np.array_equal(np.asarray(Image.open(out / "Straße" / "i_label.png")), expected)


@pytest.mark.parametrize("inside", [".", "results", "results/deep"])
def test_a_second_run_does_not_segment_its_own_output(model, tmp_path, inside, capsys):
    photos = tmp_path / "photos"
    (photos / "sub").mkdir(parents=True)
    for name in ("a.png", "sub/b.png"):
        noise().save(photos / name)
    run(photos, photos / inside, explain=True)
    first = files(photos)
    assert len(first) == 2 + 2 * 4
    run(photos, photos / inside)
    run([photos, photos / "sub" / "b.png"] if inside == "." else photos, photos / inside, resume=True)
    assert files(photos) == first
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" -> ")[0] for line in lines] == ["2 photos"] * 3
    if inside == ".":
        assert "8 other files skipped" in lines[1]


def test_files_of_others_are_not_replaced(model, tmp_path, monkeypatch):
    """Labels beside the photos that have the names of results, also if they have a comment."""
    noise().save(tmp_path / "street.jpg")
    noise(71).save(tmp_path / "lane.jpg")
    Image.new("L", (70, 50), 7).save(tmp_path / "street_label.png")
    before = (tmp_path / "street_label.png").read_bytes()
    monkeypatch.setattr(rein_hf, "from_pretrained", lambda *args, **kwargs: pytest.fail("the model was loaded"))
    message = "street_label.png is there and is not a result of rein-hf predict; give another --output_dir"
    for options in ({}, {"resume": True}):
        with pytest.raises(ValueError, match=message):
            run(tmp_path, tmp_path, **options)
    noise(71).save(tmp_path / "lane_overlay.jpg", comment="{}")
    with pytest.raises(ValueError, match="lane_overlay.jpg is there .* predict, nor is 1 more; give another"):
        run(tmp_path, tmp_path)
    assert (tmp_path / "street_label.png").read_bytes() == before
    assert files(tmp_path) == {"street.jpg", "lane.jpg", "street_label.png", "lane_overlay.jpg"}


def test_folders_that_cannot_be_made_are_refused(model, tmp_path, monkeypatch):
    (tmp_path / "photos" / "sub").mkdir(parents=True)
    noise().save(tmp_path / "photos" / "sub" / "a.png")
    (tmp_path / "file").write_text("no folder")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "sub").write_text("no folder")
    monkeypatch.setattr(rein_hf, "from_pretrained", lambda *args, **kwargs: pytest.fail("the model was loaded"))
    for out, named in (("file", "file"), ("file/deep/er", "file"), ("out", "out/sub")):
        with pytest.raises(ValueError, match=f"--output_dir: .* but {tmp_path / named} is not a folder; give another"):
            run(tmp_path / "photos", tmp_path / out)
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write everywhere
    with pytest.raises(ValueError, match=f"would go to {tmp_path / 'new'}, but {tmp_path} cannot be written to; give"):
        run(tmp_path / "photos", tmp_path / "new")


def test_results_of_another_model_are_replaced_and_what_is_not_written_stays(model, tmp_path):
    noise().save(tmp_path / "a.png")
    noise().save(tmp_path / "a_confidence.png")
    assert run(tmp_path, tmp_path) == 0
    before = (tmp_path / "a_label.png").read_bytes()
    assert run(tmp_path, tmp_path, crop=48) == 0
    assert (tmp_path / "a_label.png").read_bytes() != before  # its comment tells the crop
    with pytest.raises(ValueError, match="a_confidence.png is there and is not a result"):
        run(tmp_path, tmp_path, confidence=True)


def test_what_is_found(tmp_path):
    for name in ("photos/b.JPEG", "photos/a.png", "photos/c.txt", "other/d.raw"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    photos, out = tmp_path / "photos", tmp_path / "out"
    assert found(photos, out=out) == ([("a.png", "a"), ("b.JPEG", "b")], {"c.txt"})
    # a file that is named is taken whatever its ending, and once
    pairs, skipped = found(photos, photos / "a.png", photos / "c.txt", out=out)
    assert pairs == [("a.png", "a"), ("b.JPEG", "b"), ("c.txt", "c")] and skipped == set()
    with pytest.raises(FileNotFoundError, match=r"other holds no image \(.jpg, .*\); 1 other file skipped \(d.raw\)"):
        found(tmp_path / "other", out=out)
    with pytest.raises(FileNotFoundError, match="--input .*nowhere does not exist"):
        found(photos, tmp_path / "nowhere", out=out)
    (photos / "b.png").touch()
    with pytest.raises(ValueError, match=r"several files of the same stem: \['.*b.JPEG', '.*b.png'\]"):
        found(photos, out=out)


@pytest.mark.skipif(os.name != "posix", reason="other systems do not let everyone make links")
def test_links_and_pipes(tmp_path):
    photos, elsewhere = tmp_path / "photos", tmp_path / "elsewhere"
    for name in ("photos/a.png", "elsewhere/b.png"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    (photos / "linked").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(photos)  # in a circle
    (photos / "lost.png").symlink_to(tmp_path / "nowhere.png")
    os.mkfifo(photos / "pipe.png")  # opening it would wait for ever
    pairs, skipped = found(photos, out=tmp_path / "out")
    assert pairs == [("a.png", "a"), ("lost.png", "lost"), ("linked/b.png", "linked/b")] and skipped == {"pipe.png"}


@pytest.mark.skipif(os.name != "posix", reason="other systems have no such names")
def test_names_that_are_no_text(model, tmp_path, capsys):
    name = os.fsdecode(b"stra\xdfe")
    (tmp_path / name).mkdir()
    noise().save(tmp_path / name / f"{name}.png")
    (tmp_path / name / f"{name}.jpg.png").write_text("no image")
    (tmp_path / name / f"{name}.txt").touch()
    assert run(tmp_path / name, tmp_path / "out" / name) == 1
    assert files(tmp_path / "out" / name) == {f"{name}_label.png", f"{name}_color.png", f"{name}_overlay.jpg"}
    printed = capsys.readouterr()
    assert r"stra\udcdfe.jpg.png cannot be read as an image" in printed.err
    assert printed.out.endswith("stra\\udcdfe; 1 could not be segmented, see above; 1 other file skipped "
                                "(stra\\udcdfe.txt)\n")  # fmt: skip


def test_bad_photos_do_not_stop_the_others(model, tmp_path, capsys, monkeypatch):
    """Broken EXIF, a broken end, an overlay that JPEG does not hold, too little memory."""
    good = noise()
    good.save(tmp_path / "a.jpg", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff broken")
    (tmp_path / "b.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:900])
    Image.new("RGB", (65501, 1)).save(tmp_path / "c.png")
    noise(33).save(tmp_path / "d.png")
    good.save(tmp_path / "e.png")
    noise(34).save(tmp_path / "f.png")
    segment = predict.segment

    def out_of_memory(model, processor, image, *args):
        if image.width == 33:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        if image.width == 34:
            torch.empty(2**50)
        return segment(model, processor, image, *args)

    monkeypatch.setattr(predict, "segment", out_of_memory)
    out = tmp_path / "out"
    assert run(tmp_path, out) == 4
    assert files(out) == {f"{stem}_{ending}" for stem in "ae" for ending in ("label.png", "color.png", "overlay.jpg")}
    errors = [line for line in capsys.readouterr().err.splitlines() if "left out" in line]
    assert len(errors) == 4
    for error, expected in zip(
        errors,
        [
            f"{tmp_path / 'b.jpg'} cannot be read as an image: ",
            f"{tmp_path / 'c.png'} is 65501x1 pixels; an overlay (JPEG) has sides of 65500 at most.",
            f"{tmp_path / 'd.png'}: CUDA out of memory. It is left out. A smaller copy needs less memory: --",
            f"{tmp_path / 'f.png'}: there is not enough memory. It is left out. A smaller copy needs less memory: --",
        ],
        strict=True,
    ):
        assert expected in error

    def broken(*args):
        raise RuntimeError("a fault of our own")

    monkeypatch.setattr(predict, "segment", broken)
    with pytest.raises(RuntimeError, match="of our own"):
        run(tmp_path, out)


def test_of_several_frames_the_first_is_segmented_and_told(model, tmp_path, capsys):
    noise().save(tmp_path / "a.gif", save_all=True, append_images=[noise(71).resize((70, 50))])
    noise().save(tmp_path / "b.tif")
    assert run(tmp_path, tmp_path / "out") == 0
    told = [line for line in capsys.readouterr().err.splitlines() if "frames" in line]
    assert told == [f"{tmp_path / 'a.gif'} has 2 frames; the first is used."]


def test_processes_share_the_photos(model, tmp_path, monkeypatch, capsys):
    """Each of two, one after the other; counts of both are summed, which only the first one prints."""
    for name in ("a.png", "b.png", "c.png"):
        noise().save(tmp_path / name)
    (tmp_path / "d.png").write_text("no image")

    class OneOfTwo(Accelerator):
        num_processes = 2

        def __init__(self, mixed_precision):
            super().__init__(mixed_precision=mixed_precision)

        process_index = property(lambda self: index)
        is_main_process = property(lambda self: index == 0)

        def reduce(self, tensor, reduction="mean"):
            assert reduction == "sum"
            return tensor + torch.tensor([1, 1])  # of the other one

    monkeypatch.setattr(predict, "accelerator_for", OneOfTwo)
    for index, stems in enumerate(["ac", "abc"]):
        assert run(tmp_path, tmp_path / "out") == [1, 2][index]
        assert files(tmp_path / "out") == {
            f"{stem}_{kind}" for stem in stems for kind in ("label.png", "color.png", "overlay.jpg")
        }
        printed = capsys.readouterr()
        assert printed.out == ["3 photos -> {}; 1 could not be segmented, see above\n", ""][index].format(
            tmp_path / "out"
        )
        assert ("d.png cannot be read" in printed.err) == (index == 1)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_photos_are_upright(model, tmp_path, suffix):
    """Orientation 6 of EXIF: to be turned by a quarter, so that width and height change places."""
    exif = Image.Exif()
    exif[0x0112] = 6
    noise(96, 64).save(tmp_path / f"phone.{suffix}", exif=exif)
    assert run(tmp_path / f"phone.{suffix}", tmp_path / "out", explain=True) == 0
    with Image.open(tmp_path / "out" / "phone_label.png") as label:
        assert label.size == (64, 96)
        stored = Image.open(tmp_path / f"phone.{suffix}")
        upright = open_image(tmp_path / f"phone.{suffix}")
        processor = rein_hf.build_image_processor()
        expected = rein_hf.segment(model, processor, upright)
        assert np.array_equal(np.asarray(label), expected)
        assert np.array_equal(rein_hf.segment(model, processor, stored), expected)
    with Image.open(tmp_path / "out" / "phone_overlay.jpg") as picture:
        colours = rein_hf.overlay(upright, expected, rein_hf.labels.palette_of(["road", "car", "sky"]))
        assert picture.size == (64, 96) and np.abs(np.subtract(picture, colours, dtype=float)).mean() < 8


def test_a_smaller_copy_is_segmented(model, tmp_path):
    """Maps are of the photo's own size all the same."""
    noise(200, 120).save(tmp_path / "a.png")
    processor, photo = rein_hf.build_image_processor(), noise(200, 120)
    for options, size in (({"size": "80x60"}, (80, 60)), ({"short_side": 48}, (80, 48)), ({}, None)):
        run(tmp_path / "a.png", tmp_path / "out", **options)
        label = np.asarray(Image.open(tmp_path / "out" / "a_label.png"))
        assert label.shape == (120, 200)
        assert np.array_equal(label, rein_hf.segment(model, processor, photo, size=size))


def test_many_windows_are_counted_and_hinted_at(model, tmp_path, capsys):
    noise(330, 250).save(tmp_path / "a.png")
    noise(331, 250).save(tmp_path / "b.png")
    run(tmp_path, tmp_path / "out", crop=64, stride=64)
    assert "windows" not in capsys.readouterr().err  # 6 x 4
    run(tmp_path, tmp_path / "out", crop=64)
    printed = capsys.readouterr().err
    hints = [line for line in printed.splitlines() if "--short_side" in line]
    assert len(hints) == 1 and "a.png is cut into 48 windows" in hints[0] and "--size WxH" in hints[0]
    assert "windows: " in printed and "/48" in printed
    run(tmp_path, tmp_path / "out", crop=64, short_side=64)
    assert "--short_side" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": "80"}, "--size is '80'; expected WIDTHxHEIGHT in pixels"),
        ({"size": "0x80"}, "--size is '0x80'; expected WIDTHxHEIGHT"),
        ({"short_side": 0}, "--short_side is 0; expected a number of pixels, 1 at least"),
        ({"size": "80x60", "short_side": 60}, "--size 80x60 and --short_side 60 are both given"),
        ({"opacity": 1.5}, "--opacity is 1.5; expected 0 to 1"),
        ({"crop": 0}, "--crop is 0; expected 1 at least"),
        ({"stride": -1}, "--stride is -1; expected 1 at least"),
        ({"stride": 65}, r"stride is 65; expected 1 to crop \(64\)"),
    ],
)
def test_mistakes_are_refused_before_anything_is_written(model, tmp_path, options, message):
    noise().save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "a.png", tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_model_whose_ids_are_no_classes_is_refused(model, tmp_path):
    noise().save(tmp_path / "a.png")
    model.config.id2label = {1: "road", 2: "car", 3: "sky"}
    with pytest.raises(ValueError, match="--model any: id2label has the ids 1, 2, 3; expected 0 to 2"):
        run(tmp_path / "a.png", tmp_path / "out")
