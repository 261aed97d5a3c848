"""rein_hf.views: exact colours and sizes of pictures, and the colours that plots must show."""

import numpy as np
import pytest
import torch
from PIL import Image

import rein_hf
from rein_hf.labels import CITYSCAPES
from rein_hf.views import JPEG_SIDE, colorize, contact_sheet, overlay, save_picture
from rein_hf.views.plots import plot_class_histogram, plot_confusion, plot_curves, plot_iou


def test_colours_are_cityscapes_own():
    label = np.array([[0, 1, 2, 3, 4, 5, 6, 7, 8, 9], [10, 11, 12, 13, 14, 15, 16, 17, 18, 255]], np.uint8)
    picture = colorize(label)
    assert (picture.mode, picture.size) == ("RGB", (10, 2))
    found = np.asarray(picture).reshape(20, 3).tolist()
    # written out once more, not the table of the code
    assert found == [
        *([128, 64, 128], [244, 35, 232], [70, 70, 70], [102, 102, 156], [190, 153, 153], [153, 153, 153]),
        *([250, 170, 30], [220, 220, 0], [107, 142, 35], [152, 251, 152], [70, 130, 180], [220, 20, 60]),
        *([255, 0, 0], [0, 0, 142], [0, 0, 70], [0, 60, 100], [0, 80, 100], [0, 0, 230], [119, 11, 32]),
        [0, 0, 0],
    ]
    assert list(CITYSCAPES)[13] == "car" and list(CITYSCAPES)[18] == "bicycle"
    assert rein_hf.colorize is colorize and rein_hf.overlay is overlay


def test_another_palette():
    picture = colorize(np.array([[0, 1, 2]]), [(1, 2, 3), (4, 5, 6)])
    assert np.asarray(picture).tolist() == [[[1, 2, 3], [4, 5, 6], [0, 0, 0]]]


@pytest.mark.parametrize(
    ("opacity", "expected"), [(0.0, (200, 100, 0)), (1.0, (128, 64, 128)), (0.25, (182, 91, 32)), (0.5, (164, 82, 64))]
)
def test_overlay(opacity, expected):
    photo, label = Image.new("RGB", (4, 3), (200, 100, 0)), np.zeros((3, 4), np.uint8)
    picture = overlay(photo, label, opacity=opacity)
    assert picture.size == (4, 3) and picture.getpixel((3, 2)) == expected


def test_overlay_by_default_is_half_and_of_any_mode():
    label = np.full((3, 4), 1, np.uint8)
    picture = overlay(Image.new("L", (4, 3), 100), Image.fromarray(label), [(0, 0, 0), (200, 0, 50)])
    assert picture.mode == "RGB" and picture.getpixel((0, 0)) == (150, 50, 75)


def test_overlays_of_all_that_is_segmented(tmp_path):
    pixels, label = np.random.default_rng(0).integers(0, 256, (3, 4, 3), dtype=np.uint8), np.ones((3, 4), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    expected = overlay(Image.fromarray(pixels), label).tobytes()
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    for photo in (tmp_path / "photo.png", str(tmp_path / "photo.png"), pixels, pixels / 255, tensor, tensor / 255):
        assert overlay(photo, label).tobytes() == expected
    with pytest.raises(TypeError, match="A photo is a bytes; expected a path"):
        overlay(b"photo", label)


@pytest.mark.parametrize("opacity", [2, -1, float("nan")])
def test_opacities_that_are_no_share_are_refused(opacity):
    with pytest.raises(ValueError, match=rf"opacity is {opacity}; expected 0 .* to 1"):
        overlay(Image.new("RGB", (4, 3)), np.zeros((3, 4), np.uint8), opacity=opacity)


def test_contact_sheet():
    """A bar of titles, then per row a bar with its name and the pictures, scaled to one width."""
    red, blue = Image.new("RGB", (200, 100), (255, 0, 0)), Image.new("RGB", (50, 50), (0, 0, 255))
    sheet = contact_sheet([("first", [red, red]), ("second", [blue, red])], ["image", "truth"], width=80)
    assert sheet.size == (160, 24 + (24 + 40) + (24 + 80))
    assert [sheet.getpixel((x, 24 + 24 + 20)) for x in (40, 120)] == [(255, 0, 0)] * 2
    assert [sheet.getpixel((x, 24 + 64 + 24 + 20)) for x in (40, 120)] == [(0, 0, 255), (255, 0, 0)]
    assert sheet.getpixel((120, 24 + 64 + 24 + 60)) == (255, 255, 255)  # below the flatter picture
    pixels = np.asarray(sheet)
    for top, left in ((0, 0), (0, 80), (24, 0), (88, 0)):
        assert (pixels[top : top + 24, left : left + 80] < 128).all(-1).any(), "text"
    assert (pixels[24:48, 80:] == 255).all()


def colours(path) -> set[tuple[int, ...]]:
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        return {colour for _, colour in picture.convert("RGB").getcolors(2**24)}


def test_plot_iou(tmp_path):
    path = tmp_path / "iou.png"
    plot_iou({"a": {"road": 0.9, "sky": float("nan")}, "b": {"road": 0.4, "sky": 0.2}}, "streets", path)
    first = colours(path)
    assert {(31, 119, 180), (255, 127, 14)} <= first  # a bar of each model
    plot_iou({"a": {"road": 0.9, "sky": float("nan")}}, "streets", path)
    assert (31, 119, 180) in colours(path) and (255, 127, 14) not in colours(path)


@pytest.mark.filterwarnings("error")
def test_plot_confusion(tmp_path):
    """Shares of each row; a row of a class that never occurs stays white."""
    path, blue = tmp_path / "confusion.png", (8, 48, 107)
    plot_confusion(np.array([[0, 8], [0, 9]]), ["road", "sky"], "streets", path)
    assert blue in colours(path)
    plot_confusion(np.array([[1, 1], [0, 0]]), ["road", "sky"], "streets", path)
    assert blue not in colours(path) and len(colours(path)) > 2


@pytest.mark.filterwarnings("ignore:Mean of empty slice")
def test_plot_iou_of_nothing_counted(tmp_path):
    plot_iou({"a": {"road": float("nan")}}, "streets", tmp_path / "iou.png")
    assert (tmp_path / "iou.png").is_file()


def test_classes_have_the_colours_of_their_names():
    from rein_hf.labels import palette_of

    colours = palette_of(["sky", "tram", "car", "cow"])
    assert colours[0] == (70, 130, 180) and colours[2] == (0, 0, 142)
    assert len(set(colours)) == 4 and all(0 <= value <= 255 for colour in colours for value in colour)


def test_pictures_are_upright(tmp_path):
    """An overlay of what `segment` gives, which is a map of the upright photo."""
    photo = Image.new("RGB", (4, 2), (200, 100, 0))
    photo.putpixel((0, 0), (0, 0, 0))
    photo.getexif()[0x0112] = 6  # to be turned clockwise: the first pixel comes to the upper right
    picture = overlay(photo, np.full((4, 2), 1, np.uint8), [(0, 0, 0), (100, 100, 100)])
    assert picture.size == (2, 4)
    assert picture.getpixel((1, 0)) == (50, 50, 50) and picture.getpixel((0, 0)) == (150, 100, 50)
    photo.save(tmp_path / "photo.png", exif=photo.getexif())
    again = overlay(tmp_path / "photo.png", np.full((4, 2), 1, np.uint8), [(0, 0, 0), (100, 100, 100)])
    assert again.tobytes() == picture.tobytes()
    with pytest.raises(ValueError, match="label is a map of 4x2 pixels; expected 2x4, the size of the upright image"):
        overlay(photo, np.zeros((2, 4), np.uint8))


def test_more_colours_than_ids():
    with pytest.raises(ValueError, match="palette has 256 colours; expected 255 at most"):
        colorize(np.zeros((1, 1), np.uint8), [(0, 0, 0)] * 256)
    most = colorize(np.array([[254, 255]], np.uint8), [(1, 2, 3)] * 255)
    assert np.asarray(most).tolist() == [[[1, 2, 3], [0, 0, 0]]]


def test_a_matrix_of_classes_of_one_name(tmp_path):
    with pytest.raises(ValueError, match=r"^classes: several classes have one name: {'road': \[0, 1\]}"):
        plot_confusion(np.eye(2), ["road", "road"], "streets", tmp_path / "confusion.png")


def test_pictures_that_jpeg_does_not_hold(tmp_path):
    picture = Image.new("RGB", (JPEG_SIDE + 1, 1))
    with pytest.raises(ValueError, match="wide.JPG would be 65501x1 pixels; JPEG holds sides of 65500"):
        save_picture(picture, tmp_path / "wide.JPG")
    assert not list(tmp_path.iterdir())
    save_picture(picture, tmp_path / "wide.png")
    save_picture(picture.crop((0, 0, JPEG_SIDE, 1)), tmp_path / "wide.jpg")
    assert Image.open(tmp_path / "wide.jpg").size == (65500, 1)


def test_legends_cover_nothing(tmp_path):
    """Two data sets with bars of all heights: no bar is hidden, the legend is above or below all of them."""
    path, orange = tmp_path / "plot.png", (255, 127, 14)
    names = [f"class {index}" for index in range(19)]
    plot_class_histogram({"a": dict.fromkeys(names, 1.0), "b": dict.fromkeys(names, 1.0)}, path)
    with Image.open(path) as picture:
        pixels = (np.asarray(picture.convert("RGB")) == orange).all(-1)
    rows = pixels.sum(1)
    blocks = np.flatnonzero(np.diff(np.concatenate([[0], rows > 0, [0]]).astype(int)))
    assert len(blocks) == 4  # the legend's box, a gap, then the bars
    widths = rows[blocks[2] : blocks[3]]
    assert widths.min() == widths.max()  # in no line is a part of a bar covered
    plot_iou({"a": dict.fromkeys(names, 1.0), "b": dict.fromkeys(names, 1.0)}, "streets", path)
    with Image.open(path) as picture:
        rows = (np.asarray(picture.convert("RGB")) == orange).all(-1).sum(1)
    blocks = np.flatnonzero(np.diff(np.concatenate([[0], rows > 0, [0]]).astype(int)))
    assert len(blocks) == 4 and blocks[1] < blocks[2]


def test_an_absent_class_is_named_in_the_plot(tmp_path):
    """Its place is not empty as that of a class which is never right."""
    pictures = []
    for value in (0.0, float("nan"), float("nan")):
        plot_iou({"a": {"road": 0.9, "sky": value}}, "streets", tmp_path / "iou.png")
        with Image.open(tmp_path / "iou.png") as picture:
            width, height = picture.size  # the right half, below the middle and above the axis
            pictures.append(np.asarray(picture.convert("L").crop((width // 2, height // 2, width - 60, height - 140))))
    zero, absent, again = pictures
    assert np.array_equal(absent, again) and (zero < 200).sum() == 0 < 50 < (absent < 200).sum()


def test_plot_curves(tmp_path):
    path = tmp_path / "curves.png"
    plot_curves([(50, 3.0), (100, 2.0)], {"val": [(100, 40.0)], "night": [(100, 20.0)]}, path)
    both = Image.open(path).size
    assert {(128, 128, 128), (31, 119, 180), (255, 127, 14)} <= colours(path)
    plot_curves([(50, 3.0)], {}, path)
    assert Image.open(path).size == (both[0], both[1] // 2) and (31, 119, 180) not in colours(path)
    plot_curves([], {"val": [(100, float("nan"))]}, path)
    assert Image.open(path).size == (both[0], both[1] // 2)
