"""ReinImageProcessor: photos of any size go into the model, and come out as the same maps that `segment` gives."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, Mask2FormerImageProcessorPil, pipeline
from transformers.image_utils import SizeDict
from transformers.models.mask2former.modeling_mask2former import Mask2FormerForUniversalSegmentationOutput

import rein_hf
from rein_hf import ReinImageProcessor
from tests.support.models import make_decided


@pytest.fixture
def photo():
    """100 pixels wide, 76 high: neither is a multiple of the patch size."""
    noise = np.random.default_rng(0).integers(0, 256, (10, 13, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((100, 76), Image.Resampling.BICUBIC)


@pytest.fixture
def model(rein_model):
    make_decided(rein_model)
    return rein_model


def as_map(annotations, id2label) -> np.ndarray:
    """The class of every pixel, from a pipeline's list of masks."""
    label2id = {name: index for index, name in id2label.items()}
    masks = {label2id[found["label"]]: np.asarray(found["mask"]) == 255 for found in annotations}
    assert (sum(mask.astype(int) for mask in masks.values()) == 1).all()
    return sum(index * mask for index, mask in masks.items())


def test_a_pipeline_gives_the_models_own_map(model, photo, tmp_path):
    ReinImageProcessor().save_pretrained(tmp_path)
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    expected = rein_hf.segment(model, processor, photo, crop=128)  # one window is the whole photo
    assert len(np.unique(expected)) > 1
    pipe = pipeline("image-segmentation", model=model.get_base_model(), image_processor=processor)
    found = pipe(photo)
    assert [annotation["mask"].size for annotation in found] == [photo.size] * len(found)
    assert np.array_equal(as_map(found, model.config.id2label), expected)
    assert np.array_equal(as_map(pipe([photo, photo], subtask="semantic")[1], model.config.id2label), expected)
    assert np.array_equal(
        as_map(pipe(photo.crop((0, 0, 64, 48))), model.config.id2label),
        rein_hf.segment(model, processor, photo.crop((0, 0, 64, 48))),
    )
    with pytest.raises(ValueError, match="Subtask panoptic is not supported"):
        pipe(photo, subtask="panoptic")


def test_a_pipeline_takes_the_model_with_its_adapter_too(model, photo):
    pipe = pipeline("image-segmentation", model=model, image_processor=ReinImageProcessor())
    expected = rein_hf.segment(model, ReinImageProcessor(), photo, crop=128)
    assert np.array_equal(as_map(pipe(photo), model.config.id2label), expected)


def test_the_stock_class_would_give_another_map(model, photo):
    inputs = ReinImageProcessor()(photo, return_tensors="pt")
    with torch.no_grad():
        outputs = model(pixel_values=inputs["pixel_values"])
    ours = ReinImageProcessor().post_process_semantic_segmentation(outputs, [(76, 100)])[0]
    stock = Mask2FormerImageProcessorPil().post_process_semantic_segmentation(outputs, [(76, 100)])[0]
    assert ours.shape == stock.shape and not torch.equal(ours, stock)


def test_maps_by_hand():
    """One query sees class 1 in the left half, another class 0 in the right half; the input was 32x64."""
    masks = torch.full((1, 2, 8, 16), -9.0)
    masks[0, 0, :, :8], masks[0, 1, :, 8:] = 9.0, 9.0
    classes = torch.tensor([[[0.0, 9.0, 0.0], [9.0, 0.0, 0.0]]])
    outputs = Mask2FormerForUniversalSegmentationOutput(class_queries_logits=classes, masks_queries_logits=masks)
    expected = (torch.arange(64) < 32).long().expand(32, 64)
    processor = ReinImageProcessor()
    assert torch.equal(processor.post_process_semantic_segmentation(outputs)[0], expected)
    cut = processor.post_process_semantic_segmentation(outputs, [(30, 50)])[0]
    assert torch.equal(cut, expected[:30, :50])  # what was padded is cut off, nothing is squeezed
    resized = ReinImageProcessor(do_resize=True).post_process_semantic_segmentation(outputs, [(16, 128)])[0]
    assert torch.equal(resized, (torch.arange(128) < 64).long().expand(16, 128))
    with pytest.raises(ValueError, match=r"target_sizes\[0\] is 33x64, but the model's input was 32x64 pixels"):
        processor.post_process_semantic_segmentation(outputs, [(33, 64)])
    with pytest.raises(ValueError, match="2 target_sizes for 1 images"):
        processor.post_process_semantic_segmentation(outputs, [(32, 64), (32, 64)])


@pytest.mark.parametrize("patch, expected", [(16, (80, 112)), (14, (84, 112))])
def test_images_are_padded_to_what_the_patches_fill(photo, patch, expected, tmp_path):
    ReinImageProcessor(size_divisor=patch).save_pretrained(tmp_path)
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    assert type(processor) is ReinImageProcessor and processor.size_divisor == patch
    batch = processor([photo, photo.crop((0, 0, 20, 20))], return_tensors="pt")
    assert batch["pixel_values"].shape[-2:] == expected
    assert batch["pixel_mask"].sum(dim=(1, 2)).tolist() == [7600, 400]
    assert not batch["pixel_values"][1, :, 20:].any()
    small = processor(photo.crop((0, 0, 5, 5)), return_tensors="pt")["pixel_values"]
    assert small.shape[-2:] == (2 * patch, 2 * patch)
    fixed = processor(photo, pad_size=SizeDict(height=200, width=150), return_tensors="pt")["pixel_values"]
    assert fixed.shape[-2:] == (200, 150)


def test_windows_do_not_see_the_padding(model, photo):
    """`segment` pads each window by itself; an image processor that pads changes nothing."""
    stock = Mask2FormerImageProcessorPil(do_resize=False, ignore_index=255)
    for crop, stride in ((64, 43), (32, 32)):
        expected = rein_hf.segment(model, stock, photo, crop, stride)
        assert np.array_equal(rein_hf.segment(model, ReinImageProcessor(), photo, crop, stride), expected)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("std", [0, [0.2, 0, 0.2], np.nan])
def test_a_deviation_of_0_is_refused(model, photo, std):
    """Of NaN every pixel would become class 0."""
    for processor in (ReinImageProcessor(image_std=std), Mask2FormerImageProcessorPil(image_std=std, do_resize=False)):
        with pytest.raises(ValueError, match="image_std"):
            rein_hf.segment(model, processor, photo)
    if not np.isnan(std).any():
        with pytest.raises(ValueError, match="image_std is .*; expected numbers other than 0"):
            ReinImageProcessor(image_std=std)(photo)
