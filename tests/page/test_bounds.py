"""rein_hf.page.bounds: what a stranger may send."""

import base64
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from rein_hf.page import Bounds, PageError
from rein_hf.page.bounds import decode_data_uri, encode_data_uri, encode_picture, open_upload


PIXELS = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
PHOTO = Image.fromarray(PIXELS)


def png_of(width: int, height: int) -> bytes:
    """The beginning of a PNG file, which says its size; there are no pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", 13)
        + header
        + struct.pack(">I", zlib.crc32(header))
        + b"\0\0\xff\xffIDAT"
    )


def uri(content: bytes) -> str:
    return encode_data_uri(content, "image/any")


def refusal(source, **bounds) -> str:
    with pytest.raises(PageError) as error:
        open_upload(source, Bounds(**bounds))
    return str(error.value)


def test_a_photo_arrives_pixel_by_pixel():
    photo = open_upload(encode_picture(PHOTO, "PNG"), Bounds())
    assert np.array_equal(np.asarray(photo), PIXELS) and photo.mode == "RGB"


def test_a_photo_is_turned_upright():
    exif = Image.Exif()
    exif[0x0112] = 6
    assert open_upload(encode_picture(PHOTO, "JPEG", exif=exif), Bounds()).size == (30, 40)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (None, "did not arrive as a file"),
        ("https://host/photo.jpg", "did not arrive as a file"),
        ("/etc/passwd", "did not arrive as a file"),
        ("data:image/png,raw", "did not arrive as a file"),
        ("data:image/png;base64,AAA", "arrived incomplete"),
        ("data:image/png;base64,é", "arrived incomplete"),
        ("data:image/png;base64,", "is an empty file"),
        (uri(b"not a photo, whatever its name ends in"), "no photo that the page can read. It takes PNG, JPEG, "),
        (uri(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), "no photo that the page can read"),
    ],
)
def test_what_is_no_photo_is_answered_by_a_sentence(source, words):
    assert words in refusal(source)


def test_a_damaged_photo():
    content = base64.b64decode(encode_picture(PHOTO, "PNG").partition(",")[2])
    assert refusal(uri(content[:200])).startswith("The photo's file is damaged")


def test_a_large_file_is_not_opened():
    found = refusal(uri(bytes(1_100_000)), megabytes=1)
    assert found.startswith("The photo's file has 1.1 MB; this page takes 1 MB at most.")


@pytest.mark.parametrize(
    ("size", "words"),
    [
        ((10_000, 10_000), "10000x10000 pixels, 100.0 million; this page takes 50 million at most"),
        ((7_100, 7_100), "7100x7100 pixels, 50.4 million"),
        ((60_000, 60_000), "far more; this page takes 50 million"),  # Pillow refuses it
    ],
)
def test_many_pixels_are_refused_before_they_are_decoded(size, words):
    assert words in refusal(uri(png_of(*size)))


def test_messages_name_no_class_and_no_path():
    for source in (uri(b"text"), uri(png_of(60_000, 60_000)), uri(png_of(50, 50))):
        found = refusal(source)
        assert "/" not in found and "Error" not in found and "object" not in found


@pytest.mark.parametrize("values", [{"megabytes": 0}, {"megapixels": 1.5}, {"waiting": -1}, {"megabytes": True}])
def test_bounds_are_whole_numbers(values):
    with pytest.raises(ValueError, match=f"{next(iter(values))} is .*; expected a whole number"):
        Bounds(**values)


def test_nobody_may_wait():
    assert Bounds(waiting=0).waiting == 0


def test_data_uris_come_back():
    content = bytes(range(256))
    assert decode_data_uri(encode_data_uri(content, "image/png"), "It") == content


def test_a_body_holds_a_photo_and_its_label_map():
    noise = np.random.default_rng(0).integers(0, 19, (1000, 1000), dtype=np.uint8)
    label_map = len(encode_picture(Image.fromarray(noise), "PNG"))
    largest_photo = len(uri(bytes(1_000_000)))
    assert label_map + largest_photo < Bounds(megabytes=1, megapixels=2).body_bytes < 3 * largest_photo
