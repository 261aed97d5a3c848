"""Rein among peft's methods, II: what every method of peft does with one adapter or several in a model, and what Rein
cannot do and refuses. Each on a bare vision transformer and on the segmenter with its head."""

import copy
import warnings

import pytest
import torch
from peft import (
    LoraConfig,
    PeftModel,
    convert_to_lora,
    get_layer_status,
    get_model_status,
    get_peft_model,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    set_peft_model_state_dict,
)
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.hotswap import hotswap_adapter
from transformers import Dinov2Model

from rein_hf import ReinLayer, ReinModel
from rein_hf.head import HEADS
from tests.support.models import adapter_parameters, perturb, trainable_names


only_vit = pytest.mark.parametrize("tunable", ["vit"], indirect=True)
only_segmenter = pytest.mark.parametrize("tunable", ["segmenter"], indirect=True)


def rein_layers(model):
    return [module for module in model.modules() if isinstance(module, BaseTunerLayer)]


def hooks(model):
    return [len(module._forward_hooks) for module in model.modules()]


@pytest.fixture
def day_and_night(tunable):
    """A model with two adapters of different form, of which "day" is active, and the output of each."""
    model = tunable.tuned("day")
    model.add_adapter("night", tunable.config(r=None))
    outputs = {"day": tunable.output(model)}
    model.set_adapter("night")
    perturb(model, seed=1)
    outputs["night"] = tunable.output(model)
    assert not torch.equal(outputs["day"], outputs["night"])
    model.set_adapter("day")
    return model, outputs


# One adapter


def test_it_is_a_peft_model_like_any_other(tunable):
    model = tunable.tuned()
    assert type(model) is PeftModel and type(model.base_model) is ReinModel
    assert (model.active_adapter, model.active_adapters, model.peft_type.value) == ("default", ["default"], "REIN")
    for name in ("save_pretrained", "from_pretrained", "push_to_hub", "load_adapter"):
        assert callable(getattr(model, name)), name


def test_what_trains_is_the_adapter_by_its_name(tunable):
    model = tunable.tuned("test-adapter")
    assert trainable_names(model) == adapter_parameters(model, "test-adapter") != set()
    assert all(".rein_" in name or ".modules_to_save." in name for name in trainable_names(model))


def test_names_with_dots_are_refused(tunable):
    """By torch, for every method of peft: a dot separates modules."""
    with pytest.raises(KeyError, match=r"name can.*t contain"):
        get_peft_model(tunable.build(), tunable.config(), "by.night")


def test_a_name_contained_in_the_prefix_works_with_a_warning_of_peft(tunable, tmp_path):
    with pytest.warns(UserWarning, match=r"Adapter name 'rein' should not be contained in the prefix 'rein_'"):
        model = tunable.tuned("rein")
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tunable.build(), str(tmp_path / "rein"), adapter_name="night")
    assert torch.equal(tunable.output(loaded), tunable.output(model))


def test_training_lowers_the_loss_and_moves_all_of_the_adapter_and_nothing_else(tunable):
    model = tunable.tuned()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3, weight_decay=0)
    losses = []
    for _ in range(6):
        loss = tunable.loss(model)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.95 * losses[0], losses
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved == trainable_names(model)
    assert {name for name, parameter in model.named_parameters() if parameter.grad is not None} == trainable_names(
        model
    )


def test_layers_to_transform_leave_the_other_blocks_alone(tunable):
    model = tunable.tuned(layers_to_transform=[1, 3])
    [layer] = [module for module in model.modules() if isinstance(module, ReinLayer)]
    assert layer.rein_tokens_a["default"].shape == (2, tunable.arguments["num_tokens"], 4)
    tunable.loss(model).backward()
    assert all(p.grad.abs().max() > 0 for p in model.parameters() if p.requires_grad)
    vit = next(module for module in model.modules() if isinstance(module, Dinov2Model))
    with torch.no_grad():
        refined = vit(tunable.pixel_values, output_hidden_states=True).hidden_states
        with model.disable_adapter():
            base = vit(tunable.pixel_values, output_hidden_states=True).hidden_states
            expected = layer[2](refined[2])
    assert torch.equal(refined[1], base[1]) and not torch.equal(refined[2], base[2])
    torch.testing.assert_close(refined[3], expected)


@pytest.mark.parametrize("target_modules", [["blocks"], "all-linear", ["q_proj"]])
def test_target_modules_have_to_be_the_list_of_blocks(tunable, target_modules):
    base = tunable.build()
    names = base.state_dict().keys()
    with pytest.raises(ValueError, match=r"ReinConfig.target_modules (is .*; found no module|matches .*q_proj)"):
        get_peft_model(base, tunable.config(target_modules=target_modules))
    assert base.state_dict().keys() == names


@only_vit
def test_parameters_are_counted(tunable, capsys):
    model = tunable.tuned()
    of_rein = 4 * (6 * 4 + 4 * 32) + 2 * (32 * 32 + 32) + 1
    total = of_rein + sum(parameter.numel() for parameter in tunable.build().parameters())
    assert model.get_nb_trainable_parameters() == (of_rein, total)
    model.print_trainable_parameters()
    expected = f"trainable params: {of_rein:,} || all params: {total:,} || trainable%: {100 * of_rein / total:.4f}"
    assert capsys.readouterr().out.strip() == expected


def test_a_disabled_adapter_is_the_base_and_comes_back(tunable):
    base = tunable.output(tunable.build())
    model = tunable.tuned()
    refined, trained = tunable.output(model), trainable_names(model)
    assert not torch.equal(refined, base)
    with model.disable_adapter():
        assert torch.equal(tunable.output(model), base)
        with model.disable_adapter():
            assert torch.equal(tunable.output(model), base)
        assert torch.equal(tunable.output(model), base)  # the inner context does not enable it again
    assert torch.equal(tunable.output(model), refined) and trainable_names(model) == trained
    model.base_model.disable_adapter_layers()
    assert torch.equal(tunable.output(model), base) and trainable_names(model) == set()
    model.base_model.enable_adapter_layers()
    assert torch.equal(tunable.output(model), refined) and trainable_names(model) == trained


def test_unload_gives_the_base_back(tunable):
    tunable.arguments["modules_to_save"] = None  # a head that was trained as a whole stays
    base = tunable.build()
    expected, state, count = tunable.output(base), base.state_dict(), hooks(base)
    unloaded = tunable.tuned().unload()
    assert not rein_layers(unloaded) and not hasattr(unloaded, "peft_config")
    assert hooks(unloaded) == count
    assert unloaded.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in unloaded.state_dict().items())
    assert torch.equal(tunable.output(unloaded), expected)


def test_unloading_a_copy_leaves_the_original_refined(tunable):
    model = tunable.tuned()
    expected = tunable.output(model)
    copy.deepcopy(model).unload()
    assert torch.equal(tunable.output(model), expected)


def test_a_second_get_peft_model_warns_and_replaces(tunable):
    base = tunable.build()
    get_peft_model(base, tunable.config(), "day")
    count = hooks(base)
    with pytest.warns(UserWarning, match="modify a model with PEFT for a second time"):
        model = get_peft_model(base, tunable.config(r=None, zero_init=True, modules_to_save=None), "day")
    assert hooks(base) == count  # each block is refined once
    fresh = get_peft_model(tunable.build(), tunable.config(r=None, zero_init=True, modules_to_save=None), "day")
    rein = {name for name in get_peft_model_state_dict(model, adapter_name="day") if ".rein_" in name}
    assert rein == get_peft_model_state_dict(fresh, adapter_name="day").keys()


def test_status_tells_where_rein_is(tunable, day_and_night):
    model, _ = day_and_night
    status = get_model_status(model)
    assert (status.adapter_model_type, status.peft_types) == ("ReinModel", {"day": "REIN", "night": "REIN"})
    assert (status.enabled, status.active_adapters, status.merged_adapters) == (True, ["day"], [])
    assert (status.available_adapters, status.requires_grad) == (["day", "night"], {"day": True, "night": False})
    assert status.devices == {"day": ["cpu"], "night": ["cpu"]}
    layers = {layer.name.rpartition(".")[-1]: layer.module_type for layer in get_layer_status(model)}
    expected = {"layer": "ReinLayer"}
    if tunable.arguments.get("modules_to_save"):
        expected.update({"queries_embedder": "ReinQueries", "queries_features": "ReinQueries"})
    assert {name: kind for name, kind in layers.items() if kind.startswith("Rein")} == expected


@only_vit  # a stock Mask2Former does not support it
def test_gradient_checkpointing_changes_no_gradient(tunable):
    model = tunable.tuned().train()

    def gradients():
        model.zero_grad()
        tunable.loss(model).backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    expected = gradients()
    model.base_model.model.activation_checkpointing_enable()
    assert all(block.gradient_checkpointing for block in model.base_model.model.encoder.layer)
    found = gradients()
    assert found.keys() == expected.keys() == trainable_names(model)
    assert all(torch.equal(expected[name], found[name]) for name in expected)


@only_segmenter
def test_compiled_without_graph_breaks_it_computes_the_same(tunable):
    model = tunable.tuned().requires_grad_(False)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        expected, found = model(pixel_values=tunable.pixel_values), compiled(pixel_values=tunable.pixel_values)
    for key, tensor in expected.items():
        if isinstance(tensor, torch.Tensor):
            torch.testing.assert_close(found[key], tensor)


def test_injected_without_a_peft_model(tunable):
    model = tunable.tuned()
    state_dict = {
        name.removeprefix("base_model.model."): tensor for name, tensor in get_peft_model_state_dict(model).items()
    }
    # by the configuration, or, peft's other way, beside the names in a state dict
    for given in (None, state_dict):
        base = tunable.build()
        assert inject_adapter_in_model(tunable.config(), base, state_dict=given) is base
        assert set_peft_model_state_dict(base, state_dict).unexpected_keys == []
        assert torch.equal(tunable.output(base), tunable.output(model))


def test_injected_on_meta_it_takes_no_memory(tunable):
    model = inject_adapter_in_model(tunable.config(), tunable.build(), low_cpu_mem_usage=True)
    devices = {name: parameter.device.type for name, parameter in model.named_parameters()}
    assert {device for name, device in devices.items() if ".rein_" in name} == {"meta"}
    assert {device for name, device in devices.items() if "default" not in name} == {"cpu"}


# Several adapters


def test_an_added_adapter_is_frozen_and_idle(tunable):
    model = tunable.tuned("day")
    expected = tunable.output(model)
    model.add_adapter("night", tunable.config())
    assert model.active_adapters == ["day"] and trainable_names(model) == adapter_parameters(model, "day")
    assert torch.equal(tunable.output(model), expected)


def test_a_name_that_is_taken_is_refused_and_nothing_changed(tunable):
    model = tunable.tuned("day")
    config, expected = model.peft_config["day"], tunable.output(model)
    with pytest.raises(ValueError, match="Adapter with name 'day' already exists"):
        model.add_adapter("day", tunable.config(r=None))
    assert model.peft_config == {"day": config}
    assert torch.equal(tunable.output(model), expected)


def test_switching_adapters_switches_outputs_and_gradients(tunable, day_and_night):
    model, outputs = day_and_night
    for name in ("night", "day", "night"):
        model.set_adapter(name)
        assert (model.active_adapter, model.active_adapters) == (name, [name])
        assert trainable_names(model) == adapter_parameters(model, name)
        assert torch.equal(tunable.output(model), outputs[name])
    model.set_adapter("day", inference_mode=True)
    assert trainable_names(model) == set() and torch.equal(tunable.output(model), outputs["day"])
    with pytest.raises(ValueError, match="Adapter dusk not found"):
        model.set_adapter("dusk")


def test_gradients_are_switched_by_adapter(day_and_night):
    model, _ = day_and_night
    model.set_requires_grad("night")
    assert trainable_names(model) == adapter_parameters(model, "day", "night")
    model.set_requires_grad(["day", "night"], requires_grad=False)
    assert trainable_names(model) == set()


def test_an_idle_adapter_is_deleted_without_a_trace(tunable, day_and_night):
    model, outputs = day_and_night
    model.delete_adapter("night")
    assert list(model.peft_config) == model.active_adapters == ["day"]
    assert adapter_parameters(model, "night") == set()
    assert all(list(layer.configs) == ["day"] for layer in rein_layers(model))
    assert torch.equal(tunable.output(model), outputs["day"]) and trainable_names(model) == adapter_parameters(
        model, "day"
    )


def test_deleting_the_active_adapter_activates_another(tunable, day_and_night):
    model, outputs = day_and_night
    with pytest.warns(UserWarning, match="day was active which is now deleted. Setting active adapter to night"):
        model.delete_adapter("day")
    assert list(model.peft_config) == model.active_adapters == ["night"]
    assert torch.equal(tunable.output(model), outputs["night"]) and trainable_names(model) == adapter_parameters(
        model, "night"
    )


def test_without_its_last_adapter_the_model_is_the_base(tunable):
    model = tunable.tuned()
    with pytest.raises(ValueError, match="Adapter dusk does not exist"):
        model.delete_adapter("dusk")
    model.delete_adapter("default")
    assert model.active_adapters == [] and model.peft_config == {} and adapter_parameters(model, "default") == set()
    # a PeftModel itself wants an adapter
    assert torch.equal(tunable.output(model.base_model), tunable.output(tunable.build()))


@only_segmenter
def test_adapters_with_and_without_the_head_share_a_model(tunable):
    model = tunable.tuned("day")
    day = tunable.output(model)
    model.add_adapter("night", tunable.config(modules_to_save=None))
    model.set_adapter("night")
    perturb(model, seed=1)
    assert model.base_model.model.class_predictor.active_adapters == []
    alone = tunable.tuned("night", seed=1, modules_to_save=None)
    state_dict = get_peft_model_state_dict(model, adapter_name="night")
    set_peft_model_state_dict(alone, state_dict, adapter_name="night")
    assert torch.equal(tunable.output(model), tunable.output(alone))
    model.set_adapter("day")
    assert torch.equal(tunable.output(model), day)


# What is refused


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
    names, count = base.state_dict().keys(), hooks(base)
    with pytest.raises(ValueError, match="ReinConfig|made for a backbone"):
        get_peft_model(base, tunable.config(**wrong))
    assert base.state_dict().keys() == names and hooks(base) == count
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


# The adapter methods of transformers


def test_transformers_adds_switches_and_deletes_adapters(tunable):
    model = tunable.build()
    base, outputs = tunable.output(model), {}
    for seed, name in enumerate(("day", "night")):
        # transformers leaves the head's copies of an adapter trainable when it adds another, for every method
        model.requires_grad_(False)
        model.add_adapter(tunable.config(), name)
        perturb(model, seed)
        outputs[name] = tunable.output(model)
    assert not torch.equal(outputs["day"], outputs["night"])
    assert model.active_adapters() == ["night"]
    model.set_adapter("day")
    assert model.active_adapters() == ["day"] and torch.equal(tunable.output(model), outputs["day"])
    model.delete_adapter("day")
    assert list(model.peft_config) == ["night"] and torch.equal(tunable.output(model), outputs["night"])
    model.delete_adapter("night")
    assert not hasattr(model, "peft_config") and torch.equal(tunable.output(model), base)


def test_transformers_disables_adapters(tunable):
    model = tunable.build()
    base = tunable.output(model)
    model.add_adapter(tunable.config())
    perturb(model)
    model.disable_adapters()
    assert torch.equal(tunable.output(model), base)


@pytest.mark.parametrize(
    "tunable",
    [
        "vit",
        pytest.param(
            "segmenter",
            marks=pytest.mark.xfail(
                strict=True, reason="transformers' enable_adapters leaves modules_to_save disabled, for every method"
            ),
        ),
    ],
    indirect=True,
)
def test_transformers_enables_adapters_again(tunable):
    model = tunable.build()
    model.add_adapter(tunable.config())
    perturb(model)
    expected = tunable.output(model)
    model.disable_adapters()
    model.enable_adapters()
    assert torch.equal(tunable.output(model), expected)


def test_transformers_refuses_two_active_adapters(tunable):
    model = tunable.build()
    model.add_adapter(tunable.config(), "day")
    model.add_adapter(tunable.config(), "night")
    with pytest.raises(ValueError, match=r"one active adapter at a time; found \['day', 'night'\]"):
        model.set_adapter(["day", "night"])
