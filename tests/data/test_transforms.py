"""rein_hf.transforms: the recipe's augmentation, against formulas in numpy."""

from collections import Counter

import numpy as np
import pytest
from PIL import Image

from rein_hf.data import transforms
from rein_hf.data.transforms import Augmentation, photometric_distortion


def resize(image: Image.Image, size: tuple[int, int], resample=Image.Resampling.BILINEAR) -> Image.Image:
    """The whole image at `size`: a crop of everything, not mirrored."""
    step = (image.width / size[0], image.height / size[1])
    return transforms.affine_sample(image, step, (0, 0), size, False, resample)


def bilinear(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    """Bilinear without antialiasing, pixel centres at a half, edges repeated: OpenCV's INTER_LINEAR."""

    def axis(count: int, length: int):
        centre = (np.arange(count) + 0.5) * length / count - 0.5
        low = np.floor(centre).astype(int)
        return np.clip(low, 0, length - 1), np.clip(low + 1, 0, length - 1), centre - low

    (top, bottom, down), (left, right, across) = axis(height, pixels.shape[0]), axis(width, pixels.shape[1])
    pixels = pixels.astype(float)
    upper = pixels[top][:, left] * (1 - across) + pixels[top][:, right] * across
    lower = pixels[bottom][:, left] * (1 - across) + pixels[bottom][:, right] * across
    return upper * (1 - down)[:, None] + lower * down[:, None]


@pytest.fixture
def noise():
    return np.random.default_rng(0).integers(0, 256, (12, 16), dtype=np.uint8)


@pytest.mark.parametrize("size", [(16, 12), (8, 6), (32, 24), (5, 3), (40, 31), (7, 24), (1, 1)])
def test_resize_is_bilinear_without_antialiasing(noise, size):
    """PIL cuts off fractions, so values are up to one grey level lower."""
    found = np.asarray(resize(Image.fromarray(noise), size)).astype(float)
    expected = bilinear(noise, *size)
    assert found.shape == size[::-1]
    assert (found <= expected + 1e-6).all() and (found > expected - 1 - 1e-6).all()


def test_half_size_is_the_mean_of_two_by_two(noise):
    found = np.asarray(resize(Image.fromarray(noise), (8, 6)))
    assert np.array_equal(found, noise.reshape(6, 2, 8, 2).astype(int).sum((1, 3)) // 4)


def test_a_fifth_of_the_size_is_the_middle_pixel(noise):
    """Antialiasing would mix all 25."""
    pixels = np.kron(noise, np.eye(5, dtype=np.uint8)[2][:, None] * np.eye(5, dtype=np.uint8)[2])
    assert np.array_equal(np.asarray(resize(Image.fromarray(pixels), (16, 12))), noise)


def test_resizing_to_the_same_size_changes_nothing(noise):
    assert np.array_equal(np.asarray(resize(Image.fromarray(noise), (16, 12))), noise)


@pytest.mark.parametrize("size", [(37, 29), (48, 36), (9, 5)])
def test_labels_take_the_nearest_pixel(noise, size):
    found = np.asarray(resize(Image.fromarray(noise), size, Image.Resampling.NEAREST))
    rows = ((np.arange(size[1]) + 0.5) * 12 / size[1]).astype(int)
    columns = ((np.arange(size[0]) + 0.5) * 16 / size[0]).astype(int)
    assert np.array_equal(found, noise[rows][:, columns])


@pytest.fixture
def sampled(monkeypatch):
    """The arguments of every resampling: (mode, step, origin, size, flip)."""
    calls, sample = [], transforms.affine_sample

    def record(image, step, origin, size, flip, resample):
        calls.append((image.mode, step, origin, size, flip))
        return sample(image, step, origin, size, flip, resample)

    monkeypatch.setattr(transforms, "affine_sample", record)
    return calls


def mixed(width: int, height: int) -> tuple[Image.Image, Image.Image]:
    """An image of any content and a label of small stripes of four classes, which every crop accepts."""
    label = np.broadcast_to(np.arange(width, dtype=np.uint8) // 2 % 4, (height, width))
    return Image.new("RGB", (width, height), (90, 120, 40)), Image.fromarray(np.ascontiguousarray(label))


def test_short_sides_are_those_of_the_recipe(sampled):
    """int(512 * 0.1 * k) for k from 5 to 20, each about as often."""
    image, label = mixed(64, 48)
    draws = 240
    for seed in range(draws):
        Augmentation(512, photometric=False)(image, label, np.random.default_rng(seed))
    sides = Counter(round(48 / step[1]) for mode, step, *_ in sampled if mode == "RGB")
    assert sorted(sides) == [256, 307, 358, 409, 460, 512, 563, 614, 665, 716, 768, 819, 870, 921, 972, 1024]
    assert sum(sides.values()) == draws and min(sides.values()) > 3 and max(sides.values()) < 35
    for _, step, origin, size, _ in sampled:
        scaled = (round(64 / step[0]), round(48 / step[1]))
        assert abs(scaled[0] - scaled[1] * 64 / 48) <= 0.5  # the ratio is kept
        assert size == (min(512, scaled[0]), min(512, scaled[1]))
        assert all(0 <= start <= side - cut for start, side, cut in zip(origin, scaled, size, strict=True))


@pytest.mark.parametrize("turned", [False, True])
def test_long_sides_are_at_most_four_crops(sampled, turned):
    image, label = mixed(30, 300) if turned else mixed(300, 30)
    for seed in range(60):
        Augmentation(64, photometric=False)(image, label, np.random.default_rng(seed))
    sides = {tuple(sorted((round(image.width / step[0]), round(image.height / step[1])))) for _, step, *_ in sampled}
    assert sides == {(26, 256)}  # the smallest short side, 32, would be of 320


def test_crops_begin_everywhere(sampled):
    image, label = mixed(64, 48)
    origins = []
    for seed in range(300):
        sampled.clear()
        Augmentation(32, photometric=False)(image, label, np.random.default_rng(seed))
        _, step, origin, size, _ = sampled[-1]
        if round(48 / step[1]) == 48:
            origins.append(origin)
    starts = [set(axis) for axis in zip(*origins, strict=True)]
    assert len(origins) > 10 and min(starts[1]) <= 3 and max(starts[1]) >= 13 and max(starts[0]) > 25


def coded(width: int, height: int, scale: int = 16) -> tuple[Image.Image, Image.Image]:
    """Blocks of random classes, and an image that tells the class: (20 id, 255 - 20 id, 7 id)."""
    ids = np.random.default_rng(5).integers(0, 12, (height // scale, width // scale))
    label = np.kron(ids, np.ones((scale, scale), int)).astype(np.uint8)
    image = np.stack([20 * label, 255 - 20 * label, 7 * label], -1).astype(np.uint8)
    return Image.fromarray(image), Image.fromarray(label)


@pytest.mark.parametrize("seed", range(12))
def test_image_and_label_stay_aligned(seed):
    """The image still tells the label, apart from one pixel where classes meet."""
    image, label = Augmentation(96, photometric=False)(*coded(256, 160), np.random.default_rng(seed))
    label = np.asarray(label).astype(int)
    rows, columns = image.height, image.width
    assert label.shape == (96, 96)
    assert (label[rows:] == 255).all() and (label[:, columns:] == 255).all()
    label, image = label[:rows, :columns], np.asarray(image).astype(int)
    assert label.max() < 12
    around = np.stack([np.roll(label, (y, x), (0, 1)) for y in (-1, 0, 1) for x in (-1, 0, 1)])
    inside = (around == label).all(0)
    inside[[0, -1]], inside[:, [0, -1]] = False, False
    assert inside.sum() > 0.3 * label.size
    expected = np.stack([20 * label, 255 - 20 * label, 7 * label], -1)
    assert np.abs(image - expected)[inside].max() <= 1


def test_labels_keep_their_ids():
    """No mixture of two ids, at any scale."""
    ids = np.random.default_rng(0).choice([0, 18, 255], (48, 64)).astype(np.uint8)
    image, label = Image.new("RGB", (64, 48)), Image.fromarray(ids)
    for seed in range(20):
        found = np.asarray(Augmentation(32)(image, label, np.random.default_rng(seed))[1])
        assert set(np.unique(found)) <= {0, 18, 255}


def test_flipping_mirrors_both(sampled):
    """At the crop's own size a flip is exact, and about half of the draws flip."""
    image, label = coded(64, 64)
    unflipped, flipped = (
        (np.asarray(image), np.asarray(label)),
        (np.asarray(image)[:, ::-1], np.asarray(label)[:, ::-1]),
    )
    seen = Counter()
    for seed in range(300):
        sampled.clear()
        found = Augmentation(64, photometric=False)(image, label, np.random.default_rng(seed))
        _, step, _, _, flip = sampled[-1]
        seen[flip] += 1
        if step == (1, 1):
            expected = flipped if flip else unflipped
            assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))
            seen["exact", flip] += 1
    assert 120 < seen[True] < 180
    assert seen["exact", True] > 3 and seen["exact", False] > 3


def test_small_images_are_padded_at_the_right_and_at_the_bottom():
    image, label = mixed(64, 48)
    sizes = set()
    for seed in range(40):
        found, padded = Augmentation(512, photometric=False)(image, label, np.random.default_rng(seed))
        padded = np.asarray(padded)
        sizes.add(found.size)
        assert padded.shape == (512, 512)
        assert (padded[: found.height, : found.width] < 4).all()
        assert (padded[found.height :] == 255).all() and (padded[:, found.width :] == 255).all()
    assert (341, 256) in sizes and (512, 512) in sizes


def redraws(sampled, label: np.ndarray, seed: int = 0, **kwargs) -> int:
    image = Image.new("RGB", label.shape[::-1])
    sampled.clear()
    Augmentation(32, photometric=False, **kwargs)(image, Image.fromarray(label), np.random.default_rng(seed))
    return sum(mode == "L" for mode, *_ in sampled) - 1


def test_a_crop_of_mostly_one_class_is_drawn_again(sampled):
    """Up to ten times, at 75 % of the valid pixels; the pixels of 255 do not count."""
    columns = np.arange(64)

    def share(percent: int, rest: int = 1) -> np.ndarray:
        """Rows of a pattern that repeats every 20 columns, so that each crop has about this share of class 0."""
        pattern = np.where(np.arange(20) < percent / 5, 0, rest).astype(np.uint8)
        return np.broadcast_to(pattern[columns % 20], (64, 64)).copy()

    assert redraws(sampled, np.zeros((64, 64), np.uint8)) == 10
    assert redraws(sampled, np.zeros((64, 64), np.uint8), crop_tries=3) == 3
    assert redraws(sampled, share(90)) == 10
    assert redraws(sampled, share(50)) == 0
    assert redraws(sampled, share(90), max_class_share=1.0) == 0
    half_ignored = share(50)
    half_ignored[:, :] = np.where(np.arange(64)[:, None] % 4 < 2, half_ignored, 255)
    assert redraws(sampled, half_ignored) == 0
    assert redraws(sampled, share(50, rest=255)) == 10  # one class and nothing else
    assert redraws(sampled, np.full((64, 64), 255, np.uint8)) == 10


@pytest.mark.parametrize(("counts", "expected"), [((75, 25), False), ((74, 26), True), ((60, 20, 300), False)])
def test_three_quarters_exactly_are_too_much(counts, expected):
    """Of the valid pixels: the third count is of 255."""
    ids = np.repeat(np.array([3, 9, 255][: len(counts)], np.uint8), counts)
    assert Augmentation()._is_mixed(Image.fromarray(ids[None])) == expected


def test_the_same_generator_draws_the_same():
    image, label = coded(128, 96)
    first, again, other = (Augmentation(64)(image, label, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert [a.tobytes() for a in first] == [a.tobytes() for a in again]
    assert first[0].tobytes() != other[0].tobytes()


class Draws:
    """A generator whose coins fall as told; each draw of a range is its given value, or an error."""

    def __init__(self, brightness=None, contrast=None, contrast_first=True, saturation=None, hue=None):
        steps = [brightness, contrast, saturation, hue]
        coins = [0.0 if step is not None else 0.9 for step in steps]
        first = 0.0 if contrast_first else 0.9
        order = [coins[0], first, *((coins[1], coins[2], coins[3]) if contrast_first else (*coins[2:], coins[1]))]
        self.coins, self.hue = iter(order), hue
        values = [brightness, contrast, saturation] if contrast_first else [brightness, saturation, contrast]
        self.values = iter(value for value in values if value is not None)
        self.ranges = []

    def random(self):
        return next(self.coins)

    def uniform(self, low, high):
        self.ranges.append((low, high))
        return next(self.values)

    def integers(self, low, high):
        self.ranges.append((low, high))
        return self.hue


@pytest.fixture
def colours():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 9, 3), dtype=np.uint8))


def test_no_step_leaves_the_image(colours):
    assert photometric_distortion(colours, Draws()).tobytes() == colours.tobytes()


@pytest.mark.parametrize("offset", [-32, -7.5, 20.25, 31.9])
def test_brightness(colours, offset):
    draws = Draws(brightness=offset)
    expected = np.clip(np.asarray(colours, float) + offset, 0, 255).astype(np.uint8)
    assert np.array_equal(np.asarray(photometric_distortion(colours, draws)), expected)
    assert draws.ranges == [(-32, 32)]


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("factor", [0.5, 1.37])
def test_contrast(colours, factor, first):
    draws = Draws(contrast=factor, contrast_first=first)
    expected = np.clip(np.asarray(colours) * factor, 0, 255).astype(np.uint8)
    assert np.array_equal(np.asarray(photometric_distortion(colours, draws)), expected)
    assert draws.ranges == [(0.5, 1.5)]


def test_contrast_comes_after_brightness_and_on_either_side_of_saturation():
    image = Image.new("RGB", (1, 1), (200, 100, 100))
    assert photometric_distortion(image, Draws(brightness=30, contrast=0.5)).getpixel((0, 0)) == (115, 65, 65)
    # clipped before or after the saturation is halved
    before = photometric_distortion(image, Draws(contrast=1.5, saturation=0.5)).getpixel((0, 0))
    after = photometric_distortion(image, Draws(contrast=1.5, saturation=0.5, contrast_first=False)).getpixel((0, 0))
    np.testing.assert_allclose(before, (255, 202, 202), atol=2)
    np.testing.assert_allclose(after, (255, 225, 225), atol=2)


@pytest.mark.parametrize("factor", [0.5, 1.5])
def test_saturation(factor):
    """The largest channel stays; the others' distances from it are multiplied."""
    draws = Draws(saturation=factor)
    found = photometric_distortion(Image.new("RGB", (1, 1), (200, 120, 160)), draws).getpixel((0, 0))
    np.testing.assert_allclose(found, (200, 200 - 80 * factor, 200 - 40 * factor), atol=2)
    assert draws.ranges == [(0.5, 1.5)]


@pytest.mark.parametrize("hue", [-18, -1, 0, 10, 17])
@pytest.mark.parametrize("corner", [0, 60, 120, 180, 240, 300])
def test_hue_turns_by_two_degrees_a_step(hue, corner):
    """Pure colours, all around the circle, also across red; PIL's hue has steps of 1.4 degrees."""

    def pure(degrees: float) -> tuple[int, ...]:
        turned = [(degrees + shift) % 360 for shift in (0, 240, 120)]
        return tuple(round(255 * np.clip(abs(angle - 180) / 60 - 1, 0, 1)) for angle in turned)

    draws = Draws(hue=hue)
    found = photometric_distortion(Image.new("RGB", (1, 1), pure(corner)), draws).getpixel((0, 0))
    np.testing.assert_allclose(found, pure(corner + 2 * hue), atol=9)
    assert draws.ranges == [(-18, 18)]


def test_a_hue_of_zero_is_no_turn():
    """255 is red as 0 is: nothing else may change at the seam."""
    circle = Image.merge(
        "HSV", [Image.fromarray(np.arange(256, dtype=np.uint8)[None])] + [Image.new("L", (256, 1), 255)] * 2
    )
    image = circle.convert("RGB")
    assert photometric_distortion(image, Draws(hue=0)).tobytes() == image.convert("HSV").convert("RGB").tobytes()


def test_grey_has_no_hue():
    image = Image.new("RGB", (3, 2), (77, 77, 77))
    assert photometric_distortion(image, Draws(hue=15, saturation=1.4)).tobytes() == image.tobytes()


def test_every_step_has_probability_one_half():
    """No step at all in one image of sixteen; brightness and contrast seen on grey, saturation on a colour."""
    grey, red = Image.new("RGB", (1, 1), (100, 100, 100)), Image.new("RGB", (1, 1), (120, 60, 60))
    draws, unchanged, grey_unchanged, hues = 2000, 0, 0, 0
    for seed in range(draws):
        found = photometric_distortion(red, np.random.default_rng(seed)).getpixel((0, 0))
        unchanged += found == (120, 60, 60)
        hues += found[1] != found[2]
        grey_unchanged += photometric_distortion(grey, np.random.default_rng(seed)).getpixel((0, 0)) == (100, 100, 100)
    assert 1 / 16 - 0.02 < unchanged / draws < 1 / 16 + 0.03
    assert 0.25 - 0.03 < grey_unchanged / draws < 0.25 + 0.04
    assert 0.4 < hues / draws < 0.5


def test_the_label_is_not_distorted():
    image, label = coded(128, 96)
    plain, distorted = (
        Augmentation(64, photometric=on)(image, label, np.random.default_rng(3)) for on in (False, True)
    )
    assert plain[1].tobytes() == distorted[1].tobytes() and plain[0].tobytes() != distorted[0].tobytes()
