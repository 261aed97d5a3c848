"""The painted streets: reproducible, exact labels, the same street in every weather, resumable writing."""

import numpy as np
import pytest
from PIL import Image

from recipes.demo.paint_streets import DOMAINS, paint, write_dataset
from recipes.demo.paint_streets.canvas import BUILDING, SIGN, SKY, Place
from recipes.demo.paint_streets.street import Street


SMALL = (128, 64)


def test_same_arguments_give_the_same_bytes():
    for domain in ("day", "night"):
        first, again = paint(3, domain, SMALL), paint(3, domain, SMALL)
        assert [image.tobytes() for image in first] == [image.tobytes() for image in again]
    assert paint(3, "day", SMALL)[0].tobytes() != paint(4, "day", SMALL)[0].tobytes()


def test_weather_changes_the_picture_but_not_the_label():
    scenes = {domain: paint(5, domain, SMALL) for domain in DOMAINS}
    assert len({label.tobytes() for _, label in scenes.values()}) == 1
    assert len({image.tobytes() for image, _ in scenes.values()}) == len(DOMAINS)
    for image, label in scenes.values():
        assert (image.mode, image.size, label.mode, label.size) == ("RGB", SMALL, "L", SMALL)


def test_every_class_occurs_and_no_other_id():
    ids = set()
    for seed in range(60):
        ids |= set(np.unique(np.asarray(paint(seed, "day", SMALL)[1])).tolist())
    assert ids == set(range(19))


def test_near_things_hide_far_ones_in_picture_and_label():
    street = Street(np.random.default_rng(0), SMALL)
    kinds = {}

    def board(canvas, place, rng, colour, label, size):
        kinds[label] = colour
        canvas.face(place.upright(0, -size, size, 0, 2 * size), colour, label)

    street.add(board, Place(0, 10), (255, 0, 0), SIGN, 0.5)  # added first, but it has to be painted last
    street.add(board, Place(0, 20), (0, 0, 255), BUILDING, 4.0)
    street.paint_items()
    rgb, label = np.asarray(street.canvas.rgb), np.asarray(street.canvas.maps)[..., 0]
    assert set(np.unique(label).tolist()) == {SIGN, BUILDING, SKY}
    for kind, colour in kinds.items():
        assert (rgb[label == kind] == colour).all()


def test_weather_shifts_are_visible():
    day, fog, night, _, snow = (np.asarray(paint(1, domain, SMALL)[0], float) for domain in DOMAINS)
    assert night.mean() < 0.5 * day.mean()
    assert fog.std() < day.std()
    assert snow[SMALL[1] // 2 :].mean() > day[SMALL[1] // 2 :].mean()


def test_unknown_domain_is_named():
    with pytest.raises(ValueError, match="'hail'.*day, fog, night, rain, snow"):
        paint(0, "hail", SMALL)


def test_write_dataset_resumes(tmp_path):
    write_dataset(tmp_path, "day", range(3), SMALL)
    files = sorted(tmp_path.rglob("*.png"))
    assert [path.name for path in files] == [f"day_{seed:05d}.png" for seed in range(3)] * 2
    lost = tmp_path / "images" / "day_00001.png"
    content = lost.read_bytes()
    times = {path: path.stat().st_mtime_ns for path in files}
    lost.unlink()
    write_dataset(tmp_path, "day", range(3), SMALL)
    assert lost.read_bytes() == content
    assert {path for path in files if path.stat().st_mtime_ns != times[path]} == {lost}
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == files
    with Image.open(tmp_path / "labels" / "day_00002.png") as label:
        assert label.mode == "L"
        assert label.tobytes() == paint(2, "day", SMALL)[1].tobytes()
