"""ReinStages, on a hierarchical vision transformer: what peft does with one adapter or several."""

import copy
import pickle

import pytest
import torch
from peft import PeftModel, get_layer_status, get_model_status, get_peft_model, get_peft_model_state_dict

from rein_hf import ReinConfig, ReinLayer, ReinStages
from tests.support.models import adapter_parameters, perturb, trainable_names
from tests.support.vision_encoders import HIERA, make_encoder


BLOCKS = "backbone.blocks"
DEPTHS, WIDTHS = HIERA["blocks_per_stage"], HIERA["embed_dim_per_stage"]


@pytest.fixture
def images():
    return torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def tuned(adapter_name="default", seed=0, **kwargs):
    model = get_peft_model(make_encoder("sam2 hiera"), ReinConfig(r=4, num_tokens=6, **kwargs), adapter_name)
    perturb(model, seed)
    return model.eval()


def output(model, images):
    model = copy.deepcopy(model).eval().requires_grad_(False)
    return model(images).last_hidden_state


def stages_of(model):
    return model.base_model.model.get_submodule(BLOCKS)


def test_it_is_the_list_of_all_blocks_and_each_stage_that_of_its_own():
    base = make_encoder("sam2 hiera")
    blocks = list(base.get_submodule(BLOCKS))
    stages = stages_of(get_peft_model(base, ReinConfig(num_tokens=6)))
    assert isinstance(stages, ReinStages) and list(stages) == blocks and stages[-1] is blocks[-1]
    assert [block for stage in stages.stages for block in stage] == blocks
    assert [(len(stage), stage.hidden_size) for stage in stages.stages] == list(zip(DEPTHS, WIDTHS, strict=True))
    # registered once, under the list
    assert len(stages.state_dict()) == len(set(stages.state_dict(keep_vars=True).values()))


def test_saved_names_are_those_of_earlier_versions(tmp_path):
    model = tuned()
    model.save_pretrained(tmp_path)
    prefix = f"base_model.model.{BLOCKS}.stages."
    state_dict = get_peft_model_state_dict(model)
    assert {name.removeprefix(prefix).split(".")[0] for name in state_dict} == {"0", "1", "2", "3"}
    assert {name.removeprefix(prefix).partition(".")[2] for name in state_dict} == {
        "rein_tokens_a",
        "rein_tokens_b",
        "rein_scale",
        "rein_token_to_feature.weight",
        "rein_token_to_feature.bias",
        "rein_delta.weight",
        "rein_delta.bias",
    }


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_reload_is_bit_equal(tmp_path, images, low_cpu_mem_usage):
    model = tuned()
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(
        make_encoder("sam2 hiera"), tmp_path, adapter_name="night", low_cpu_mem_usage=low_cpu_mem_usage
    )
    assert torch.equal(output(loaded, images), output(model, images))
    second = tuned(seed=3)
    second.load_adapter(tmp_path, "second", low_cpu_mem_usage=low_cpu_mem_usage)
    second.set_adapter("second")
    assert torch.equal(output(second, images), output(model, images))
    plain = make_encoder("sam2 hiera")
    plain.load_adapter(str(tmp_path))
    assert torch.equal(output(plain, images), output(model, images))


def test_copies_and_pickles_are_equal_and_independent(images):
    model = tuned()
    expected = output(model, images)
    copied, pickled = copy.deepcopy(model), pickle.dumps(model)
    perturb(model, seed=1)
    for other in (copied, pickle.loads(pickled)):
        assert torch.equal(output(other, images), expected)
        assert [block for stage in stages_of(other).stages for block in stage] == list(stages_of(other))
    assert not torch.equal(output(model, images), expected)


def test_adapters_are_added_switched_disabled_and_deleted(images):
    base = output(make_encoder("sam2 hiera"), images)
    model = tuned("day")
    day = output(model, images)
    model.add_adapter("night", ReinConfig(r=None, num_tokens=4))
    assert torch.equal(output(model, images), day)
    model.set_adapter("night")
    assert trainable_names(model) == adapter_parameters(model, "night")
    perturb(model, seed=1)
    night = output(model, images)
    assert not torch.equal(night, day)
    with model.disable_adapter():
        assert torch.equal(output(model, images), base)
    status = get_model_status(model)
    assert (status.enabled, status.active_adapters, status.available_adapters) == (True, ["night"], ["day", "night"])
    assert (status.requires_grad, status.merged_adapters) == ({"day": False, "night": True}, [])
    layers = [layer.module_type for layer in get_layer_status(model)]
    assert layers.count("ReinLayer") == 4 and set(layers) <= {"ReinLayer", "ReinStages"}
    with pytest.warns(UserWarning, match="night was active which is now deleted. Setting active adapter to day"):
        model.delete_adapter("night")
    assert model.active_adapters == ["day"] and torch.equal(output(model, images), day)
    assert adapter_parameters(model, "night") == set()
    model.delete_adapter("day")
    assert torch.equal(output(model.base_model, images), base)


def test_unload_gives_the_base_back(images):
    base = make_encoder("sam2 hiera")
    expected, state = output(base, images), base.state_dict()
    unloaded = tuned().unload()
    assert not any(isinstance(module, (ReinLayer, ReinStages)) for module in unloaded.modules())
    assert sum(len(module._forward_hooks) for module in unloaded.modules()) == sum(
        len(module._forward_hooks) for module in base.modules()
    )
    assert list(unloaded.state_dict()) == list(state)
    assert torch.equal(output(unloaded, images), expected)


def test_merging_is_refused():
    with pytest.raises(ValueError, match="cannot be merged into the backbone"):
        tuned().merge_and_unload()
