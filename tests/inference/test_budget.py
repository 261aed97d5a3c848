"""rein_hf.inference.budget: what is computed together, by the memory of the device."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from rein_hf.images import fitted_size
from rein_hf.inference import budget
from rein_hf.inference.strips import resize_pixels, resized_strips


def model(hidden: int = 384, classes: int = 19):
    vit = SimpleNamespace(image_size=512, patch_size=16, hidden_size=hidden)
    config = SimpleNamespace(backbone_config=SimpleNamespace(backbone_config=vit), num_queries=100, feature_size=256)
    config.id2label = dict.fromkeys(range(classes))
    return SimpleNamespace(config=config)


def test_bytes_of_a_window():
    """The finest map of 128x128 in 384 + 3 x 256 channels and 2 x 100 masks, 1024 tokens, 19 scores of each pixel."""
    expected = 4 * (128**2 * (384 + 768 + 200) + 1024 * 12 * 384 + 19 * 512**2)
    assert budget.window_bytes(model(), 512, 512) == expected
    assert budget.window_bytes(model(), 1024, 512) == 2 * expected


@pytest.mark.parametrize(
    ("side", "images", "hidden", "expected"), [(512, 1, 384, 1), (512, 1, 1024, 1), (256, 1, 384, 6), (256, 3, 384, 2),
    (64, 1, 384, 8), (2048, 4, 1024, 1)],
)  # fmt: skip
def test_windows_on_a_cpu(side, images, hidden, expected):
    found = budget.windows_at_once(model(hidden), side, side, images, torch.device("cpu"))
    assert found == expected


def test_windows_on_a_gpu_fill_a_quarter_of_its_free_memory(monkeypatch):
    gpu, window = torch.device("cuda", 0), budget.window_bytes(model(), 512, 512)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (40 * window, 999 * window))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 12 * window)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 4 * window)
    assert budget.windows_at_once(model(), 512, 512, 1, gpu) == 12
    assert budget.windows_at_once(model(), 512, 512, 5, gpu) == 2
    assert budget.windows_at_once(model(), 512, 512, 99, gpu) == 1
    assert budget.windows_at_once(model(), 16, 16, 1, gpu) == 32
    # another device, which does not say how much is free
    assert budget.windows_at_once(model(), 512, 512, 1, torch.device("mps")) == 2**30 // window


def test_rows_of_a_strip():
    """16 on a CPU; elsewhere as many as 256 MiB hold, all rows of most images."""
    maps = torch.empty(1, 128, 128, 100)
    assert budget.rows_at_once(maps, (512, 512)) == 16
    assert budget.rows_at_once(maps.to("meta"), (512, 512)) == 2**28 // (512 * 100 * 4) > 512
    photo = torch.empty(1, 128, 128, 3, dtype=torch.uint8, device="meta")  # of which strips are float32
    assert budget.rows_at_once(photo, (512, 512)) == 2**28 // (512 * 3 * 4)
    assert budget.rows_at_once(torch.empty(8, 1, 1, 100, device="meta"), (512, 99999)) == 16


@pytest.mark.parametrize("rows", [1, 7, 100, 10**9])
def test_strips_of_any_height_are_the_same_pixels(rows, monkeypatch):
    maps = torch.randn(2, 3, 11, 9, generator=torch.Generator().manual_seed(0))
    expected = torch.cat([strip for _, strip in resized_strips(maps, (40, 30))], dim=1)
    monkeypatch.setattr("rein_hf.inference.strips.rows_at_once", lambda *args: rows)
    strips = list(resized_strips(maps, (40, 30)))
    assert len(strips) == -(-40 // rows) and torch.equal(torch.cat([strip for _, strip in strips], dim=1), expected)


@pytest.mark.parametrize("sides", [(96, 64), (64, 96), (37, 53), (300, 2), (5, 5)])
@pytest.mark.parametrize("size", [(48, 32), (80, 61), (200, 1)])
def test_photos_are_resized_as_opencv_does_to_within_a_level(sides, size):
    pixels = torch.randint(0, 256, (3, *sides), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    found = resize_pixels(pixels, size)
    width, height = fitted_size((sides[1], sides[0]), size)
    assert found.dtype == torch.uint8 and found.shape == (3, height, width)
    exact = F.interpolate(pixels[None].double(), size=(height, width), mode="bilinear", align_corners=False)[0]
    assert (found.double() - exact).abs().max() <= 0.5 + 1e-4  # rounded, where OpenCV has a level more or less
    assert torch.equal(resize_pixels(pixels, size[::-1]), found)


def test_a_photo_that_fits_is_not_touched():
    pixels = torch.zeros(3, 20, 40, dtype=torch.uint8)
    assert resize_pixels(pixels, None) is pixels and resize_pixels(pixels, (40, 20)) is pixels
