"""rein_hf.head.heads: a head that classifies pixels can do all that Mask2Former can do."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoConfig, Mask2FormerConfig, UperNetForSemanticSegmentation
from transformers.modeling_outputs import SemanticSegmenterOutput
from transformers.utils import logging

import rein_hf
from rein_hf import ViTPyramidConfig
from rein_hf.commands import assess, export, train
from rein_hf.head import pixel_loss
from rein_hf.training import trainer as trainer_module
from tests.support.models import perturb
from tests.support.runs import run_recipe


HEAD = {"model_type": "upernet", "hidden_size": 16}


@pytest.fixture
def light(build):
    """The tiny segmenter with Rein on a light head, its weights and running statistics moved."""
    model = rein_hf.add_rein(build(head=HEAD), rein_hf.ReinConfig(r=4, num_tokens=5))
    perturb(model)
    for name, buffer in model.named_buffers():
        if "running_" in name:
            buffer.uniform_(0.01, 0.1)
    model.eval().requires_grad_(False)
    logits = model(pixel_values=torch.randn(1, 3, 64, 64)).logits
    model.get_base_model().decode_head.modules_to_save["default"].classifier.bias -= logits.mean((0, 2, 3))
    return model  # which finds every class somewhere


def test_the_head_is_stock_and_its_tokens_are_not_linked(light):
    assert type(light.get_base_model()) is UperNetForSemanticSegmentation
    config = light.peft_config["default"]
    assert not config.link_queries and config.modules_to_save == ["decode_head"]
    assert not any("query" in name for name, _ in light.named_parameters())
    asked_for = rein_hf.ReinConfig(num_tokens=5)
    assert asked_for.link_queries  # the caller's is left alone


def test_what_is_trained(build):
    model = rein_hf.add_rein(build(head=HEAD), rein_hf.ReinConfig(r=4, num_tokens=5))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained and all(".rein_" in name or ".decode_head.modules_to_save." in name for name in trained)
    with_default = rein_hf.add_rein(build(head=HEAD))
    assert with_default.peft_config["default"].num_tokens == 100


def test_the_adapter_rebuilds_the_model(light, pixel_values, tmp_path):
    light.save_pretrained(tmp_path)
    loaded = rein_hf.from_pretrained(tmp_path).requires_grad_(False)
    expected = light(pixel_values=pixel_values).logits
    assert expected.shape == (2, 3, 64, 64)
    assert torch.equal(loaded(pixel_values=pixel_values).logits, expected)
    with light.disable_adapter():
        assert not torch.allclose(light(pixel_values=pixel_values).logits, expected)
    about = rein_hf.describe(tmp_path)
    assert not about.linked and about.classes == ("road", "car", "sky")


def test_the_loss_by_hand_and_without_labels():
    """Over all pixels, in float32 under autocast, the same however a batch is split."""
    torch.manual_seed(0)
    logits, labels = torch.randn(4, 3, 8, 8), torch.randint(0, 3, (4, 8, 8))
    labels[1, :4], labels[2] = 255, 255
    expected = torch.tensor(0.0)
    for b, y, x in np.argwhere(labels.numpy() != 255):
        expected = expected - logits[b, :, y, x].log_softmax(0)[labels[b, y, x]]
    expected = expected / labels.numel()
    with torch.autocast("cpu", torch.bfloat16):
        found = pixel_loss(SemanticSegmenterOutput(logits=logits), labels)
    torch.testing.assert_close(found, expected)
    parts = [pixel_loss(SemanticSegmenterOutput(logits=logits[k : k + 1]), labels[k : k + 1], 256) for k in range(4)]
    torch.testing.assert_close(sum(parts), expected)
    assert parts[2] == 0
    half = pixel_loss(SemanticSegmenterOutput(logits=logits.half()), labels)
    assert half.dtype == torch.float32


@pytest.mark.parametrize("per_device", [2, 1])
def test_a_run_leaves_an_adapter_that_loads_and_scores(recipe, tmp_path, monkeypatch, per_device):
    """Losses are divided by the pixels of the whole step, however it is split; images without a label are counted."""
    Image.fromarray(np.full((72, 96), 255, np.uint8)).save(tmp_path / "data" / "labels" / "1.png")
    numbers = []

    def watched(outputs, labels, num_items_in_batch=None):
        numbers.append(num_items_in_batch)
        return pixel_loss(outputs, labels, num_items_in_batch)

    monkeypatch.setattr(trainer_module, "pixel_loss", watched)
    light = ("--head", "{model_type: upernet, hidden_size: 16}", "--logging_steps", "50")
    trainer = run_recipe(recipe, *light, "--per_device_train_batch_size", str(per_device), "--eval_strategy", "steps")
    assert [int(number) for number in numbers] == [2 * 64 * 64] * (8 // per_device)
    history = {key: value for entry in trainer.state.log_history for key, value in entry.items()}
    assert history["unlabelled_images"] >= 1 and history["eval_seen_miou"] > 0
    model = rein_hf.from_pretrained(tmp_path / "out").requires_grad_(False)
    trained = dict(trainer.model.named_buffers())
    assert all(torch.equal(buffer, trained[name]) for name, buffer in model.named_buffers() if "running" in name)
    assert any("running" in name for name in trained)


@pytest.mark.parametrize(("tuning", "count"), [("frozen", 0), ("full", None), ("lora", 4 * 2 * 2 * 2 * 32)])
def test_other_tunings(recipe, tmp_path, tuning, count):
    values = ["--head", "{model_type: upernet, hidden_size: 16}", "--tuning", tuning]
    values += ["--lora", "{r: 2}"] if tuning == "lora" else []
    model = train.build_model(train.parse([str(recipe), *values])[0], id2label={0: "road", 1: "sky"})
    encoder = rein_hf.backbone.backbone_of(model)
    count = sum(parameter.numel() for parameter in encoder.parameters()) if count is None else count
    assert assess.trained_in_backbone(model) == count
    assert all(parameter.requires_grad for name, parameter in model.named_parameters() if "modules_to_save" in name)
    if tuning != "lora":
        model.save_pretrained(tmp_path / "whole")
        assert type(rein_hf.from_pretrained(tmp_path / "whole")) is UperNetForSemanticSegmentation


def test_windows_and_the_image_processor(light):
    """Logits are averaged over windows; a photo of one window gives the same map by every way."""
    processor, rng = rein_hf.build_image_processor(), np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (60, 50, 3), np.uint8))
    inputs = processor(image, return_tensors="pt")["pixel_values"]
    output = light(pixel_values=inputs)
    expected = output.logits[0, :, :60, :50].argmax(0)
    assert len(expected.unique()) > 1
    found = processor.post_process_semantic_segmentation(output, [(60, 50)])[0]
    assert torch.equal(found, expected)
    assert np.array_equal(rein_hf.segment(light, processor, image), expected.numpy())
    (whole,) = processor.post_process_semantic_segmentation(output)
    assert whole.shape == inputs.shape[-2:]
    wide = torch.randn(1, 3, 64, 100, generator=torch.Generator().manual_seed(0))
    scores = rein_hf.slide_inference(light, wide, crop=64, stride=36)
    left, right = (light(pixel_values=wide[..., start : start + 64]).logits for start in (0, 36))
    torch.testing.assert_close(scores[..., :36], left[..., :36], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(scores[..., 36:64], (left[..., 36:] + right[..., :28]) / 2, rtol=1e-4, atol=1e-4)


def test_exported(light):
    graph = export.SegmenterGraph(light, rein_hf.build_image_processor(), scores=True).eval()
    images = export.coloured_noise(1, 64, 64)
    program = export.trace(graph, images, None)
    labels, scores = program.module()(images)
    expected = light(pixel_values=(images.permute(0, 3, 1, 2) / 255 - graph.mean) / graph.std).logits
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(labels, scores.argmax(1).to(torch.uint8))


def test_unknown_heads_are_refused(build, vit_folder, tmp_path):
    with pytest.raises(
        ValueError, match="model_type of the head is 'mask-rcnn'; expected one of mask2former, upernet"
    ):
        build(head={"model_type": "mask-rcnn"})
    with pytest.raises(ValueError, match=r"model_type in config.json is 'dinov2'; expected one of mask2former"):
        rein_hf.from_pretrained(vit_folder)


def test_nothing_warns_that_the_backbone_is_not_supported(caplog, capfd, tmp_path, monkeypatch):
    """Transformers says so once per process: forget that it did, and make, save and load a configuration."""
    logging.get_logger().warning_once.cache_clear()
    monkeypatch.setattr(logging.get_logger("transformers"), "propagate", True)
    config = Mask2FormerConfig(backbone_config=ViTPyramidConfig())
    config.save_pretrained(tmp_path)
    Mask2FormerConfig.from_pretrained(tmp_path)
    AutoConfig.from_pretrained(tmp_path)
    assert "not a supported model" not in caplog.text + capfd.readouterr().err
    config.backbone_config.model_type = "unknown"
    config.validate_architecture()
    assert "Backbone unknown is not a supported model" in caplog.text
