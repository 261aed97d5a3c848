"""rein_hf.views.legend, and colours of one's own: in a folder's classes.json, in a model's configuration, in files."""

import json

import numpy as np
import pytest
from PIL import Image, ImageDraw

import rein_hf
from rein_hf.data import load_folder
from rein_hf.labels import palette_of, palette_of_model
from rein_hf.views import contact_sheet, draw_legend, legend_of, merge_legends, palette_image, with_legend
from rein_hf.views.legend import font_for


RED, GREEN, BLUE = (255, 0, 0), (0, 200, 0), (0, 0, 255)


def drawn(text: str) -> bytes:
    picture = Image.new("L", (60, 40))
    ImageDraw.Draw(picture).text((5, 5), text, fill=255, font=font_for(text, 24))
    return picture.tobytes()


@pytest.mark.parametrize("letters", ["ßäŁžø", "дорога", "δρόμος", "طريق"])
def test_the_font_has_every_letter(letters):
    """A font without a letter draws the same box for each."""
    assert len({drawn(letter) for letter in letters}) == len(set(letters))
    assert drawn(letters[0]) != drawn("\ufff0")  # which no font has
    assert font_for("road", 15).getname()[0] == "DejaVu Sans"


def test_a_legend_has_a_box_and_a_name_for_each_class():
    strip = draw_legend([("road", RED), ("Straße", BLUE)], 300, size=15)
    assert strip.size == (300, 24) and strip.mode == "RGB"
    assert strip.getpixel((10, 10)) == RED
    colours = {colour for _, colour in strip.getcolors(2**16)}
    assert {RED, BLUE, (0, 0, 0)} < colours
    narrow = draw_legend([("road", RED), ("Straße", BLUE)], 90, size=15)
    assert narrow.size == (90, 48) and narrow.getpixel((10, 10)) == RED and narrow.getpixel((10, 34)) == BLUE
    assert draw_legend([], 90).size == (90, 0)


def test_a_legend_shows_what_occurs():
    labels = [np.array([[0, 0]]), np.array([[2, 255]])]
    assert legend_of(labels[:1], ["a", "b", "c"], [RED, GREEN, BLUE]) == [("a", RED)]
    assert legend_of(labels, ["a", "b", "c"], [RED, GREEN, BLUE]) == [
        *([("a", RED), ("c", BLUE), ("(does not count)", (0, 0, 0))])
    ]
    assert merge_legends([[("a", RED), ("c", BLUE)], [("b", [0, 200, 0]), ("a", RED)]]) == [
        *([("a", RED), ("c", BLUE), ("b", GREEN)])
    ]


def test_a_legend_covers_nothing():
    picture = Image.new("RGB", (120, 30), GREEN)
    joined = with_legend(picture, [("road", RED)], size=15)
    assert joined.size == (120, 54) and joined.crop((0, 0, 120, 30)).getcolors() == [(120 * 30, GREEN)]
    assert joined.getpixel((10, 40)) == RED
    sheet = contact_sheet([("one", [picture])], ["image"], width=120, legend=[("road", RED)])
    plain = contact_sheet([("one", [picture])], ["image"], width=120)
    assert sheet.height == plain.height + 24
    assert sheet.crop((0, 0, *plain.size)).tobytes() == plain.tobytes()


def test_a_label_map_with_its_colours_in_the_file(tmp_path):
    label = np.array([[0, 1, 2], [2, 1, 255]], np.uint8)
    palette_image(label, [RED, GREEN, BLUE]).save(tmp_path / "label.png")
    with Image.open(tmp_path / "label.png") as picture:
        assert picture.mode == "P" and np.array_equal(np.asarray(picture), label)
        rgb = picture.convert("RGB")
    assert rgb.tobytes() == rein_hf.colorize(label, [RED, GREEN, BLUE]).tobytes()
    assert rgb.getpixel((2, 1)) == (0, 0, 0)


def test_a_model_keeps_colours_of_its_own(build, tmp_path):
    """In its configuration, which an adapter records."""
    palette = [(1, 2, 3), (200, 100, 0), (9, 9, 9)]
    model = rein_hf.add_rein(build(palette=palette))
    model.save_pretrained(tmp_path / "adapter")
    found = rein_hf.from_pretrained(tmp_path / "adapter")
    assert found.config.palette == [[1, 2, 3], [200, 100, 0], [9, 9, 9]]
    assert palette_of_model(found.config) == palette
    photo, labels = Image.new("RGB", (3, 1), (100, 100, 100)), np.array([[1, 0, 2]], np.uint8)
    assert rein_hf.overlay(photo, labels, found, opacity=1.0).getpixel((0, 0)) == (200, 100, 0)
    assert rein_hf.overlay(photo, labels, found).tobytes() == rein_hf.overlay(photo, labels, palette).tobytes()
    assert rein_hf.colorize(labels, found).getpixel((2, 0)) == (9, 9, 9)
    plain = rein_hf.add_rein(build())  # a model of other colours takes the adapter nevertheless
    plain.load_adapter(tmp_path / "adapter", "other")
    assert palette_of_model(plain.config) == palette_of(["road", "car", "sky"])
    assert not hasattr(plain.config, "palette")


@pytest.mark.parametrize(
    ("palette", "message"),
    [
        ([(1, 2, 3)], r"palette is not a colour for each of the 3 classes; found \[\(1, 2, 3\)\]. Expected a list of"),
        ([(1, 2, 3), (1, 2, 256), (0, 0, 0)], r"colour 1 is \(1, 2, 256\)"),
        ([(1, 2, 3), "red", (0, 0, 0)], "colour 1 is 'red'"),
        ([(1, 2, 3), (0.5, 0.5, 0.5), (0, 0, 0)], "colour 1 is"),
    ],
)
def test_colours_that_are_none(build, palette, message):
    with pytest.raises(ValueError, match=message):
        build(palette=palette)


def write_folder(root, **content):
    for name in ("images", "labels"):
        (root / name).mkdir(parents=True)
        Image.new("L", (8, 8)).save(root / name / "a.png")
    (root / "classes.json").write_text(json.dumps({"names": ["a", "b"], "ignore_id": 255, **content}))
    return root


def test_colours_of_a_folder(tmp_path):
    domain = load_folder(write_folder(tmp_path / "own", palette=[[255, 0, 0], [0, 200, 0]]))
    assert domain.palette == [RED, GREEN]
    assert load_folder(write_folder(tmp_path / "plain")).palette == palette_of(["a", "b"])
    with pytest.raises(ValueError, match="classes.json: palette is not a colour for each of the 2 classes"):
        load_folder(write_folder(tmp_path / "wrong", palette=[[255, 0, 0]]))
