"""rein_hf.data.colour: saturation and hue as by Pillow's own HSV images."""

import numpy as np
import pytest
from PIL import Image

from rein_hf.data.colour import change_saturation_and_hue


def by_pillow(image: Image.Image, factor: float | None, hue: int | None) -> np.ndarray:
    h, s, v = (np.asarray(channel).astype(int) for channel in image.convert("HSV").split())
    s = s if factor is None else np.clip((s * factor).astype(int), 0, 255)
    h = h if hue is None else (h + hue) % 255
    changed = np.stack([h, s, v], -1).astype(np.uint8)
    return np.asarray(Image.merge("HSV", [Image.fromarray(changed[..., axis]) for axis in range(3)]).convert("RGB"))


RNG = np.random.default_rng(0)
IMAGES = {
    "all colours": RNG.integers(0, 256, (200, 300, 3), dtype=np.uint8),
    "dark": RNG.integers(0, 5, (60, 50, 3), dtype=np.uint8),
    "bright": RNG.integers(250, 256, (60, 50, 3), dtype=np.uint8),
    "gray": np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, -1),
    "one pixel": np.uint8([[[120, 60, 60]]]),
}


@pytest.mark.parametrize("kind", IMAGES)
@pytest.mark.parametrize(
    ("factor", "hue"), [(1.37, None), (0.5, None), (None, 17), (None, -25), (1.5, 25), (0.8, -1), (1.0, 0)]
)
def test_pixels_are_those_of_pillow(kind, factor, hue):
    """But for halves that are rounded the other way: one level, of one value in a million."""
    image = Image.fromarray(IMAGES[kind])
    found = change_saturation_and_hue(image, factor, hue)
    assert (found.mode, found.size) == ("RGB", image.size)
    difference = np.abs(np.asarray(found).astype(int) - by_pillow(image, factor, hue))
    assert difference.max() <= 1 and difference.sum() <= 1 + difference.size // 100_000
    if (factor, kind) != (1.0, kind) and kind == "all colours":
        assert np.abs(np.asarray(found).astype(int) - IMAGES[kind]).mean() > 1


def test_the_image_itself_is_not_changed():
    image = Image.fromarray(IMAGES["dark"])
    change_saturation_and_hue(image, 1.5, 20)
    assert np.array_equal(np.asarray(image), IMAGES["dark"])
