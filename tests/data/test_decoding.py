"""What images and labels of a data set hold once they are read: upright, raw ids, errors that say which is turned."""

import io
import struct
import zlib
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from rein_hf.data import Domain, describe_odd_ids, label_warnings, load_domain, load_folder


IDS = np.random.default_rng(1).integers(0, 2, (3, 4), np.uint8)


def exif_of(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def gray_png(values: np.ndarray, bits: int) -> bytes:
    """A PNG of gray values of 1, 2, 4 or 8 bits, none of them scaled."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    unpacked = np.unpackbits(values[..., None], axis=-1)[..., 8 - bits :].reshape(len(values), -1)
    rows = b"".join(b"\0" + row.tobytes() for row in np.packbits(unpacked, axis=-1))
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], bits, 0, 0, 0, 0)
    data = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in data)


@pytest.fixture
def folder(tmp_path) -> Path:
    """One image of 4x3 pixels, whose red channel is 10 * id, and its label."""
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
    save_image(tmp_path)
    Image.fromarray(IDS).save(tmp_path / "labels" / "a.png")
    return tmp_path


def save_image(folder: Path, **options) -> None:
    pixels = np.stack([10 * IDS, 0 * IDS, 0 * IDS], axis=-1)
    Image.fromarray(pixels).save(folder / "images" / "a.png", **options)


def read(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    sample = load_folder(folder).dataset[0]
    return np.asarray(sample["image"])[..., 0], np.asarray(sample["label"])


@pytest.mark.parametrize("orientation", range(2, 9))
def test_image_and_label_of_one_orientation_are_turned_alike(folder, orientation):
    save_image(folder, exif=exif_of(orientation))
    Image.fromarray(IDS).save(folder / "labels" / "a.png", exif=exif_of(orientation))
    image, label = read(folder)
    assert np.array_equal(image, 10 * label) and not np.array_equal(label, IDS)
    assert image.shape == ((4, 3) if orientation > 4 else (3, 4))


@pytest.mark.parametrize(("orientation", "turned"), [(2, IDS[:, ::-1]), (3, IDS[::-1, ::-1]), (4, IDS[::-1])])
def test_an_image_is_upright_and_a_label_without_exif_stays(folder, orientation, turned):
    save_image(folder, exif=exif_of(orientation))
    image, label = read(folder)
    assert np.array_equal(image, 10 * turned) and np.array_equal(label, IDS)


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_a_label_that_fits_the_stored_pixels_only_is_named_as_such(folder, orientation):
    save_image(folder, exif=exif_of(orientation))
    with pytest.raises(
        ValueError,
        match=rf"labels/a.png is 4x3 pixels; its image is 3x4 once it is turned upright, as the EXIF orientation "
        rf"{orientation} in its file says. The label fits the pixels as they are stored: turn the label likewise",
    ):
        load_folder(folder).dataset[0]
    Image.fromarray(np.ascontiguousarray(IDS.T)).save(folder / "labels" / "a.png")  # drawn on the upright image
    assert np.array_equal(read(folder)[1], IDS.T)


def test_a_label_that_only_its_own_exif_turns(folder):
    Image.fromarray(IDS).save(folder / "labels" / "a.png", exif=exif_of(6))
    with pytest.raises(ValueError, match=r"a.png is 3x4 pixels; its image is 4x3. The label was turned, .* 6 in its"):
        load_folder(folder).dataset[0]


def test_images_of_16_bits_keep_their_levels(folder):
    deep = np.arange(12, dtype=np.uint16).reshape(3, 4) * 5000
    Image.fromarray(deep).save(folder / "images" / "a.png")
    assert np.array_equal(read(folder)[0], deep >> 8)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_gray_labels_of_few_bits_give_raw_ids(folder, bits):
    ids = (np.arange(12).reshape(3, 4) % 2**bits).astype(np.uint8)
    (folder / "labels" / "a.png").write_bytes(gray_png(ids, bits))
    assert np.array_equal(read(folder)[1], ids)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_palette_labels_of_few_bits_give_indices(folder, bits):
    ids = (np.arange(12).reshape(3, 4) % 2**bits).astype(np.uint8)
    label = Image.fromarray(ids, "P")
    label.putpalette(list(range(255, 255 - 3 * 2**bits, -1)) if bits < 8 else [7] * 768)
    label.save(folder / "labels" / "a.png", bits=bits)
    assert np.array_equal(read(folder)[1], ids)


def hub_folder(folder: Path, label: bytes) -> str:
    """A data set of one row whose label is that file."""
    image = io.BytesIO()
    Image.new("RGB", (4, 3)).save(image, "PNG", exif=exif_of(3))
    rows = {"image": [{"bytes": image.getvalue(), "path": None}], "label": [{"bytes": label, "path": None}]}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Image()})
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(folder / "train.parquet"))
    return f"hub:{folder}"


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (encoded(Image.fromarray(IDS), "JPEG"), "label 0 is of the format JPEG, which does not keep ids exactly"),
        (encoded(Image.fromarray(IDS), "PPM"), "label 0 is of the format PPM, which does not keep ids exactly"),
        (encoded(Image.fromarray(IDS * 255).convert("1"), "TIFF", tiffinfo={262: 0}), "label 0 is of mode 1;I"),
    ],
)
def test_labels_whose_ids_would_change_are_refused(tmp_path, label, message):
    with pytest.raises(ValueError, match=message):
        load_domain(hub_folder(tmp_path, label)).dataset[0]


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("TIFF", {}), ("BMP", {}), ("GIF", {})])
def test_labels_of_exact_formats_and_images_of_the_hub_are_turned(tmp_path, kind, options):
    spec = hub_folder(tmp_path, encoded(Image.fromarray(IDS), kind, **options))
    for streaming in ("true", "false"):
        sample = next(iter(load_domain(f"{spec}#streaming={streaming}").dataset))
        assert np.array_equal(np.asarray(sample["label"]), IDS)
        assert sample["image"].info["stored_orientation"] == 3


def test_a_palette_of_the_wrong_size_is_a_broken_file(folder):
    path = folder / "labels" / "a.png"
    label = Image.fromarray(IDS, "P")
    label.putpalette([0, 0, 0, 9, 9, 9])
    label.save(path)
    content = path.read_bytes()
    start = content.index(b"PLTE")
    data = b"PLTE" + bytes(3 * 257)
    chunk = struct.pack(">I", 3 * 257) + data + struct.pack(">I", zlib.crc32(data))
    path.write_bytes(content[: start - 4] + chunk + content[start + 14 :])
    with pytest.raises(ValueError, match="labels/a.png cannot be read as an image: .*palette"):
        load_folder(folder).dataset[0]


def test_what_is_assumed_about_a_data_set_of_the_hub(tmp_path):
    spec = hub_folder(tmp_path, encoded(Image.fromarray(IDS), "PNG"))
    domain = load_domain(spec)
    assert "are taken for the train ids of Cityscapes" in domain.assumption
    assert label_warnings(domain) == [domain.assumption]
    assert load_domain(f"{spec}#ids=train_ids").assumption is None
    streamed = load_domain(f"{spec}#streaming=true")
    assert label_warnings(streamed) == [streamed.assumption]


def test_masks_of_0_and_255(folder):
    (folder / "classes.json").write_text('{"names": ["background", "person"], "ignore_id": 255}')
    assert label_warnings(load_folder(folder)) == []
    Image.fromarray(255 * IDS).save(folder / "labels" / "a.png")
    domain = load_folder(folder)
    assert label_warnings(domain) == [
        f"{folder.name}: the labels hold nothing but 0 (background) and 255, and 255 means ignored pixels. For masks "
        "drawn in 0 and 255: write the id of a class, such as 1, in the place of 255 (in 1 of 1 labels)."
    ]
    Image.new("L", (4, 3), 255).save(folder / "labels" / "a.png")
    assert "no pixel has a class" in label_warnings(domain)[0]
    (folder / "labels" / "a.png").write_bytes(b"")
    assert label_warnings(domain) == []  # whoever trains on it gets the error


def test_labels_that_are_looked_at_are_spread(folder):
    """Of 9 labels the first, the middle and the last, of which only the middle one holds a class but 0."""
    for name in "bcdefghi":
        Image.new("RGB", (4, 3)).save(folder / "images" / f"{name}.png")
        Image.fromarray(255 * IDS).save(folder / "labels" / f"{name}.png")
    Image.fromarray(255 * IDS).save(folder / "labels" / "a.png")
    (folder / "classes.json").write_text('{"names": ["background", "person"], "ignore_id": 255}')
    assert "in 3 of 9 labels" in label_warnings(load_folder(folder), images=3)[0]
    Image.fromarray(IDS).save(folder / "labels" / "e.png")
    assert label_warnings(load_folder(folder), images=3) == []


def test_a_domain_without_public_labels_has_no_odd_ones():
    rows = datasets.Dataset.from_dict({"name": ["a"], "label": [None]})
    assert label_warnings(Domain("test", rows)) == []


@pytest.mark.parametrize("ids", [{0}, {0, 1}, {1, 255}, {0, 1, 255}, set()])
def test_ids_that_are_not_odd(ids):
    assert describe_odd_ids(ids, ("background", "person")) is None
