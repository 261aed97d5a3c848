"""Rein among peft's methods, II: what every method of peft does with one adapter, on a bare vision transformer and on
the segmenter with its head."""

import copy

import pytest
import torch
from peft import (
    PeftModel,
    get_layer_status,
    get_model_status,
    get_peft_model,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    set_peft_model_state_dict,
)
from transformers import Dinov2Model

from rein_hf import ReinLayer, ReinModel
from tests.support.models import adapter_parameters, hook_counts, trainable_names, tuner_layers


only_vit = pytest.mark.parametrize("tunable", ["vit"], indirect=True)
only_segmenter = pytest.mark.parametrize("tunable", ["segmenter"], indirect=True)


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
    expected, state, count = tunable.output(base), base.state_dict(), hook_counts(base)
    unloaded = tunable.tuned().unload()
    assert not tuner_layers(unloaded) and not hasattr(unloaded, "peft_config")
    assert hook_counts(unloaded) == count
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
    count = hook_counts(base)
    with pytest.warns(UserWarning, match="modify a model with PEFT for a second time"):
        model = get_peft_model(base, tunable.config(r=None, zero_init=True, modules_to_save=None), "day")
    assert hook_counts(base) == count  # each block is refined once
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
