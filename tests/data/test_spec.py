"""The one-line description of a domain: names of folders may hold what it uses itself."""

import pytest
from PIL import Image

from rein_hf.data import load_domain
from rein_hf.data.spec import DomainSpec, parse_spec


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("gta5:data/GTA5", DomainSpec("data/GTA5", None, "gta5", None, {})),
        (
            "x=cityscapes:data/c@train#every=16#size=4x3",
            DomainSpec("data/c", "x", "cityscapes", "train", {"every": "16", "size": "4x3"}),
        ),
        ("camvid=../data/camvid@test", DomainSpec("../data/camvid", "camvid", None, "test", {})),
        ("hub:user/set@a+b#image=c@d", DomainSpec("user/set", None, "hub", "a+b", {"image": "c@d"})),
        ("a@b@c", DomainSpec("a@b", None, None, "c", {})),
        ("data@ home", DomainSpec("data@ home", None, None, None, {})),
        (r"C:\data@val", DomainSpec(r"C:\data", None, None, "val", {})),
        ("@val", DomainSpec("@val", None, None, None, {})),
        ("é=über/Straße", DomainSpec("über/Straße", "é", None, None, {})),
        ("a\0b", DomainSpec("a\0b", None, None, None, {})),
        ("a" * 5000, DomainSpec("a" * 5000, None, None, None, {})),
    ],
)
def test_parts_of_a_description_whose_path_does_not_exist(spec, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert parse_spec(spec) == expected


@pytest.mark.parametrize(
    ("folder", "spec", "expected"),
    [
        ("data@home", "data@home", DomainSpec("data@home", None, None, None, {})),
        ("data@home", "data@home@val", DomainSpec("data@home", None, None, "val", {})),
        ("data@home", "x=gta5:data@home#every=2", DomainSpec("data@home", "x", "gta5", None, {"every": "2"})),
        ("data", "data@home", DomainSpec("data", None, None, "home", {})),
        ("C#", "C#", DomainSpec("C#", None, None, None, {})),
        ("C#", "C#@val#every=2", DomainSpec("C#", None, None, "val", {"every": "2"})),
        ("C#/a=b", "C#/a=b@val", DomainSpec("C#/a=b", None, None, "val", {})),
        ("a=b", "a=b", DomainSpec("a=b", None, None, None, {})),
        ("a=b", "x=a=b", DomainSpec("a=b", "x", None, None, {})),
        ("gta5:old", "gta5:old", DomainSpec("gta5:old", None, None, None, {})),
    ],
)
def test_the_longest_path_that_exists_counts(folder, spec, expected, tmp_path, monkeypatch):
    (tmp_path / folder).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert parse_spec(spec) == expected


def test_of_two_folders_the_longer_name_counts(tmp_path, monkeypatch):
    for name in ("data", "data@val"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    assert parse_spec("data@val") == DomainSpec("data@val", None, None, None, {})
    assert parse_spec("data@test") == DomainSpec("data", None, None, "test", {})


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("", "is not of the form"),
        ("#every=2", "is not of the form"),
        ("a#every", "has the option 'every'; expected OPTION=VALUE"),
        ("a#every=2#every=3", "has the option 'every' twice"),
    ],
)
def test_mistakes(spec, message):
    with pytest.raises(ValueError, match=message):
        parse_spec(spec)


@pytest.mark.parametrize("name", ["data@home", "C#", "a=b"])
def test_folders_of_such_names_are_loaded(name, tmp_path):
    for folder in ("images", "labels"):
        (tmp_path / name / folder).mkdir(parents=True)
        Image.new("L", (4, 3)).save(tmp_path / name / folder / "0.png")
    domain = load_domain(f"{tmp_path / name}#every=1")
    assert domain.name == name and len(domain.dataset) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [("#every=²", "every is '²'; expected a number"), ("#size=0x5", "size is '0x5'; expected WIDTHxHEIGHT")],
)
def test_numbers_that_are_none(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        load_domain(f"{tmp_path}{options}")
