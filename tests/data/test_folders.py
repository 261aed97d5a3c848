"""Folders of data: every readable file is found, nothing is passed over in silence, names in any spelling."""

import json
import unicodedata
import warnings
from pathlib import Path

import pytest
from PIL import Image

from rein_hf.data import Domain, load_domain, load_folder
from rein_hf.labels import CITYSCAPES_CLASSES


def write(root: Path, *images: str, labels: tuple[str, ...] | None = None) -> Path:
    """Files of 4x3 pixels: images of value 50, labels of class 1."""
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for name in images:
        Image.new("RGB", (4, 3), (50, 50, 50)).save(root / "images" / name)
    for name in [f"{Path(name).stem}.png" for name in images] if labels is None else labels:
        Image.new("L", (4, 3), 1).save(root / "labels" / name)
    return root


def names(domain: Domain) -> list[str]:
    return list(domain.dataset.with_format(None)["name"])


def load_silently(*arguments) -> Domain:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return load_folder(*arguments)


def test_all_formats_are_found(tmp_path):
    files = ["a.jpg", "b.webp", "c.tif", "d.TIFF", "e.bmp", "f.gif", "g.PPM", "h.JPEG", "i.png", "j.jfif"]
    domain = load_silently(write(tmp_path, *files))
    assert names(domain) == list("abcdefghij")
    for sample in domain.dataset:
        assert sample["image"].getpixel((0, 0)) == (50, 50, 50) and sample["label"].getpixel((3, 2)) == 1


def test_hidden_files_are_passed_over(tmp_path):
    write(tmp_path, "a.jpg")
    for name in ("images/._a.jpg", "images/.DS_Store", "images/Thumbs.db", "labels/._a.png"):
        (tmp_path / name).write_bytes(b"no image")
    assert names(load_silently(tmp_path)) == ["a"]


def test_whatever_is_not_used_is_counted_and_named(tmp_path):
    write(tmp_path, "a.jpg", "b.jpg", labels=("a.png", "b.png", "x.png", "y.png"))
    for name in ("images/c.heic", "images/readme.txt", "labels/b.tif"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "images" / "berlin").mkdir()
    (tmp_path / "index.csv").write_text("stem,split\na,train\n")
    with pytest.warns(UserWarning) as caught:
        assert names(load_folder(tmp_path)) == ["a"]
    assert sorted(str(warning.message) for warning in caught) == [
        f"{tmp_path}: 1 file(s) in labels/ that are no PNG, not used: b.tif.",
        f"{tmp_path}: 1 image(s) that index.csv does not list, not used: b.jpg.",
        f"{tmp_path}: 2 label(s) without image, not used: x.png, y.png.",
        f"{tmp_path}: 3 file(s) in images/ of a format that is not read, not used: berlin/, c.heic, readme.txt.",
    ]


def test_an_image_of_another_split_is_used(tmp_path):
    write(tmp_path, "a.jpg", "b.jpg")
    (tmp_path / "index.csv").write_text("stem,split\na,train\nb,test\n")
    assert names(load_silently(tmp_path, "test")) == ["b"]


def test_labels_that_are_no_png_are_named(tmp_path):
    write(tmp_path, "a.jpg", labels=("a.tif",))
    with pytest.raises(FileNotFoundError, match=r"1 of 1 images have no label: .*; .*labels holds .* no PNG: a.tif"):
        load_folder(tmp_path)


def test_no_image_but_other_files(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.heic").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"images holds no image .*; found 1 other file\(s\): a.heic"):
        load_folder(tmp_path)


def test_suffixes_in_capital_letters(tmp_path):
    domain = load_silently(write(tmp_path, "a.JPG", "b.Png", labels=("a.PNG", "b.PNG")))
    assert names(domain) == ["a", "b"] and domain.dataset[0]["label"].getpixel((0, 0)) == 1


@pytest.mark.parametrize(("folder", "files"), [("images", ("a.jpg", "a.webp")), ("labels", ("a.png", "a.PNG"))])
def test_two_files_of_one_stem(tmp_path, folder, files):
    write(tmp_path, *(files if folder == "images" else ["a.jpg"]), labels=files if folder == "labels" else None)
    with pytest.raises(ValueError, match=rf"{folder} holds several {folder} of one stem: .*a\.\w+, .*a\.\w+"):
        load_folder(tmp_path)


@pytest.mark.parametrize("image", ["NFC", "NFD"])
@pytest.mark.parametrize("label", ["NFC", "NFD"])
@pytest.mark.parametrize("index", ["NFC", "NFD", None])
def test_accents_in_both_spellings_of_unicode(tmp_path, image, label, index):
    word = "Straße_é"
    spelled = {form: unicodedata.normalize(form, word) for form in ("NFC", "NFD")}
    write(tmp_path, f"{spelled[image]}.jpg", "b.jpg", labels=(f"{spelled[label]}.png", "b.png"))
    if index:
        (tmp_path / "index.csv").write_text(f"stem,split\n{spelled[index]},train\nb,train\n", encoding="utf-8")
    assert sorted(names(load_silently(tmp_path))) == [spelled["NFC"], "b"]
    assert names(load_domain(f"{tmp_path}#exclude={spelled['NFD']}")) == ["b"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_text_files_in_utf_8(tmp_path, encoding):
    write(tmp_path, "a.jpg")
    classes = json.dumps({"names": ["Straße", "Gehweg"], "ignore_id": 255}, ensure_ascii=False)
    (tmp_path / "classes.json").write_text(classes, encoding=encoding)
    (tmp_path / "index.csv").write_text("stem,split,Ort\na,train,Köln\n", encoding=encoding)
    domain = load_silently(tmp_path)
    assert domain.classes == ("Straße", "Gehweg")
    assert domain.dataset[0]["domain"] == f"{tmp_path.name}/Köln"


@pytest.mark.parametrize("name", ["classes.json", "index.csv"])
def test_bytes_that_are_no_utf_8(tmp_path, name):
    write(tmp_path, "a.jpg")
    (tmp_path / name).write_bytes('{"names": ["Straße"]}'.encode("latin-1"))
    with pytest.raises(ValueError, match=f"{name} is no text in UTF-8: "):
        load_folder(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"names": ["road", "sky", "road"], "ignore_id": 255}, r"several classes have one name: \{'road': \[0, 2\]\}"),
        (
            {"names": [str(index) for index in range(256)], "ignore_id": 255},
            "there are 256 classes; expected 1 to 255",
        ),
        ({"names": [], "ignore_id": 255}, "there are 0 classes; expected 1 to 255"),
        ({"names": ["road", 1], "ignore_id": 255}, r"the classes are \['road', 1\]; expected a list of their names"),
        ({"names": {"0": "road"}, "ignore_id": 255}, "expected a list of their names"),
        ({"names": ["road"], "ignore_id": 256}, "ignore_id is 256; expected a number from 0 to 255"),
        ({"names": ["road"], "ignore_id": True}, "ignore_id is True; expected a number from 0 to 255"),
        ({"names": ["road"], "ignore_id": 255, "train_id_to_class": [False] * 19}, "expected one of the 1 classes"),
    ],
)
def test_classes_that_cannot_be_told_apart(tmp_path, content, message):
    write(tmp_path, "a.jpg")
    (tmp_path / "classes.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"classes.json: .*{message}"):
        load_folder(tmp_path)


def test_255_classes(tmp_path):
    write(tmp_path, "a.jpg")
    Image.new("L", (4, 3), 254).save(tmp_path / "labels" / "a.png")
    classes = [f"class {index}" for index in range(255)]
    (tmp_path / "classes.json").write_text(json.dumps({"names": classes, "ignore_id": 255}))
    domain = load_folder(tmp_path)
    assert domain.dataset[0]["label"].getpixel((0, 0)) == 254 and domain.assumption is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"classes": ("road", "road")}, "Domain x: several classes have one name"),
        ({"classes": ()}, "Domain x: there are 0 classes"),
        ({"classes": tuple(map(str, range(300)))}, "Domain x: there are 300 classes"),
        ({"classes": ("a",), "class_of_train_id": (0,) * 18}, "Domain x: class_of_train_id is .*for each of the 19"),
        ({"classes": ("a",), "class_of_train_id": (1,) * 19}, "Domain x: class_of_train_id is .*one of the 1 classes"),
        ({"scored": ("road", "lawn")}, r"Domain x: scored is \('road', 'lawn'\); expected different ones of its"),
        ({"scored": ("road", "road")}, "Domain x: scored is"),
        ({"scored": ()}, "Domain x: scored is"),
    ],
)
def test_domains_that_cannot_be(arguments, message):
    with pytest.raises(ValueError, match=message):
        Domain("x", None, **arguments)


def test_the_name_of_the_folder_one_is_in(tmp_path, monkeypatch):
    monkeypatch.chdir(write(tmp_path / "streets", "a.jpg"))
    assert load_folder(".").name == "streets"


def test_a_line_of_the_index_with_too_many_columns(tmp_path):
    write(tmp_path, "a.jpg")
    (tmp_path / "index.csv").write_text("stem,split\na,train\nb,c,train\n")
    with pytest.raises(ValueError, match=r"index.csv has more than 2 columns in the lines \[3\]"):
        load_folder(tmp_path)


@pytest.mark.parametrize("split", [None, "train", "val"])
def test_an_image_that_the_index_lists_twice(tmp_path, split):
    """It would count twice or, in two splits, be trained and evaluated on. Blank lines count as in an editor."""
    write(tmp_path, "a.jpg", "é.jpg", "c.jpg")
    accent = unicodedata.normalize("NFD", "é")
    index = f"stem,split\na,train\n\né,train\na,val\nc,val\n{accent},train\n"
    (tmp_path / "index.csv").write_text(index, encoding="utf-8")
    with pytest.raises(ValueError, match=r"index.csv lists 2 image\(s\) more than once: ") as error:
        load_folder(tmp_path, split)
    assert ": a in the lines [2, 5]; é in the lines [4, 7]. Expected one line for each image" in str(error.value)


def test_without_classes_ids_are_cityscapes_and_that_is_said(tmp_path):
    domain = load_folder(write(tmp_path, "a.jpg"))
    assert domain.classes == CITYSCAPES_CLASSES
    assert domain.assumption == (
        f"{tmp_path} has no classes.json: the ids in its labels are taken for the train ids of Cityscapes' 19 classes "
        "(0 road, 1 sidewalk, ... 18 bicycle; 255 is ignored)."
    )
