"""rein_hf.inference.ahead and transfer: read by workers, batched by size, the same label maps as one by one."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.mask2former.image_processing_pil_mask2former import Mask2FormerImageProcessorPil

import rein_hf
from rein_hf.inference import (
    ahead,
    batched_by_size,
    label_maps,
    pixel_values_of,
    prepare_image,
    read_ahead,
    segment,
    start_copy,
    to_device,
)
from tests.support.models import make_decided


CPU = torch.device("cpu")


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def tenth(item: int) -> torch.Tensor:
    if item == 5:
        raise ValueError("number 5 cannot be read: it is odd")
    return torch.full((2,), item / 10)


@pytest.mark.parametrize("workers", [0, 2])
def test_items_come_in_order_and_errors_as_they_are(monkeypatch, workers):
    monkeypatch.setattr(ahead, "default_workers", lambda device: workers)
    found = read_ahead([4, 1, 3, 5, 2], tenth, CPU)
    assert [next(found).tolist() for _ in range(3)] == [tenth(item).tolist() for item in (4, 1, 3)]
    with pytest.raises(ValueError, match="^number 5 cannot be read: it is odd$"):
        next(found)
    assert list(read_ahead([], tenth, CPU)) == []


def test_nothing_is_read_before_its_turn_without_workers():
    read = []
    found = read_ahead([1, 2, 3], lambda item: read.append(item) or item, CPU)
    assert next(found) == 1 and read == [1]


def test_batches_are_of_one_size_and_in_order(monkeypatch):
    monkeypatch.setattr(ahead, "images_at_once", lambda model, height, width, *sides: 3 if width == 8 else 2)
    widths = [8, 8, 8, 8, 6, 6, 6, 8, 7]
    items = [(index, prepare_image(photo(width, 5))) for index, width in enumerate(widths)]
    batches = list(batched_by_size(iter(items), lambda item: item[1], None))
    assert [[index for index, _ in batch] for batch in batches] == [[0, 1, 2], [3], [4, 5], [6], [7], [8]]


def test_a_full_batch_is_not_kept_back(monkeypatch):
    """An image alone comes before the next one is read."""
    monkeypatch.setattr(ahead, "images_at_once", lambda *args: 1)
    images = (prepare_image(photo(8, 5)) for _ in range(2))
    batches = batched_by_size(images, lambda image: image, None)
    next(batches)
    assert len(list(images)) == 1


def test_images_at_once(rein_model, monkeypatch):
    """On a CPU one by one. Elsewhere their windows share what one image may take."""
    assert ahead.images_at_once(rein_model, 64, 64) == 1
    model = SimpleNamespace(device=torch.device("meta"), config=rein_model.config)
    monkeypatch.setattr(ahead, "windows_at_once", lambda *args: 12)
    assert ahead.images_at_once(model, 64, 64) == 12
    assert ahead.images_at_once(model, 64, 120) == 4  # three windows of 64 at steps of 43
    assert ahead.images_at_once(model, 640, 640) == 1


@pytest.mark.parametrize("size", [None, (50, 50)])
def test_label_maps_are_those_of_segment(rein_model, size):
    """Together and one by one, of equal and of different sizes of label maps."""
    make_decided(rein_model)
    processor = rein_hf.build_image_processor()
    photos = [photo(100, 70), photo(100, 70, seed=1), photo(100, 70, seed=2)]
    photos += [photo(200, 140, seed=3)] if size else []  # of the same size for the model
    expected = [segment(rein_model, processor, one, size=size) for one in photos]
    found = label_maps(rein_model, processor, [prepare_image(one, size) for one in photos])
    assert [(label.shape, label.dtype) for label in found] == [(label.shape, torch.uint8) for label in expected]
    assert len(np.unique(np.concatenate([label.ravel() for label in expected]))) > 1
    for one, other in zip(found, expected, strict=True):
        assert (one.numpy() == other).mean() > 0.999
    (alone,) = label_maps(rein_model, processor, [prepare_image(photos[1], size)])
    assert np.array_equal(alone.numpy(), expected[1])


@pytest.mark.parametrize("orientation", [1, 6])
def test_images_are_prepared_upright(orientation):
    image = photo(30, 20)
    image.getexif()[0x0112] = orientation
    prepared = prepare_image(image, (15, 10))
    assert prepared.size == ((20, 30) if orientation == 1 else (30, 20))
    assert prepared.pixels.shape == ((3, 10, 15) if orientation == 1 else (3, 15, 10))
    assert prepared.pixels.dtype == torch.uint8


@pytest.mark.parametrize(
    "make", [rein_hf.build_image_processor, partial(Mask2FormerImageProcessorPil, do_resize=False)]
)
def test_pixels_are_normalised_as_by_the_processor(make):
    """Bit for bit, whatever its mean and deviation are, or without any."""
    image = photo(40, 30)
    pixels = prepare_image(image).pixels
    for changes in ({}, {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 2, 1]}, {"do_normalize": False}):
        processor = make()
        for key, value in changes.items():
            setattr(processor, key, value)
        expected = processor(image, return_tensors="pt")["pixel_values"][..., :30, :40]
        assert torch.equal(pixel_values_of(processor, pixels, CPU), expected)


def test_other_processors_are_asked_themselves():
    class Halves:
        def __call__(self, image, return_tensors):
            padded = torch.zeros(1, 3, 64, 64)
            padded[..., :30, :40] = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 2
            return {"pixel_values": padded}

    pixels = prepare_image(photo(40, 30)).pixels
    assert torch.equal(pixel_values_of(Halves(), pixels, CPU), pixels[None] / 2)


def test_lookups_of_a_gpu_are_those_of_a_cpu():
    """The operators that another device takes, on the CPU."""
    pixels, levels = prepare_image(photo(40, 30)).pixels, torch.rand(3, 256)
    expected = levels.gather(1, pixels.flatten(1).long()).view(3, 30, 40)
    assert torch.equal(rein_hf.images.normalize(pixels, levels), expected)
    assert torch.equal(rein_hf.images.normalize(torch.stack([pixels, pixels]), levels)[1], expected)
    assert rein_hf.images.normalize(pixels.to("meta"), levels.to("meta")).shape == (3, 30, 40)


def test_copies_on_a_cpu():
    tensor = torch.arange(6)
    assert to_device(tensor, CPU) is tensor and torch.equal(start_copy(tensor)(), tensor)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_copies_on_a_gpu():
    """A copy has what was there when it began."""
    device, values = torch.device("cuda"), torch.arange(10**6).pin_memory()
    tensor = to_device(values, device)
    copied = start_copy(tensor)
    tensor.zero_()
    found = copied()
    assert found.is_pinned() and torch.equal(found, values)
    pixels, levels = prepare_image(photo(40, 30)).pixels, torch.rand(3, 256)
    on_gpu = rein_hf.images.normalize(pixels.to(device), levels.to(device))
    assert torch.equal(on_gpu.cpu(), rein_hf.images.normalize(pixels, levels))
