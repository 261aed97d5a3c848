"""prepare_for_inference: the same predictions, from what is computed once."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file

import rein_hf
from rein_hf import (
    AdaptFormerConfig,
    ReinConfig,
    SomaConfig,
    VPTConfig,
    add_adapter,
    add_rein,
    slide_inference,
)
from rein_hf.backbone import cast_frozen_weights
from rein_hf.head import class_and_mask_logits
from rein_hf.head.cast_weights import CastWeights
from rein_hf.inference import prepare_for_inference
from tests.support.models import perturb
from tests.support.operator_count import OperatorCount, path_of_cuda


def logits_of(model, pixel_values, dtype=torch.bfloat16):
    with torch.no_grad(), torch.autocast("cpu", dtype, enabled=dtype is not None):
        return class_and_mask_logits(model, pixel_values)


def assert_equal(found, expected):
    assert [one.dtype for one in found] == [one.dtype for one in expected]
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def head_of(model):
    return model.get_base_model().model.transformer_module.decoder


@pytest.mark.parametrize("cuda", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, None])
def test_logits_are_the_same_bit_for_bit(rein_model, pixel_values, dtype, cuda):
    with path_of_cuda() if cuda else torch.no_grad():
        expected = logits_of(rein_model, pixel_values, dtype)
        assert prepare_for_inference(rein_model, dtype) is rein_model
        for _ in range(2):  # the second one takes what the first one kept
            assert_equal(logits_of(rein_model, pixel_values, dtype), expected)


@pytest.mark.parametrize(
    "config",
    [AdaptFormerConfig(), VPTConfig(), SomaConfig(r=2), LoraConfig(r=2, target_modules=["q_proj", "v_proj"])],
    ids=lambda config: type(config).__name__,
)
def test_logits_of_other_methods_are_the_same_bit_for_bit(segmenter, pixel_values, config):
    model = (get_peft_model if isinstance(config, LoraConfig) else add_adapter)(segmenter, config)
    perturb(model)
    expected = logits_of(model.eval(), pixel_values)
    assert_equal(logits_of(prepare_for_inference(model, torch.bfloat16), pixel_values), expected)


def test_the_whole_model_and_other_heads(rein_model, build, pixel_values):
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = rein_model(pixel_values)
        found = prepare_for_inference(rein_model, torch.bfloat16)(pixel_values)
    assert_equal(
        (found.class_queries_logits, found.masks_queries_logits),
        (expected.class_queries_logits, expected.masks_queries_logits),
    )
    pixels = build(head={"model_type": "upernet", "hidden_size": 16})
    pixels = add_rein(pixels, ReinConfig(r=4, num_tokens=8, link_queries=False)).eval()
    with torch.autocast("cpu", torch.bfloat16):
        expected = slide_inference(pixels, pixel_values)
        assert torch.equal(slide_inference(prepare_for_inference(pixels, torch.bfloat16), pixel_values), expected)


def test_what_is_cast_and_that_nobody_has_to_say_so_again(rein_model, pixel_values):
    before = {name: p.dtype for name, p in rein_model.named_parameters()}
    under_autocast = logits_of(prepare_for_inference(rein_model, torch.bfloat16), pixel_values)
    assert not any(p.requires_grad for p in rein_model.parameters()) and not rein_model.training
    assert set(before.values()) == {torch.float32}
    cast = {name for name, p in rein_model.named_parameters() if p.dtype == torch.bfloat16}
    of_head = {name for name in cast if "backbone" not in name and "encoder.vit" not in name}
    assert any(name.endswith("cross_attn.in_proj_weight") for name in of_head)
    assert any("mask_projection" in name for name in of_head)
    assert not any("rein_" in name or "norm" in name or "level_embed" in name for name in cast)
    with torch.no_grad():
        alone = class_and_mask_logits(rein_model, pixel_values)
    assert torch.equal(alone[1], under_autocast[1])
    torch.testing.assert_close(alone[0], under_autocast[0].float(), rtol=0.05, atol=0.05)  # the class predictor's type
    with path_of_cuda(), torch.autocast("cpu", torch.bfloat16):
        casts = CastWeights(head_of(rein_model), pixel_values)
    assert casts.dtype == torch.bfloat16 and not casts._layers


def test_what_depends_on_weights_alone_is_computed_once(rein_model, pixel_values):
    logits_of(rein_model, pixel_values, None)  # positions, which are kept for all models
    prepare_for_inference(rein_model)
    counts = []
    for _ in range(3):
        with OperatorCount() as count:
            logits_of(rein_model, pixel_values, None)
        counts.append(count.total)
    assert counts[0] - counts[1] == 17 and counts[1] == counts[2]


def test_adapters_are_loaded_and_switched(rein_model, pixel_values, tmp_path):
    other = copy.deepcopy(rein_model)
    perturb(other, seed=5)
    other.save_pretrained(tmp_path, save_embedding_layers=False)
    expected = [logits_of(model.eval(), pixel_values, None) for model in (rein_model, other)]
    model = prepare_for_inference(rein_model)
    assert_equal(logits_of(model, pixel_values, None), expected[0])
    model.load_adapter(tmp_path, "night")
    for _ in range(2):
        for name, right in zip(("default", "night"), expected, strict=True):
            model.set_adapter(name)
            assert_equal(logits_of(model, pixel_values, None), right)
    with model.disable_adapter():
        assert not torch.equal(logits_of(model, pixel_values, None)[1], expected[1][1])


def test_weights_that_are_loaded_are_seen(rein_model, pixel_values):
    other = copy.deepcopy(rein_model)
    perturb(other, seed=5)
    expected = logits_of(other.eval(), pixel_values, None)
    model = prepare_for_inference(rein_model)
    assert not torch.equal(logits_of(model, pixel_values, None)[1], expected[1])
    model.load_state_dict(other.state_dict())
    assert_equal(logits_of(model, pixel_values, None), expected)
    assert_equal(logits_of(copy.deepcopy(model), pixel_values, None), expected)


def test_weights_that_were_written_into_are_seen_when_it_is_prepared_anew(rein_model, pixel_values):
    plain = copy.deepcopy(rein_model)
    before = logits_of(prepare_for_inference(rein_model), pixel_values, None)
    for model in (plain, rein_model):
        for name, parameter in model.named_parameters():
            if ".rein_" in name:
                parameter.data.mul_(1.5)
    expected = logits_of(plain, pixel_values, None)
    assert not torch.equal(expected[1], before[1])
    assert_equal(logits_of(prepare_for_inference(rein_model), pixel_values, None), expected)


def test_training_is_refused(rein_model):
    prepare_for_inference(rein_model).eval()
    for model in (rein_model, rein_model.get_base_model().model):
        with pytest.raises(ValueError, match=r"was prepared for inference .* Load it anew to train it"):
            model.train()
    rein_model.eval()
    with pytest.raises(ValueError, match="was prepared for inference"):
        rein_model.train()
    assert not any(module.training for module in rein_model.modules())


def test_a_model_without_adapter_that_was_cast_is_not_saved_rounded(segmenter, tmp_path):
    prepare_for_inference(segmenter).save_pretrained(tmp_path / "float32")
    saved = load_file(tmp_path / "float32" / "model.safetensors")
    assert all(torch.equal(saved[name], weight) for name, weight in segmenter.state_dict().items() if name in saved)
    prepare_for_inference(segmenter, torch.bfloat16)
    for part in (segmenter, copy.deepcopy(segmenter), segmenter.model.pixel_level_module.encoder):
        with pytest.raises(ValueError, match="were cast to half precision .* would be saved rounded"):
            part.save_pretrained(tmp_path / "rounded")
    assert not (tmp_path / "rounded").exists()


def test_a_head_that_was_cast_is_not_saved_rounded(rein_model, tmp_path):
    rein_model.save_pretrained(tmp_path / "before")
    cast_frozen_weights(rein_model, torch.bfloat16)  # as a run does, which saves checkpoints
    rein_model.save_pretrained(tmp_path / "run")
    prepare_for_inference(rein_model).save_pretrained(tmp_path / "prepared")
    before, *others = (
        load_file(tmp_path / name / "adapter_model.safetensors") for name in ("before", "run", "prepared")
    )
    for saved in others:
        assert saved.keys() == before.keys() and all(torch.equal(saved[name], before[name]) for name in before)
    prepare_for_inference(rein_model, torch.bfloat16)
    with pytest.raises(ValueError, match="The head's weights were cast to torch.bfloat16 .* would be saved rounded"):
        rein_model.save_pretrained(tmp_path / "rounded")
    assert not (tmp_path / "rounded").exists()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_what_is_kept_follows_the_type_of_the_model(rein_model, pixel_values, dtype):
    model = prepare_for_inference(rein_model)
    logits_of(model, pixel_values, None)
    found = logits_of(model.to(dtype), pixel_values.to(dtype), None)
    assert_equal(found, logits_of(copy.deepcopy(model), pixel_values.to(dtype), None))
    assert all(one.dtype == dtype for one in found)


def test_a_model_without_adapter(build, pixel_values):
    model = build().eval()
    assert all(p.requires_grad for p in model.parameters())
    expected = logits_of(model, pixel_values)
    assert_equal(logits_of(prepare_for_inference(model, torch.bfloat16), pixel_values), expected)
    assert rein_hf.backbone.backbone_of(model).autocast_dtype == torch.bfloat16


def test_types_that_make_no_sense(rein_model):
    with pytest.raises(ValueError, match=r"dtype is torch.float64; expected torch.bfloat16 or torch.float16"):
        prepare_for_inference(rein_model, torch.float64)
    prepare_for_inference(rein_model, torch.float16)
    with pytest.raises(ValueError, match=r"are in torch.float16 already, and dtype is torch.bfloat16"):
        prepare_for_inference(rein_model, torch.bfloat16)
