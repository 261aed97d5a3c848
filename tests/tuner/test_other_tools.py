"""Rein beside adapters of other methods, quantisation, input casting, and peft's way to read the base model."""

import copy
import gc
import weakref

import pytest
import torch
from peft import (
    LoraConfig,
    PeftConfig,
    get_base_model_state_dict,
    get_peft_model,
    inject_adapter_in_model,
    set_base_model_state_dict,
)
from peft.helpers import disable_input_dtype_casting
from torch import nn

from rein_hf import ReinConfig, VPTConfig
from tests.support.models import perturb
from tests.support.vision_encoders import CHECKPOINTS, make_encoder


LORA = {"target_modules": ["q_proj", "v_proj"]}


@pytest.fixture
def vit():
    return make_encoder("dinov2")


@pytest.fixture
def images():
    return torch.randn(2, 3, 56, 56, generator=torch.Generator().manual_seed(0))


def features(model, images):
    with torch.no_grad():
        return model(images).last_hidden_state


# Adapters of other methods


def add_by_transformers(vit):
    vit.add_adapter(ReinConfig(num_tokens=4), "rein")


def inject(vit):
    inject_adapter_in_model(ReinConfig(num_tokens=4), vit, "rein")


def wrap_again(vit):
    get_peft_model(vit, ReinConfig(num_tokens=4), "rein")


@pytest.mark.parametrize("add_rein", [add_by_transformers, inject, wrap_again])
def test_rein_is_not_added_to_a_model_with_lora(vit, images, add_rein):
    vit.add_adapter(LoraConfig(**LORA), "lora")
    perturb(vit)
    expected, names = features(vit, images), [name for name, _ in vit.named_parameters()]
    with pytest.raises(ValueError, match=r"adapters of another method; found LoraConfig. Take them off with"):
        add_rein(vit)
    assert list(vit.peft_config) == ["lora"] and vit.active_adapters() == ["lora"]
    assert [name for name, _ in vit.named_parameters()] == names
    assert torch.equal(features(vit, images), expected)


def test_after_lora_is_deleted_rein_is_added(vit, images):
    vit.add_adapter(LoraConfig(**LORA), "lora")
    vit.delete_adapter("lora")
    with pytest.raises(ValueError, match=r"found peft.tuners.lora.layer"):  # its layers stay, without weights
        add_by_transformers(vit)
    model = get_peft_model(make_encoder("dinov2"), LoraConfig(**LORA)).unload()
    add_by_transformers(model)
    assert model.active_adapters() == ["rein"] and features(model, images).isfinite().all()


def test_lora_beside_rein_takes_its_place_and_gives_it_back(vit, images):
    """peft looks for no targets among the blocks that Rein holds; elsewhere it finds them."""
    base = features(vit, images)
    vit.add_adapter(ReinConfig(num_tokens=4), "rein")
    perturb(vit)
    vit.requires_grad_(False)
    refined = features(vit, images)
    with pytest.raises(ValueError, match="not found in the base model"):
        copy.deepcopy(vit).add_adapter(LoraConfig(**LORA), "lora")
    vit.add_adapter(LoraConfig(target_modules=["projection"]), "lora")
    assert vit.active_adapters() == ["lora"]
    torch.testing.assert_close(features(vit, images), base)  # a new LoRA changes nothing, and Rein is idle
    vit.set_adapter("rein")
    assert torch.equal(features(vit, images), refined)
    with pytest.raises(ValueError, match=r"one active adapter at a time; found \['rein', 'lora'\]"):
        vit.set_adapter(["rein", "lora"])


def test_a_refused_adapter_is_not_listed_by_transformers(vit):
    vit.add_adapter(ReinConfig(num_tokens=4), "day")
    with pytest.raises(ValueError, match="made for a backbone of hidden_size 64"):
        vit.add_adapter(ReinConfig(num_tokens=4, hidden_size=64), "night")
    assert list(vit.peft_config) == ["day"]
    vit.add_adapter(ReinConfig(num_tokens=4), "night")


# Quantised linear layers


def quantize(model):
    return torch.ao.quantization.quantize_dynamic(model, {nn.Linear})


def test_quantised_weights_of_rein_are_refused(vit, images):
    model = quantize(get_peft_model(vit, ReinConfig(num_tokens=4)).eval())
    with pytest.raises(ValueError, match=r"quantized.dynamic.*Linear. .* quantise the backbone and the head alone"):
        features(model, images)
    with model.disable_adapter():
        assert features(model, images).isfinite().all()


def test_quantised_object_queries_are_refused(rein_model):
    layer = quantize(rein_model).base_model.model.model.pixel_level_module.encoder.vit.encoder.layer
    with pytest.raises(ValueError, match=r"quantise the backbone and the head alone"):
        layer.object_queries("default")


def test_rein_on_a_quantised_backbone(vit, images):
    quantized = quantize(vit)
    expected = features(quantized, images)
    model = get_peft_model(quantized, ReinConfig(num_tokens=4)).eval()
    perturb(model)
    assert not torch.equal(features(model, images), expected)
    with model.disable_adapter():
        assert torch.equal(features(model, images), expected)


# Casting of the features


def test_without_casting_features_and_weights_have_to_be_of_one_type(vit, images):
    model = get_peft_model(vit.to(torch.bfloat16), ReinConfig(num_tokens=4)).eval()
    perturb(model)
    model.requires_grad_(False)
    expected = features(model, images)  # bfloat16 features, float32 weights
    with disable_input_dtype_casting(model):
        with pytest.raises(ValueError, match=r"features are torch.bfloat16 and Rein's weights torch.float32"):
            features(model, images)
    with disable_input_dtype_casting(model, active=False):
        assert torch.equal(features(model, images), expected)
    assert torch.equal(features(model, images), expected)
    model.to(torch.bfloat16)
    cast = features(model, images)
    with disable_input_dtype_casting(model):
        assert torch.equal(features(model, images), cast)


# The base model's own weights


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_the_base_models_state_dict_has_its_own_names(name):
    base = make_encoder(name)
    state = {key: tensor.clone() for key, tensor in base.state_dict().items()}
    model = get_peft_model(base, ReinConfig(num_tokens=4))
    found = get_base_model_state_dict(model)
    assert found.keys() == state.keys() and all(torch.equal(found[key], state[key]) for key in state)
    changed = {key: tensor + 1 for key, tensor in state.items()}
    result = set_base_model_state_dict(model, changed)
    assert result.missing_keys == result.unexpected_keys == []
    unloaded = model.unload().state_dict()
    assert unloaded.keys() == state.keys() and all(torch.equal(unloaded[key], changed[key]) for key in changed)


def test_the_state_dict_of_a_segmenter_has_its_own_names(segmenter, rein_model, build):
    state = build().state_dict()
    found = get_base_model_state_dict(rein_model)
    assert found.keys() == state.keys() and all(torch.equal(found[key], state[key]) for key in state)
    set_base_model_state_dict(rein_model, {key: tensor + 1 for key, tensor in state.items()})
    queries = rein_model.base_model.model.model.transformer_module.queries_features
    assert torch.equal(queries.base_layer.weight, state["model.transformer_module.queries_features.weight"] + 1)


# Unknown keys


def test_unknown_arguments_are_treated_as_by_other_methods_of_peft():
    for config_class in (LoraConfig, ReinConfig):
        with pytest.raises(TypeError, match="unexpected keyword argument 'num_token'"):
            config_class(num_token=4)
        with pytest.warns(UserWarning, match=r"Unexpected keyword arguments \['num_token'\]"):
            config = PeftConfig.from_peft_type(peft_type=config_class().peft_type, num_token=4)
        assert type(config) is config_class and not hasattr(config, "num_token")


@pytest.mark.parametrize("config", [ReinConfig(r=4, num_tokens=8), VPTConfig(num_prompts=4)])
def test_a_model_that_is_deleted_is_gone(config):
    """Not when the garbage collector comes by: until then a GPU would hold two backbones."""
    model = get_peft_model(make_encoder("dinov2"), config)
    block = weakref.ref(next(iter(model.base_model.model.encoder.layer)))
    gc.collect()
    gc.disable()
    try:
        del model
        assert block() is None
    finally:
        gc.enable()
