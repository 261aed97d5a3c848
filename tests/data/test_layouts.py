"""rein_hf.layouts: miniatures of every official download, every id of every table, and what a bad one says."""

import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rein_hf.data import load_domain, load_layout
from rein_hf.data.layouts import LAYOUTS
from rein_hf.labels import CAMVID_CLASSES, CITYSCAPES_CLASSES, SUBSETS
from tests.support.miniatures import CAMVID_KINDS, MAPILLARY_CLASSES, PATHS, write_label, write_miniature


# What the paper's protocol says of every id, written out by name and not by the tables of the library.
CITYSCAPES_LABELS = """
unlabeled ego_vehicle rectification_border out_of_roi static dynamic ground road sidewalk parking rail_track building
wall fence guard_rail bridge tunnel pole polegroup traffic_light traffic_sign vegetation terrain sky person rider car
truck bus caravan trailer train motorcycle bicycle license_plate
""".split()
SYNTHIA_LABELS = """
void sky building road sidewalk fence vegetation pole car traffic_sign person bicycle motorcycle parking_slot road_work
traffic_light terrain rider truck bus train wall lane_marking
""".split()
MAPILLARY_GROUPS = {
    "road": "flat--road crosswalk-plain parking bike-lane service-lane marking--general crosswalk-zebra",
    "sidewalk": "flat--sidewalk barrier--curb pedestrian-area",
    "building": "structure--building",
    "wall": "barrier--wall",
    "fence": "barrier--fence",
    "pole": "support--pole utility-pole street-light",
    "traffic light": "traffic-light",
    "traffic sign": "traffic-sign--front traffic-sign--back traffic-sign-frame",
    "vegetation": "nature--vegetation",
    "terrain": "nature--terrain",
    "sky": "nature--sky",
    "person": "human--person",
    "rider": "bicyclist motorcyclist other-rider",
    "car": "vehicle--car",
    "truck": "vehicle--truck",
    "bus": "vehicle--bus",
    "train": "on-rails",
    "motorcycle": "vehicle--motorcycle",
    "bicycle": "vehicle--bicycle",
}
CAMVID_GROUPS = {
    "sky": "Sky",
    "building": "Building Wall Tunnel Archway Bridge",
    "pole": "Column_Pole TrafficCone",
    "road": "Road LaneMkgsDriv LaneMkgsNonDriv",
    "pavement": "Sidewalk ParkingBlock RoadShoulder",
    "tree": "Tree VegetationMisc",
    "sign": "SignSymbol Misc_Text TrafficLight",
    "fence": "Fence",
    "car": "Car SUVPickupTruck Truck_Bus Train OtherMoving",
    "pedestrian": "Pedestrian Child CartLuggagePram Animal",
    "bicyclist": "Bicyclist MotorcycleScooter",
}


def by_name(names: list[str]) -> list[int]:
    names = [name.replace("_", " ") for name in names]
    return [CITYSCAPES_CLASSES.index(name) if name in CITYSCAPES_CLASSES else 255 for name in names]


def by_group(names: list[str], groups: dict[str, str], match) -> list[int]:
    return [
        next((index for index, ends in enumerate(groups.values()) if any(match(name, e) for e in ends.split())), 255)
        for name in names
    ]


EXPECTED = {
    "gta5": by_name(CITYSCAPES_LABELS),
    "cityscapes": by_name(CITYSCAPES_LABELS),
    "synthia": by_name(SYNTHIA_LABELS),
    "urbansyn": [*range(19), 255],
    "bdd100k": [*range(19)],
    "acdc": [*range(19)],
    "mapillary": by_group(MAPILLARY_CLASSES, MAPILLARY_GROUPS, str.endswith),
    "camvid": by_group(CAMVID_KINDS, CAMVID_GROUPS, str.__eq__),
    "camvid_segnet": [*range(11), 255],
}
CASES = [(layout, split) for layout, splits in PATHS.items() for split in splits]


def spec(layout: str, root: Path, split: str = "", options: str = "") -> str:
    return f"{layout}:{root}{'@' + split if split else ''}{options}"


def load(*args):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".* holds .* of the .* images")
        return load_domain(spec(*args))


def all_ids(layout: str) -> np.ndarray:
    """A label map (2, 2 * ids) of blocks of 2 x 2 pixels: each id the data set has, and 255 where it knows that."""
    extra = [255] if layout in ("urbansyn", "bdd100k", "acdc") else []
    return np.repeat(np.repeat(np.array([[*range(len(EXPECTED[layout])), *extra]]), 2, 0), 2, 1)


def test_every_layout_has_a_miniature():
    assert LAYOUTS.keys() == PATHS.keys() == EXPECTED.keys()


@pytest.mark.parametrize("layout", EXPECTED)
def test_every_id_of_every_table(layout, tmp_path):
    """Read from the real file format, palette, 16 bits and colours included."""
    split = next(iter(PATHS[layout]))
    ids = all_ids(layout)
    write_miniature(layout, tmp_path, [ids], split)
    domain = load(layout, tmp_path, split)
    found = np.asarray(domain.dataset[0]["label"])
    step = 1 if LAYOUTS[layout].halved else 2
    expected = [*EXPECTED[layout], *[255] * (ids.shape[1] // 2 - len(EXPECTED[layout]))]
    assert found[0, ::step].tolist() == expected and (found == found[0]).all()
    classes = set(expected) - {255}
    named = domain.scored or domain.classes
    never = {"terrain", "truck", "train"} if layout == "synthia" else set()  # ids that its files do not hold
    assert {domain.classes[index] for index in classes} - never == set(named)


@pytest.mark.parametrize(("layout", "split"), CASES)
def test_splits_names_groups_and_sizes(layout, split, tmp_path):
    rng = np.random.default_rng(0)
    labels = [rng.integers(0, 11, (12 + 2 * index, 20)) for index in range(3)]
    pairs = write_miniature(layout, tmp_path, labels, split)
    domain = load(layout, tmp_path, split)
    half = 2 if layout == "mapillary" else 1
    assert domain.name == layout and len(domain.dataset) == 3
    columns = domain.dataset.with_format(None)
    assert sorted(file["path"] for file in columns["image"]) == sorted(str(image) for image, _ in pairs)
    labelled = split not in LAYOUTS[layout].unlabelled
    by_image = {str(image): (label, ids) for (image, label), ids in zip(pairs, labels, strict=True)}
    for sample, row in zip(domain.dataset, columns, strict=True):
        path, ids = by_image[row["image"]["path"]]
        assert sample["image"].size == (ids.shape[1] // half, ids.shape[0] // half)
        assert row["name"] in path.name
        if labelled:
            assert row["label"]["path"] == str(path)
            assert sample["label"].size == sample["image"].size and sample["label"].mode == "L"
        else:
            assert sample["label"] is None
    groups = {"acdc": {"fog", "night", "rain"}, "camvid": {"0001TP", "Seq05VD"}, "camvid_segnet": {"0001TP"}}
    expected = {f"{layout}/{group}" for group in groups.get(layout, ())} or {layout}
    assert set(columns["domain"]) == expected


def test_sizes_of_the_protocol(tmp_path):
    """Input of the evaluation: width and height that images are fitted into; labels keep their own size."""
    sizes = {layout: entry.size for layout, entry in LAYOUTS.items()}
    assert sizes == {
        **dict.fromkeys(LAYOUTS),
        "cityscapes": (1024, 512),
        "mapillary": (1024, 512),
        "acdc": (960, 540),
    }
    write_miniature("acdc", tmp_path, [np.zeros((4, 6), int)], "val")
    assert load("acdc", tmp_path, "val").size == (960, 540)
    assert load("acdc", tmp_path, "val", "#size=native").size is None
    assert load("acdc", tmp_path, "val", "#size=1280x720").size == (1280, 720)


def test_synthia_is_scored_on_its_own_classes(tmp_path):
    write_miniature("synthia", tmp_path, [np.zeros((4, 6), int)])
    domain = load("synthia", tmp_path)
    assert domain.classes == CITYSCAPES_CLASSES and len(domain.scored) == 16
    assert set(CITYSCAPES_CLASSES) - set(domain.scored) == {"terrain", "truck", "train"}
    assert set(domain.scored) - set(SUBSETS["synthia13"]) == {"wall", "fence", "pole"}


def test_camvid_counts_its_own_classes(tmp_path):
    write_miniature("camvid", tmp_path, [np.zeros((4, 6), int)])
    domain = load("camvid", tmp_path)
    assert domain.classes == CAMVID_CLASSES and len(domain.class_of_train_id) == 19
    roles = {"rider": "bicyclist", "truck": "car", "terrain": "tree", "wall": "building", "sidewalk": "pavement"}
    for name, own in roles.items():
        assert CAMVID_CLASSES[domain.class_of_train_id[CITYSCAPES_CLASSES.index(name)]] == own


def test_mapillary_is_halved(tmp_path):
    """The mean of 2 x 2 pixels of the image, one of 2 x 2 ids of the label; odd sides are rounded up in both."""
    ids = np.arange(35).reshape(5, 7) % 60
    image = np.zeros((5, 7, 3), np.uint8)
    image[:2, :2] = 40
    image[:2, 2:4, 0] = [[0, 100], [100, 200]]
    write_miniature("mapillary", tmp_path, [ids], "validation", [image])
    (path,) = (tmp_path / "validation" / "images").iterdir()
    Image.fromarray(image).save(path.with_suffix(".png"))  # JPEG would blur it
    path.with_suffix(".png").rename(path)
    sample = load("mapillary", tmp_path, "validation").dataset[0]
    assert sample["image"].size == sample["label"].size == (4, 3)
    found = np.asarray(sample["image"])
    assert found[0, 0].tolist() == [40, 40, 40] and found[0, 1].tolist() == [100, 0, 0]
    assert np.asarray(sample["label"])[0, 0] in [EXPECTED["mapillary"][index] for index in ids[:2, :2].ravel()]


def test_mapillary_beside_its_second_version(tmp_path):
    """The archive of v2.0 holds the labels of v1.2 in a folder of their own."""
    write_miniature("mapillary", tmp_path, [all_ids("mapillary")], "training")
    (tmp_path / "training" / "v1.2").mkdir()
    (tmp_path / "training" / "labels").rename(tmp_path / "training" / "v1.2" / "labels")
    (tmp_path / "config.json").rename(tmp_path / "config_v1.2.json")
    found = np.asarray(load("mapillary", tmp_path, "training").dataset[0]["label"])
    assert found[0].tolist() == EXPECTED["mapillary"]


def test_several_splits_at_once(tmp_path):
    for split, count in (("train", 2), ("val", 1)):
        write_miniature("bdd100k", tmp_path, [np.zeros((4, 6), int)] * count, split)
    assert [len(load("bdd100k", tmp_path, split).dataset) for split in ("train", "val", "train+val")] == [2, 1, 3]


def test_every_and_exclude(tmp_path):
    write_miniature("gta5", tmp_path, [np.zeros((4, 6), int)] * 7)

    def names(options):
        return load("gta5", tmp_path, "", options).dataset.with_format(None)["name"]

    assert names("#every=3") == ["00000", "00003", "00006"]
    assert names("#exclude=00001+00006") == ["00000", "00002", "00003", "00004", "00005"]
    assert names("#exclude=00000#every=3") == ["00001", "00004"]


def test_an_incomplete_download_is_said(tmp_path):
    write_miniature("cityscapes", tmp_path, [np.zeros((4, 6), int)], "val")
    with pytest.warns(UserWarning, match=f"{tmp_path} holds 1 of the 500 images of cityscapes val"):
        load_domain(f"cityscapes:{tmp_path}@val")


@pytest.mark.parametrize("lost", ["label", "image"])
@pytest.mark.parametrize("layout", ["gta5", "acdc", "synthia", "camvid"])
def test_half_a_pair(layout, lost, tmp_path):
    split = next(iter(PATHS[layout]))
    pairs = write_miniature(layout, tmp_path, [np.zeros((4, 6), int)] * 2, split)
    image, label = pairs[1]
    (label if lost == "label" else image).unlink()
    found, kept = ("1 of 2 images have no label", image) if lost == "label" else ("1 of 2 labels have no image", label)
    with pytest.raises(FileNotFoundError, match=f"{found}: \\['{kept}'\\]"):
        load(layout, tmp_path, split)


@pytest.mark.parametrize(("layout", "split"), CASES)
def test_an_empty_folder(layout, split, tmp_path):
    with pytest.raises(FileNotFoundError, match=f"{tmp_path}/.*: no such image"):
        load(layout, tmp_path, split)


def test_no_labels_at_all(tmp_path):
    write_miniature("mapillary", tmp_path, [np.zeros((4, 6), int)], "training")
    shutil.rmtree(tmp_path / "training" / "labels")
    with pytest.raises(FileNotFoundError, match="training/v1.2/labels/{name}.png: no such label for 1 images"):
        load("mapillary", tmp_path, "training")


@pytest.mark.parametrize(
    ("layout", "ids", "found"),
    [
        ("cityscapes", [7, 255], r"\[255\]"),  # train ids where label ids belong
        ("gta5", [35, 255], r"\[35, 255\]"),
        ("bdd100k", [0, 33], r"\[33\]"),  # label ids where train ids belong
        ("acdc", [24], r"\[24\]"),
        ("urbansyn", [20], r"\[20\]"),
        ("synthia", [23], r"\[23\]"),
        ("mapillary", [66], r"\[66\]"),
        ("camvid_segnet", [12], r"\[12\]"),
    ],
)
def test_ids_of_another_data_set(layout, ids, found, tmp_path):
    split = next(iter(PATHS[layout]))
    ((_, label),) = write_miniature(layout, tmp_path, [np.array([ids])], split)
    with pytest.raises(ValueError, match=f"{label} holds the ids {found}, which the table"):
        load(layout, tmp_path, split).dataset[0]


def test_a_colour_that_camvid_does_not_have(tmp_path):
    ((_, label),) = write_miniature("camvid", tmp_path, [np.zeros((4, 6), int)])
    picture = Image.open(label)
    picture.putpixel((2, 1), (1, 2, 3))
    picture.save(label)
    with pytest.raises(ValueError, match=f"{label} holds the ids \\[254\\]"):
        load("camvid", tmp_path).dataset[0]


@pytest.mark.parametrize(
    ("layout", "written_as", "message"),
    [
        ("synthia", "urbansyn", "is of mode L; expected a PNG of three channels of 16 bits"),
        ("synthia", "camvid", "is of mode RGB; expected a PNG of three channels of 16 bits"),
        ("gta5", "synthia", r"is of mode RGB; expected one channel of 8 bits \(L or P\)"),
        ("cityscapes", "camvid", r"is of mode RGB; expected one channel of 8 bits \(L or P\)"),
        ("camvid", "urbansyn", r"is of mode L; expected colours \(RGB\)"),
    ],
)
def test_labels_of_another_format(layout, written_as, message, tmp_path):
    split = next(iter(PATHS[layout]))
    ((_, label),) = write_miniature(layout, tmp_path, [np.zeros((4, 6), int)], split)
    write_label(written_as, np.zeros((4, 6), int), label)
    with pytest.raises(ValueError, match=f"{label} {message}"):
        load(layout, tmp_path, split).dataset[0]


@pytest.mark.parametrize("layout", ["gta5", "synthia"])
def test_unequal_sizes_and_half_a_file(layout, tmp_path):
    ((image, label),) = write_miniature(layout, tmp_path, [np.random.default_rng(0).integers(0, 9, (40, 60))])
    content = label.read_bytes()
    label.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=f"{label} cannot be read as an image"):
        load(layout, tmp_path).dataset[0]
    write_label(layout, np.zeros((40, 61), int), label)
    with pytest.raises(ValueError, match=f"{label} is 61x40 pixels; its image is 60x40"):
        load(layout, tmp_path).dataset[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gta:{root}", "unknown layout 'gta'; expected one of gta5, synthia, .*, hub"),
        ("gta5:{root}@train", "split is 'train'; expected none"),
        ("cityscapes:{root}", "split is None; expected 'train' or 'val' or 'test'"),
        ("cityscapes:{root}@trian", "split is 'trian'; expected 'train' or 'val' or 'test'"),
        ("gta5:{root}#evry=3", r"unknown option\(s\) \['evry'\]; known here: every, skip_every, exclude, size"),
        ("gta5:{root}#every=0", "every is '0'; expected a number of at least 1"),
        ("gta5:{root}#size=big", "size is 'big'; expected WIDTHxHEIGHT in pixels, or native"),
        ("gta5:{root}#exclude=5", r"excludes \['5'\], which are no images of it"),
        ("gta5:{root}#every", "has the option 'every'; expected OPTION=VALUE"),
        ("hub:{root}#ids=rgb", "ids is 'rgb'; expected one of train_ids, label_ids"),
        ("hub:{root}#streaming=yes", "streaming is 'yes'; expected true or false"),
        ("#every=3", "is not of the form"),
    ],
)
def test_mistakes_in_a_description(text, message, tmp_path):
    write_miniature("gta5", tmp_path, [np.zeros((4, 6), int)])
    with pytest.raises(ValueError, match=message), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        load_domain(text.format(root=tmp_path))


@pytest.mark.parametrize(
    ("layout", "file", "content", "message"),
    [
        ("mapillary", "config.json", None, "config.json is missing; it names the classes"),
        ("mapillary", "config.json", "[]", "config.json is no configuration of Mapillary Vistas"),
        (
            "mapillary",
            "config.json",
            '{"labels": [{"name": "a--road"}]}',
            "none of the 1 classes is .*expected Mapillary Vistas v1.2",
        ),
        ("camvid", "label_colors.txt", None, "label_colors.txt is missing; it names the colours"),
        ("camvid", "label_colors.txt", "1 2 3\tSky\n", "label_colors.txt lacks the kinds .*'Wall'"),
        ("camvid", "label_colors.txt", "red Sky\n", "label_colors.txt has other lines than R G B NAME"),
    ],
)
def test_the_file_that_names_the_classes(layout, file, content, message, tmp_path):
    split = next(iter(PATHS[layout]))
    write_miniature(layout, tmp_path, [np.zeros((4, 6), int)], split)
    (tmp_path / file).unlink()
    if content is not None:
        (tmp_path / file).write_text(content)
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        load(layout, tmp_path, split)


def test_hidden_files_are_passed_over(tmp_path):
    write_miniature("gta5", tmp_path, [np.zeros((4, 6), int)] * 2)
    for name in ("images/._00000.png", "labels/._00000.png", "images/._00007.png"):
        (tmp_path / name).write_bytes(b"no image")
    with pytest.warns(UserWarning, match="holds 2 of the 24966 images"):
        assert list(load_layout("gta5", tmp_path).dataset.with_format(None)["name"]) == ["00000", "00001"]


@pytest.mark.parametrize(("layout", "file"), [("mapillary", "config.json"), ("camvid", "label_colors.txt")])
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_encodings_of_the_files_that_name_classes(tmp_path, layout, file, encoding):
    split = "training" if layout == "mapillary" else ""
    write_miniature(layout, tmp_path, [np.zeros((8, 6), int)], split)
    path = tmp_path / file
    path.write_bytes(path.read_text().encode(encoding))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if encoding == "utf-16":
            with pytest.raises(ValueError, match=f"{file} is no text in UTF-8"):
                load_layout(layout, tmp_path, split or None)
        else:
            assert len(load_layout(layout, tmp_path, split or None).dataset) == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1 2 3 Road", "has 33 lines; expected at most 254, no name or colour twice"),
        ("128 64 128 Lawn", "has 33 lines; expected at most 254, no name or colour twice"),
        ("1 2 256 Lawn", "has other lines than R G B NAME"),
        ("1 2 ² Lawn", "has other lines than R G B NAME"),
    ],
)
def test_colours_and_names_of_camvid_come_once(tmp_path, line, message):
    write_miniature("camvid", tmp_path, [np.zeros((8, 6), int)])
    path = tmp_path / "label_colors.txt"
    path.write_text(path.read_text() + line + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match=f"label_colors.txt {message}"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        load_layout("camvid", tmp_path)
