"""Rein among peft's methods, IV: what Rein cannot do is refused, with the reason, and changes nothing."""

import warnings

import pytest
import torch
from peft import LoraConfig, convert_to_lora, get_peft_model
from peft.utils.hotswap import hotswap_adapter

from rein_hf.head import HEADS
from tests.support.models import hook_counts


only_vit = pytest.mark.parametrize("tunable", ["vit"], indirect=True)
only_segmenter = pytest.mark.parametrize("tunable", ["segmenter"], indirect=True)


@pytest.mark.parametrize("method", ["merge_adapter", "unmerge_adapter", "merge_and_unload"])
def test_merging_is_refused_with_the_reason(tunable, method):
    model = tunable.tuned()
    expected = tunable.output(model)
    with pytest.raises(ValueError, match="cannot be merged into the backbone: its refinement depends on the features"):
        getattr(model, method)()
    assert torch.equal(tunable.output(model), expected)


@only_vit
def test_two_active_adapters_are_refused(tunable, day_and_night):
    model, outputs = day_and_night
    with pytest.raises(ValueError, match=r"one active adapter at a time; found \['day', 'night'\]"):
        model.base_model.set_adapter(["day", "night"])
    assert model.active_adapters == ["day"] and torch.equal(tunable.output(model), outputs["day"])


def test_a_batch_of_several_adapters_is_refused(tunable, day_and_night):
    model, _ = day_and_night
    with pytest.raises(ValueError, match="cannot mix adapters in one batch.* call set_adapter before each group"):
        model(pixel_values=tunable.pixel_values, adapter_names=["day", "night"])


@only_segmenter
@pytest.mark.parametrize("first", [True, False])
def test_linked_queries_and_others_are_refused_in_one_model(tunable, first):
    """The tokens of the one would replace the queries that the other trains."""
    unlinked = {
        "link_queries": False,
        "modules_to_save": [*tunable.arguments["modules_to_save"], *HEADS["mask2former"].queries],
    }
    model = tunable.tuned("day", **({} if first else unlinked))
    expected, names = tunable.output(model), [name for name, _ in model.named_parameters()]
    with pytest.raises(ValueError, match=r"link_queries differs between the adapters of this model: \{'day': "):
        model.add_adapter("night", tunable.config(**(unlinked if first else {})))
    assert list(model.peft_config) == ["day"]
    assert [name for name, _ in model.named_parameters()] == names
    assert torch.equal(tunable.output(model), expected)


@pytest.mark.parametrize(
    ("tunable", "wrong"),
    [
        ("vit", {"layers_to_transform": [4]}),
        ("vit", {"hidden_size": 48}),
        ("segmenter", {"layers_to_transform": [4]}),
        ("segmenter", {"num_tokens": 9}),
    ],
    indirect=["tunable"],
)
def test_a_refused_adapter_leaves_nothing_behind(tunable, wrong):
    base = tunable.build()
    names, count = base.state_dict().keys(), hook_counts(base)
    with pytest.raises(ValueError, match="ReinConfig|made for a backbone"):
        get_peft_model(base, tunable.config(**wrong))
    assert base.state_dict().keys() == names and hook_counts(base) == count
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*second time.*")
        model = get_peft_model(base, tunable.config(), "day")
    names = model.state_dict().keys()
    with pytest.raises(ValueError, match="ReinConfig|made for a backbone"):
        model.add_adapter("night", tunable.config(**wrong))
    assert model.state_dict().keys() == names and list(model.peft_config) == ["day"]


def test_what_peft_has_for_other_methods_alone_is_refused_by_peft(tunable, tmp_path):
    model = tunable.tuned()
    model.save_pretrained(tmp_path)
    with pytest.raises(AttributeError, match="add_weighted_adapter"):
        model.add_weighted_adapter(["default"], [1.0], "sum")
    with pytest.raises(ValueError, match="Hotswapping only supports LORA but REIN was passed"):
        hotswap_adapter(model, str(tmp_path), "default")
    with pytest.raises(TypeError, match="do not support LoRA conversion"):
        convert_to_lora(model, rank=4)
    with pytest.raises(ValueError, match="'REIN' is not compatible with the `PeftMixedModel`"):
        get_peft_model(tunable.build(), tunable.config(), mixed=True)
    with pytest.raises(ValueError, match="Cannot combine adapters with different peft types"):
        model.add_adapter("lora", LoraConfig(target_modules=["q_proj"]))
