"""rein_hf.images.png: the same pixels as Pillow's, or the file is left to Pillow."""

import io
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from rein_hf.data.decoding import LabelDecoder, decode_batch, ids_from_channel
from rein_hf.images import decode_png, open_image, png


pytest.importorskip("kornia_rs", reason="the extra rein-hf[fast]")
NOISE = np.random.default_rng(0).integers(0, 256, (37, 53, 3), dtype=np.uint8)


def saved(image: Image.Image, **options) -> io.BytesIO:
    file = io.BytesIO()
    image.save(file, "PNG", **options)
    file.seek(0)
    return file


@pytest.mark.parametrize("pixels", [NOISE, NOISE[..., 0], NOISE[:1, :1], NOISE[:1, :, 0]])
def test_pixels_are_those_of_pillow(pixels):
    file = saved(Image.fromarray(pixels), dpi=(72, 72))
    found = decode_png(Image.open(file))
    assert (found.mode, found.size) == ("RGB" if pixels.ndim == 3 else "L", pixels.shape[1::-1])
    assert np.array_equal(np.asarray(found), pixels) and found.info == Image.open(file).info


def chunk(content: bytes) -> bytes:
    """A chunk of a PNG file, of its type and content."""
    return (len(content) - 4).to_bytes(4, "big") + content + zlib.crc32(content).to_bytes(4, "big")


def other_files() -> dict[str, io.BytesIO]:
    """Files that Pillow has to decode, by what they are."""
    rgb, exif, text = Image.fromarray(NOISE), Image.Exif(), PngImagePlugin.PngInfo()
    exif[0x0112] = 6
    text.add_itxt("XML:com.adobe.xmp", '<x xmlns:tiff="t" tiff:Orientation="6"/>')
    data = saved(rgb).getvalue()
    late = data[:-12] + chunk(b"eXIf" + exif.tobytes()[6:]) + data[-12:]
    return {
        "turned by EXIF": saved(rgb, exif=exif),
        "turned by EXIF after the pixels": io.BytesIO(late),
        "turned by XMP": saved(rgb, pnginfo=text),
        "transparent": saved(rgb.convert("RGBA")),
        "transparent colour": saved(rgb, transparency=(1, 2, 3)),
        "palette": saved(rgb.quantize(16)),
        "16 bits": saved(Image.fromarray(NOISE[..., 0].astype(np.uint16) * 256)),
        "1 bit": saved(Image.fromarray(NOISE[..., 0] > 99)),
        "animated": saved(rgb, save_all=True, append_images=[rgb.rotate(180)]),
    }


@pytest.mark.parametrize("kind", other_files())
def test_other_files_are_left_to_pillow(kind, monkeypatch):
    file = other_files()[kind]
    assert decode_png(Image.open(file)) is None
    found = open_image(file)
    monkeypatch.setattr(png, "decode_image_png_u8", None)
    file.seek(0)
    expected = open_image(file)
    assert np.array_equal(np.asarray(found), np.asarray(expected)) and found.info == expected.info
    assert expected.size == ((37, 53) if "turned" in kind else (53, 37))


def test_an_interlaced_file_is_left_to_pillow():
    """Pillow does not write such files."""
    header = b"IHDR" + (1).to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 1])
    pixels = b"IDAT" + zlib.compress(bytes([0, 9, 8, 7]))
    file = io.BytesIO(png.SIGNATURE + b"".join(map(chunk, (header, pixels, b"IEND"))))
    assert decode_png(Image.open(file)) is None
    assert open_image(file).getpixel((0, 0)) == (9, 8, 7)


def test_other_formats_and_images_in_memory_are_left_alone(tmp_path):
    Image.fromarray(NOISE).save(tmp_path / "x.jpg")
    decoded = Image.open(saved(Image.fromarray(NOISE)))
    decoded.load()
    for image in (Image.open(tmp_path / "x.jpg"), Image.fromarray(NOISE), decoded):
        assert decode_png(image) is None


@pytest.mark.parametrize("damage", ["cut", "changed"])
def test_damaged_files_are_errors_of_pillow(damage, tmp_path):
    data = saved(Image.fromarray(NOISE)).getvalue()
    middle = len(data) // 2
    broken = data[:middle] if damage == "cut" else data[:middle] + bytes([data[middle] ^ 255]) + data[middle + 1 :]
    (tmp_path / "x.png").write_bytes(broken)
    assert decode_png(Image.open(tmp_path / "x.png")) is None
    with pytest.raises(ValueError, match="x.png cannot be read as an image"):
        open_image(tmp_path / "x.png")


def test_without_the_extra_pillow_decodes(monkeypatch):
    file = saved(Image.fromarray(NOISE))
    monkeypatch.setattr(png, "decode_image_png_u8", None)
    assert decode_png(Image.open(file)) is None and np.array_equal(np.asarray(open_image(file)), NOISE)


def test_rows_of_a_data_set_are_decoded_by_it(tmp_path, monkeypatch):
    """Image and label, their files closed."""
    Image.fromarray(NOISE).save(tmp_path / "i.png")
    Image.fromarray(NOISE[..., 0] % 19).save(tmp_path / "l.png")
    calls, decode = [], png.decode_image_png_u8
    monkeypatch.setattr(png, "decode_image_png_u8", lambda *args: (calls.append(args[2]), decode(*args))[1])
    row = {role: [{"path": str(tmp_path / f"{role[0]}.png"), "bytes": None}] for role in ("image", "label")}
    found = decode_batch(row, LabelDecoder(ids_from_channel, np.arange(256)))
    assert calls == ["rgb", "mono"]
    assert np.array_equal(np.asarray(found["image"][0]), NOISE)
    assert np.array_equal(np.asarray(found["label"][0]), NOISE[..., 0] % 19)
