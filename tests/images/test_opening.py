"""rein_hf.images.opening: upright, 8 bits per channel, whatever the file holds; what fails is named."""

import io
import struct

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin
from PIL import __version__ as PILLOW_VERSION

from rein_hf.images import FORMATS, IMAGE_SUFFIXES, open_image, upright_rgb


# All levels of 16 bits that have another high byte, and more
DEEP = (np.arange(12 * 16) * 340 % 65536).astype(np.uint16).reshape(12, 16)
NOISE = np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)
# What EXIF defines: where row 0 and column 0 of the stored pixels are in the upright image
UPRIGHT = {
    1: lambda pixels: pixels,
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: pixels.swapaxes(0, 1)[:, ::-1],
    7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1),
    8: lambda pixels: pixels.swapaxes(0, 1)[::-1],
}


def encoded(image: Image.Image, kind: str, **options) -> io.BytesIO:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    buffer.seek(0)
    return buffer


def exif_of(orientation) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def gray(image: Image.Image) -> np.ndarray:
    """The channel of a gray RGB image."""
    pixels = np.asarray(image)
    assert image.mode == "RGB" and (pixels == pixels[..., :1]).all()
    return pixels[..., 0]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_of_every_format_that_notes_one(kind, orientation):
    options = {"lossless": True} if kind == "WEBP" else {}
    stored = np.asarray(open_image(encoded(Image.fromarray(NOISE), kind, **options)))
    image = open_image(encoded(Image.fromarray(NOISE), kind, exif=exif_of(orientation), **options))
    assert np.array_equal(np.asarray(image), UPRIGHT[orientation](stored))
    assert image.info.get("stored_orientation", 1) == orientation
    assert upright_rgb(image) is image  # turned once only


def test_the_orientation_of_xmp_and_of_an_image_in_memory():
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    file = encoded(Image.fromarray(NOISE), "WEBP", xmp=xmp, lossless=True)
    assert np.array_equal(np.asarray(open_image(file)), UPRIGHT[6](NOISE))
    copied = Image.open(encoded(Image.fromarray(NOISE), "PNG", exif=exif_of(8))).convert("RGB")
    turned = upright_rgb(copied)
    assert np.array_equal(np.asarray(turned), UPRIGHT[8](NOISE)) and upright_rgb(turned) is turned


@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0MM\0*\0\0\0\x08\0",  # ends inside the number of tags: struct.error
        b"Exif\0\0II*\0\xff\xff\xff\x7f",
        b"Exif\0\0XX*\0\x08\0\0\0",  # neither byte order: SyntaxError
        b"Exif\0\0",
        b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x02\0\0\0\x02a\0\0\0\0\0\0\0",  # orientation as text
        b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x05\0\0\0\x01\0\0\0\x1a\0\0\0\0\0\0\0\0\0\0",  # 0/0
        b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x63\0\0\0\0\0\0",  # 99
    ],
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_broken_exif_counts_as_upright(exif, kind):
    plain = open_image(encoded(Image.fromarray(NOISE), kind))
    image = open_image(encoded(Image.fromarray(NOISE), kind, exif=exif))
    assert np.array_equal(np.asarray(image), np.asarray(plain))


@pytest.mark.parametrize("broken", [TypeError, AttributeError, ZeroDivisionError, struct.error, SyntaxError, KeyError])
def test_whatever_the_exif_parser_raises(broken, monkeypatch):
    def raises(self):
        raise broken("broken EXIF")

    image = Image.fromarray(NOISE)
    monkeypatch.setattr(Image.Image, "getexif", raises)
    assert upright_rgb(image) is image


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_gray_of_16_bits_is_scaled(kind):
    assert np.array_equal(gray(open_image(encoded(Image.fromarray(DEEP), kind))), DEEP >> 8)


def test_gray_of_16_bits_in_the_other_byte_order():
    image = Image.frombytes("I;16B", (16, 12), DEEP.astype(">u2").tobytes())
    assert np.array_equal(gray(upright_rgb(image)), DEEP >> 8)
    assert np.array_equal(gray(open_image(encoded(image, "TIFF"))), DEEP >> 8)


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_16_bits_stored_in_32_are_scaled(dtype):
    image = Image.fromarray(DEEP.astype(dtype))
    assert np.array_equal(gray(upright_rgb(image)), DEEP >> 8)
    assert np.array_equal(gray(open_image(encoded(image, "TIFF"))), DEEP >> 8)
    assert not gray(upright_rgb(Image.fromarray(np.zeros((2, 2), dtype)))).any()


def test_a_dark_pgm_of_16_bits_is_no_picture_of_8():
    dark = open_image(encoded(Image.fromarray(np.full((2, 3), 200, np.uint16)), "PPM"))
    assert not gray(dark).any()


@pytest.mark.parametrize(
    ("values", "found"),
    [
        (np.full((2, 2), 200, np.int32), r"mode I\) from 200 to 200"),  # of 8 bits, or of 16 and dark
        (np.array([[-1, 300]], np.int32), r"mode I\) from -1 to 300"),
        (np.array([[0, 65536]], np.int32), r"mode I\) from 0 to 65536"),
        (np.array([[0, 0.5, 1]], np.float32), r"mode F\) from 0 to 1"),
        (np.array([[300.5, 2]], np.float32), r"mode F\) from 2 to 300.5"),
        (np.array([[np.nan, 300]], np.float32), r"mode F\) from nan to nan"),
        (np.array([[0, np.inf]], np.float32), r"mode F\) from 0 to inf"),
    ],
)
def test_other_values_of_32_bits_are_refused_by_name(tmp_path, values, found):
    path = tmp_path / "depth.tif"
    Image.fromarray(values).save(path)
    with pytest.raises(ValueError, match=rf"depth.tif holds 32-bit numbers \({found}; expected a picture of 8 bits"):
        open_image(path)


@pytest.mark.parametrize("white_is_zero", [False, True])
def test_tiff_of_12_bits_and_with_white_as_zero(white_is_zero):
    """What Pillow's rawmode I;12 and photometric interpretation 0 mean, in tags written by hand."""
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    if white_is_zero:
        tags[262] = 0
        file = encoded(Image.fromarray(DEEP), "TIFF", tiffinfo=tags).getvalue()
        entry = struct.pack("<HHIHH", 262, 3, 1, 1, 0)
        file = io.BytesIO(file.replace(entry, struct.pack("<HHIHH", 262, 3, 1, 0, 0)))
        assert np.array_equal(gray(open_image(file)), 255 - (DEEP >> 8))
    else:
        packed = bytes([0x12, 0x34, 0x56, 0xFF, 0xF0, 0x00])  # 0x123 0x456 0xfff 0x000
        entries = [(256, 4), (257, 1), (258, 12), (259, 1), (262, 1), (273, 122), (277, 1), (278, 1), (279, 6)]
        directory = b"".join(struct.pack("<HHII", tag, 4 if tag == 273 else 3, 1, value) for tag, value in entries)
        head = struct.pack("<2sHIH", b"II", 42, 8, len(entries)) + directory + bytes(4)
        image = open_image(io.BytesIO(head + packed))
        assert gray(image).tolist() == [[0x12, 0x45, 0xFF, 0]]


def test_rgb_of_16_bits_keeps_its_high_bytes(tmp_path):
    from tests.support.miniatures import sixteen_bit_png

    pixels = np.stack([DEEP, DEEP[::-1], DEEP[:, ::-1]], axis=-1)
    path = tmp_path / "deep.png"
    path.write_bytes(sixteen_bit_png(pixels.astype(">u2")))
    assert np.array_equal(np.asarray(open_image(path)), pixels >> 8)


@pytest.mark.parametrize(
    ("image", "kind", "expected"),
    [
        (Image.new("1", (2, 2), 1), "PNG", (255, 255, 255)),
        (Image.new("L", (2, 2), 77), "PNG", (77, 77, 77)),
        (Image.new("LA", (2, 2), (77, 0)), "PNG", (77, 77, 77)),
        (Image.new("RGBA", (2, 2), (1, 2, 3, 0)), "PNG", (1, 2, 3)),
        (Image.new("RGBA", (2, 2), (10, 20, 30, 255)), "TIFF", (10, 20, 30)),
        (Image.new("CMYK", (2, 2), (255, 0, 0, 0)), "JPEG", (0, 255, 255)),
        (Image.new("CMYK", (2, 2), (0, 0, 0, 255)), "TIFF", (0, 0, 0)),
        pytest.param(
            Image.new("YCbCr", (2, 2), (255, 128, 128)),
            "TIFF",
            (255, 255, 255),
            marks=pytest.mark.skipif(
                PILLOW_VERSION.startswith("12."), reason="Pillow 12 cannot read its own TIFF files of this mode"
            ),
        ),
        (Image.new("LAB", (2, 2), (255, 128, 128)), "TIFF", (255, 255, 255)),
        (Image.new("1", (2, 2), 0), "TIFF", (0, 0, 0)),
    ],
)
@pytest.mark.filterwarnings("error")
def test_other_modes(image, kind, expected):
    opened = open_image(encoded(image, kind))
    assert opened.mode == "RGB"
    assert np.abs(np.subtract(opened.getpixel((0, 0)), expected)).max() <= (3 if image.mode in ("LAB", "CMYK") else 0)


@pytest.mark.filterwarnings("error")
def test_a_palette_with_transparency():
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    opened = open_image(encoded(image, "PNG", transparency=b"\x00\x80"))
    assert [opened.getpixel((x, 0)) for x in (0, 1)] == [(10, 20, 30), (40, 50, 60)]
    assert opened.info == {"stored_mode": "P"}


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_several_frames_the_first_is_used(kind):
    first = Image.new("RGB", (8, 6), (200, 40, 40))
    others = [Image.new("RGB", (8, 6), (40, 40, shade)) for shade in (90, 220)]
    options = {"lossless": True} if kind == "WEBP" else {}
    content = encoded(first, kind, save_all=True, append_images=others, **options)
    opened = open_image(content)
    assert opened.info["stored_frames"] == 3 and opened.getpixel((3, 3)) == (200, 40, 40)
    assert opened.size == (8, 6) and upright_rgb(opened) is opened
    assert "stored_frames" not in open_image(encoded(first, kind)).info


def test_a_photo_with_a_preview_is_one():
    content = encoded(Image.new("RGB", (8, 6)), "MPO", save_all=True, append_images=[Image.new("RGB", (4, 3))])
    assert Image.open(content).n_frames == 2
    assert "stored_frames" not in open_image(content).info


def test_later_frames_may_be_broken():
    """They are counted as far as they are there, or not at all."""
    first, second = (Image.effect_noise((40, 30), sigma).convert("P") for sigma in (10, 90))
    content = encoded(first, "GIF", save_all=True, append_images=[second]).getvalue()
    whole = np.asarray(open_image(io.BytesIO(content)))
    opened = 0
    for length in range(len(content) // 4, len(content), 7):
        try:
            Image.open(io.BytesIO(content[:length])).load()
        except OSError:  # in the first frame
            continue
        assert np.array_equal(open_image(io.BytesIO(content[:length])), whole)
        opened += 1
    assert opened > 50


def test_premultiplied_colours():
    straight = Image.new("RGBA", (2, 2), (200, 100, 50, 128))
    assert np.abs(np.asarray(upright_rgb(straight.convert("RGBa"))).astype(int) - (200, 100, 50)).max() <= 1


def test_sources(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(NOISE).save(path)
    content = path.read_bytes()
    with open(path, "rb") as file:
        for source in (path, str(path), file, {"path": str(path), "bytes": None}, {"path": "x", "bytes": content}):
            assert np.array_equal(np.asarray(open_image(source)), NOISE)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("no/such.png", "no/such.png"),
        ({"path": "row 3", "bytes": b"no image"}, "row 3"),
        ({"path": None, "bytes": None}, "the image"),
        ({}, "the image"),
        (io.BytesIO(b""), "the image"),
        ({"path": "a.eps", "bytes": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1\n"}, "a.eps"),
        ({"path": "cut.png", "bytes": encoded(Image.fromarray(NOISE), "PNG").getvalue()[:200]}, "cut.png"),
    ],
)
def test_failures_name_their_source(source, name):
    with pytest.raises(ValueError, match=f"^{name} cannot be read as an image: "):
        open_image(source)


@pytest.mark.parametrize("broken", [struct.error, TypeError, AttributeError, ZeroDivisionError, OSError, SyntaxError])
def test_whatever_a_decoder_raises(tmp_path, broken, monkeypatch):
    path = tmp_path / "a.png"
    Image.fromarray(NOISE).save(path)

    def raises(self):
        raise broken("out of order")

    image = Image.open(path)
    monkeypatch.setattr(type(image), "load", raises)
    with pytest.raises(ValueError, match="a.png cannot be read as an image: out of order"):
        upright_rgb(image)


def test_suffixes_are_those_of_the_formats():
    Image.init()
    assert {suffix for suffix, kind in Image.registered_extensions().items() if kind in FORMATS} == set(IMAGE_SUFFIXES)
