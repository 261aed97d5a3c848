"""Frozen weights that are cast once: as exact as under autocast, on every known architecture."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model

import rein_hf
from rein_hf import ReinConfig
from rein_hf.backbone import backbone_of, cast_frozen_weights
from tests.support import vision_encoders
from tests.support.models import perturb
from tests.support.operator_count import OperatorCount
from tests.support.runs import HEAD, equal_adapters, run_recipe


CLASSES = {0: "road", 1: "car", 2: "sky"}


@pytest.fixture(scope="module", params=vision_encoders.CHECKPOINTS)
def model(request, tmp_path_factory):
    folder = vision_encoders.write_encoder(request.param, tmp_path_factory.mktemp("source"))
    torch.manual_seed(0)
    model = rein_hf.build_segmenter(folder, CLASSES, image_size=64, num_queries=8, head=HEAD)
    model = rein_hf.add_rein(model, ReinConfig(r=4, num_tokens=8))
    perturb(model)
    return model


@pytest.fixture
def images():
    return torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))


def maps_and_gradients(model, images, dtype):
    backbone = copy.deepcopy(backbone_of(model)).train()
    with torch.autocast("cpu", dtype):
        maps = backbone(images).feature_maps
    sum(one.float().square().mean() for one in maps).backward()
    return maps, {name: p.grad for name, p in backbone.named_parameters() if p.grad is not None}


def assert_equal(found, expected):
    for one, other in zip(found[0], expected[0], strict=True):
        assert one.dtype == other.dtype and torch.equal(one, other)
    assert found[1].keys() == expected[1].keys() and found[1]
    assert all(torch.equal(found[1][name], expected[1][name]) for name in expected[1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_features_and_gradients_are_those_of_autocast(model, images, dtype):
    expected = maps_and_gradients(model, images, dtype)
    changed = copy.deepcopy(model)
    backbone = backbone_of(changed)
    before = {name: p.dtype for name, p in backbone.named_parameters()}
    names = cast_frozen_weights(backbone, dtype)
    assert_equal(maps_and_gradients(changed, images, dtype), expected)
    after = {name: p.dtype for name, p in backbone.named_parameters()}
    assert after == {name: dtype if name in names else before[name] for name in before}
    assert names and not any("rein_" in name for name in names)
    assert cast_frozen_weights(backbone, dtype) == []
    with torch.no_grad():
        alone, under = (backbone.eval()(images).feature_maps for _ in range(2))
        with torch.autocast("cpu", dtype):
            under = backbone(images).feature_maps
    assert all(torch.equal(one, other) for one, other in zip(alone, under, strict=True))


def test_no_weight_is_cast_any_more(rein_model, pixel_values):
    rein_model.requires_grad_(False)
    backbone, casts = backbone_of(rein_model), []
    for _ in range(2):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), OperatorCount() as count:
            backbone(pixel_values)
        casts.append(count.names["aten::_to_copy"])
        names = cast_frozen_weights(backbone, torch.bfloat16)
        if len(casts) == 1:
            # W and b of six linear layers in each of four blocks
            assert len(names) == 4 * 6 * 2
    assert casts[0] - casts[1] == 4 * 6 * 2


def test_what_is_trained_stays_in_float32(segmenter):
    backbone = backbone_of(segmenter)
    assert cast_frozen_weights(backbone.requires_grad_(True), torch.bfloat16) == []
    assert backbone.autocast_dtype is None
    backbone.requires_grad_(False).vit.encoder.layer[1].requires_grad_(True)
    names = cast_frozen_weights(backbone, torch.bfloat16)
    assert len(names) == 3 * 6 * 2 and not any("layer.1." in name for name in names)


def test_adapters_of_other_methods_stay_in_float32(segmenter):
    model = get_peft_model(segmenter, LoraConfig(target_modules=["q_proj", "v_proj"]))
    names = cast_frozen_weights(backbone_of(model.requires_grad_(False)), torch.bfloat16)
    assert any(".base_layer.weight" in name for name in names) and not any("lora_" in name for name in names)


def test_other_types_are_refused(segmenter):
    backbone = backbone_of(segmenter).requires_grad_(False)
    with pytest.raises(ValueError, match=r"dtype is torch.float32; expected torch.bfloat16 or torch.float16"):
        cast_frozen_weights(backbone, torch.float32)
    cast_frozen_weights(backbone, torch.bfloat16)
    with pytest.raises(ValueError, match=r"are in torch.bfloat16 already, and dtype is torch.float16"):
        cast_frozen_weights(backbone, torch.float16)


def test_a_recipe_in_bfloat16_gives_the_same_adapter(recipe, tmp_path, monkeypatch):
    trainer = run_recipe(recipe, "--bf16", "true")
    backbone = backbone_of(trainer.model)
    assert backbone.autocast_dtype == torch.bfloat16
    assert {p.dtype for p in trainer.model.parameters() if p.requires_grad} == {torch.float32}
    monkeypatch.setattr("rein_hf.training.trainer.cast_frozen_weights", lambda *_: [])
    plain = run_recipe(recipe, "--bf16", "true", "--output_dir", str(tmp_path / "plain"))
    assert backbone_of(plain.model).autocast_dtype is None
    assert equal_adapters(tmp_path / "plain", tmp_path / "out")


@pytest.mark.parametrize("arguments", [["--bf16", "false"], ["--bf16", "true", "--tuning", "frozen"]])
def test_a_run_that_saves_float32_weights_keeps_them(recipe, arguments):
    trainer = run_recipe(recipe, *arguments)
    assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}
