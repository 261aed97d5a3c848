"""segment(): what it takes for a photo, and probabilities."""

import numpy as np
import pytest
import torch
from PIL import Image

import rein_hf
from rein_hf.inference.segmentation import class_probabilities
from tests.support.models import make_decided


@pytest.fixture
def model(rein_model):
    make_decided(rein_model)
    return rein_model


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (48, 80, 3), dtype=np.uint8)


def test_all_kinds_of_photos_give_one_map(model, pixels, tmp_path):
    processor, photo = rein_hf.build_image_processor(), Image.fromarray(pixels)
    photo.save(tmp_path / "photo.png")
    expected = rein_hf.segment(model, processor, photo)
    assert len(np.unique(expected)) > 1
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    kinds = [
        tmp_path / "photo.png",
        str(tmp_path / "photo.png"),
        pixels,
        pixels / 255,
        pixels.astype(np.float32) / 255,
    ]
    kinds += [tensor, tensor / 255, tensor.double() / 255, pixels[:, ::-1][:, ::-1]]
    for kind in kinds:
        found = rein_hf.segment(model, processor, kind)
        assert found.dtype == np.uint8 and np.array_equal(found, expected)


def test_grey_photos(model, pixels):
    processor, grey = rein_hf.build_image_processor(), pixels[..., 0]
    expected = rein_hf.segment(model, processor, Image.fromarray(grey))
    for kind in (grey, torch.from_numpy(grey)[None], np.repeat(grey[..., None], 3, axis=-1)):
        assert np.array_equal(rein_hf.segment(model, processor, kind), expected)


def test_several_photos(model, pixels):
    processor = rein_hf.build_image_processor()
    one, other = rein_hf.segment(model, processor, pixels), rein_hf.segment(model, processor, pixels[:32, :50])
    found = rein_hf.segment(model, processor, [pixels, Image.fromarray(pixels[:32, :50])])
    assert isinstance(found, list) and np.array_equal(found[0], one) and np.array_equal(found[1], other)
    batch = np.stack([pixels, pixels])
    for kind in (batch, torch.from_numpy(batch).permute(0, 3, 1, 2)):
        found = rein_hf.segment(model, processor, kind)
        assert len(found) == 2 and all(np.array_equal(label, one) for label in found)
    assert rein_hf.segment(model, processor, []) == []


@pytest.mark.parametrize(
    ("photo", "error", "message"),
    [
        (np.zeros((3, 8, 8), np.uint8), ValueError, r"array of shape \(3, 8, 8\); expected \(H, W, 3\)"),
        (torch.zeros(8, 8, 3), ValueError, r"tensor of shape \(8, 8, 3\); expected \(3, H, W\)"),
        (torch.zeros(3, 0, 8), ValueError, r"tensor of shape \(3, 0, 8\)"),
        (np.full((8, 8, 3), 200.0), ValueError, "floats from 200 to 200; expected 0 to 1. Values from 0 to 255"),
        (torch.full((3, 8, 8), -1.0), ValueError, "floats from -1 to -1"),
        (np.full((8, 8), np.nan), ValueError, "floats from nan to nan"),
        (np.zeros((8, 8), np.uint16), ValueError, "uint16; expected uint8, or floats from 0 to 1"),
        (7, TypeError, "A photo is a int; expected a path, a PIL image"),
        ("nowhere.png", ValueError, "nowhere.png cannot be read as an image"),
    ],
)
def test_what_is_no_photo(model, photo, error, message):
    with pytest.raises(error, match=message):
        rein_hf.segment(model, rein_hf.build_image_processor(), photo)


@pytest.mark.parametrize("size", [None, (120, 60)])
def test_probabilities(model, pixels, size):
    processor = rein_hf.build_image_processor()
    found = rein_hf.segment(model, processor, pixels, 48, 32, size, return_scores=True)
    assert isinstance(found, rein_hf.Segmentation)
    labels, scores, confidence = found
    assert (scores.shape, scores.dtype, confidence.shape) == ((3, 48, 80), np.float32, (48, 80))
    assert np.abs(scores.sum(0) - 1).max() < 1e-6 and scores.min() >= 0
    assert np.array_equal(labels, rein_hf.segment(model, processor, pixels, 48, 32, size))
    assert np.array_equal(scores.argmax(0), labels) and np.array_equal(scores.max(0), confidence)
    if size is None:  # the scores of the windows, divided by their sum
        values = processor(Image.fromarray(pixels), return_tensors="pt")["pixel_values"][..., :48, :80]
        by_hand = rein_hf.slide_inference(model, values, 48, 32)[0]
        expected = torch.where(by_hand.sum(0) > 0, by_hand / by_hand.sum(0), 1 / 3)
        assert torch.equal(torch.from_numpy(scores), expected)
    several = rein_hf.segment(model, processor, [pixels, pixels], 48, 32, size, return_scores=True)
    assert all(np.array_equal(one.scores, scores) for one in several)


def test_probabilities_of_a_head_that_classifies_pixels(build, pixels):
    model = build(head={"model_type": "upernet", "hidden_size": 16}).eval()
    labels, scores, confidence = rein_hf.segment(model, rein_hf.build_image_processor(), pixels, return_scores=True)
    assert np.abs(scores.sum(0) - 1).max() < 1e-6 and np.array_equal(scores.argmax(0), labels)
    assert confidence.min() >= 1 / 3


def test_probabilities_where_no_query_answers():
    scores = torch.tensor([[0.0, 0.0], [1e-30, 3e-30]])
    assert torch.allclose(class_probabilities(scores, of_masks=True), torch.tensor([[0.5, 0.5], [0.25, 0.75]]))
    assert torch.equal(class_probabilities(scores, of_masks=False)[0], torch.tensor([0.5, 0.5]))
