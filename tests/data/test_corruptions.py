"""rein_hf.corruptions: every corruption and severity, seeding, sizes, and the published definitions by hand."""

import io
import sys

import numpy as np
import pytest
from PIL import Image

from rein_hf.data.corruptions import CORRUPTIONS, SEVERITIES, corrupt


RANDOM = {
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "glass_blur",
    "motion_blur",
    "snow",
    "frost",
    "fog",
    "elastic_transform",
}
# with the published constants a higher severity of these can be nearer to the image in the mean: snow falls in larger
# flakes from 2 to 3, glass_blur shuffles less often from 3 to 4, frost and fog cover no more from 3 to 4
UNEVEN = {"glass_blur", "snow", "frost", "fog"}


@pytest.fixture
def library():
    return pytest.importorskip("imagecorruptions", reason="needs pip install 'rein-hf[corruptions]'")


def street(width: int, height: int) -> Image.Image:
    """Sky above road, striped blocks in colour, none of it black or white."""
    y, x = np.mgrid[:height, :width]
    red = 60 + 120 * (y < height / 2) + 30 * ((x // 7 + y // 5) % 2)
    green = 70 + 60 * np.sin(x / 5) + 40 * (y > height / 2)
    blue = 80 + 100 * y / height + 20 * ((x // 3) % 2)
    return Image.fromarray(np.stack([red, green, blue], axis=2).astype(np.uint8))


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def test_the_families_are_the_published_ones(library):
    assert list(CORRUPTIONS) == library.get_corruption_names("common")
    for family in ("noise", "blur", "weather", "digital"):
        names = [name for name, its in CORRUPTIONS.items() if its == family]
        assert names == library.get_corruption_names(family)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_every_severity_changes_the_image_and_more_is_further_away(name, library):
    image = street(96, 80)
    distances = []
    for severity in SEVERITIES:
        corrupted = corrupt(image, name, severity, np.random.default_rng(3))
        assert (corrupted.size, corrupted.mode) == ((96, 80), "RGB")
        distances.append(abs(pixels(corrupted) - pixels(image)).mean())
    assert distances[0] > 0.5 and distances[4] > 1.15 * distances[0]
    assert name in UNEVEN or distances == sorted(distances)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_the_generator_alone_decides(name, library):
    image = street(64, 48)
    np.random.seed(1)
    first = corrupt(image, name, 3, np.random.default_rng(0))
    np.random.seed(2)
    rng = np.random.default_rng(0)
    assert np.array_equal(first, corrupt(image, name, 3, rng))
    others = [corrupt(image, name, 3, rng) for _ in range(3)]  # several: frost has no more than six pictures
    assert any(np.any(pixels(first) != pixels(other)) for other in others) == (name in RANDOM)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_the_global_state_and_the_image_stay(name, library):
    image = street(48, 40)
    before, copy = np.random.get_state(), image.copy()
    corrupt(image, name, 2, np.random.default_rng(0))
    after = np.random.get_state()
    assert before[0] == after[0] and np.array_equal(before[1], after[1]) and before[2:] == after[2:]
    assert np.array_equal(image, copy)


def test_the_global_state_stays_when_the_package_fails(library, monkeypatch):
    def fails(*args, **kwargs):
        np.random.normal(size=100)
        raise RuntimeError("frost.png")

    monkeypatch.setattr(library, "corrupt", fails)
    before = np.random.get_state()
    with pytest.raises(RuntimeError, match="frost.png"):
        corrupt(street(40, 40), "frost", 1, np.random.default_rng(0))
    assert np.array_equal(before[1], np.random.get_state()[1]) and before[2] == np.random.get_state()[2]


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (131, 37)])
def test_odd_sizes(size, library, capsys):
    for name in CORRUPTIONS:
        for severity in (1, 5):
            corrupted = corrupt(street(*size), name, severity, np.random.default_rng(0))
            assert (corrupted.size, corrupted.mode) == (size, "RGB")
    assert capsys.readouterr().out == ""  # the package prints where sizes did not fit


@pytest.mark.parametrize("severity", SEVERITIES)
def test_noise_is_as_strong_as_published(severity, library):
    grey = Image.new("RGB", (200, 200), (127, 127, 127))

    def noise(name):
        return pixels(corrupt(grey, name, severity, np.random.default_rng(0)))

    scale = [0.08, 0.12, 0.18, 0.26, 0.38][severity - 1]
    within = abs(noise("gaussian_noise") - 127) < 0.5 * 255 * scale  # 38.3 % of a normal distribution, none clipped
    assert within.mean() == pytest.approx(0.383, abs=0.015)
    photons = [60, 25, 12, 5, 3][severity - 1]
    shot = np.unique(noise("shot_noise"))
    assert set(shot) <= {min(255, int(count * 255 / photons + 1e-6)) for count in range(200)}
    share = [0.03, 0.06, 0.09, 0.17, 0.27][severity - 1]
    impulse = noise("impulse_noise")
    assert set(np.unique(impulse)) == {0, 127, 255}
    assert (impulse != 127).mean() == pytest.approx(share, abs=0.005)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_what_can_be_done_by_hand(severity, library):
    """Contrast, brightness (of the largest channel), pixelate and JPEG as the paper's code defines them."""
    image = street(90, 60)
    x = pixels(image) / 255

    def result(name):
        return pixels(corrupt(image, name, severity, np.random.default_rng(0)))

    mean = x.mean(axis=(0, 1))
    contrast = (x - mean) * [0.4, 0.3, 0.2, 0.1, 0.05][severity - 1] + mean
    assert abs(result("contrast") - 255 * contrast).max() <= 1
    value = np.minimum(x.max(axis=2) + severity / 10, 1)
    assert abs(result("brightness").max(axis=2) - 255 * value).max() <= 1
    factor = [0.6, 0.5, 0.4, 0.3, 0.25][severity - 1]
    small = image.resize((int(90 * factor), int(60 * factor)), Image.Resampling.BOX)
    assert np.array_equal(result("pixelate"), small.resize((90, 60), Image.Resampling.NEAREST))
    jpeg = io.BytesIO()
    image.save(jpeg, "JPEG", quality=[25, 18, 15, 10, 7][severity - 1])
    assert np.array_equal(result("jpeg_compression"), Image.open(jpeg))


@pytest.mark.parametrize(
    ("image", "name", "severity", "message"),
    [
        (street(40, 40), "rain", 1, "name is 'rain'; expected one of gaussian_noise, .*, jpeg_compression"),
        (street(40, 40), "gaussian_blur", 1, "name is 'gaussian_blur'; expected one of"),
        (street(40, 40), "fog", 0, "severity is 0; expected a whole number from 1 to 5"),
        (street(40, 40), "fog", 6, "severity is 6; expected a whole number from 1 to 5"),
        (street(40, 40).convert("L"), "fog", 1, "image is L, 40x40; expected RGB of at least 32x32 pixels"),
        (street(1, 1), "fog", 1, "image is RGB, 1x1; expected RGB of at least 32x32 pixels"),
        (street(500, 31), "fog", 1, "image is RGB, 500x31; expected RGB of at least 32x32 pixels"),
    ],
)
def test_what_cannot_be_corrupted_is_refused(image, name, severity, message):
    with pytest.raises(ValueError, match=message):
        corrupt(image, name, severity, np.random.default_rng(0))


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "imagecorruptions", None)
    with pytest.raises(ImportError, match=r"needs imagecorruptions-imaug: pip install 'rein-hf\[corruptions\]'"):
        corrupt(street(40, 40), "fog", 1, np.random.default_rng(0))
