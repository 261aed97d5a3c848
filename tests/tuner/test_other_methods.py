"""AdaptFormer and VPT among peft's methods: the tests of Rein that hold for every method, and what differs."""

import warnings

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from transformers import AutoModel, Dinov2Config, Dinov2Model

import rein_hf
from rein_hf.head import HEADS
from tests.conftest import Tunable
from tests.support.adapters import change_tensors
from tests.support.models import adapter_parameters, perturb, trainable_names, tuner_layers
from tests.tuner.test_devices import cpu_offloaded, replicate
from tests.tuner.test_peft_one_adapter import (  # noqa: F401
    test_a_disabled_adapter_is_the_base_and_comes_back,
    test_gradient_checkpointing_changes_no_gradient,
    test_injected_without_a_peft_model,
    test_unload_gives_the_base_back,
    test_unloading_a_copy_leaves_the_original_refined,
)
from tests.tuner.test_peft_round_trips import (  # noqa: F401
    test_a_configuration_for_inference_freezes_the_adapter,
    test_a_state_dict_of_the_whole_model,
    test_gradient_checkpointing_of_both_kinds,
    test_in_half_precision_all_is_finite_and_near,
    test_weights_in_torchs_own_format,
)
from tests.tuner.test_peft_saving import (  # noqa: F401
    as_a_second_adapter_without_memory,
    test_a_copy_is_equal_and_independent,
    test_a_pickle_is_equal_and_independent,
    test_a_state_dict_loads_under_another_name,
    test_an_adapter_saved_by_transformers_is_read_by_peft,
    test_reload_is_bit_equal,
    test_transformers_hands_over_an_adapters_state_dict,
)
from tests.tuner.test_peft_several_adapters import (  # noqa: F401
    test_an_added_adapter_is_frozen_and_idle,
    test_an_idle_adapter_is_deleted_without_a_trace,
    test_deleting_the_active_adapter_activates_another,
    test_gradients_are_switched_by_adapter,
    test_switching_adapters_switches_outputs_and_gradients,
    test_transformers_adds_switches_and_deletes_adapters,
    test_transformers_disables_adapters,
    test_transformers_refuses_two_active_adapters,
    test_without_its_last_adapter_the_model_is_the_base,
)


METHODS = {
    "adaptformer": (rein_hf.AdaptFormerConfig, {"bottleneck_size": 4}, {"bottleneck_size": 3}),
    "vpt": (rein_hf.VPTConfig, {"num_prompts": 5}, {"num_prompts": 2}),
}
MODELS = {"adaptformer": rein_hf.AdaptFormerModel, "vpt": rein_hf.VPTModel}


@pytest.fixture(params=METHODS)
def method(request) -> str:
    return request.param


@pytest.fixture(params=["vit"])
def tunable(request, method, vit_folder, build, pixel_values):
    """In the place of that of conftest.py: a bare ViT, and on demand the segmenter."""
    config_class, arguments, _ = METHODS[method]
    if request.param == "segmenter":
        head = HEADS["mask2former"]
        return Tunable(
            build, {**arguments, "modules_to_save": [*head.modules, *head.queries]}, pixel_values, config_class
        )
    return Tunable(
        lambda: AutoModel.from_pretrained(vit_folder, dtype=torch.float32).eval(),
        arguments,
        pixel_values[..., :56, :56],
        config_class,
    )


@pytest.fixture
def day_and_night(tunable, method):
    """In the place of that of conftest.py: two adapters of different form, of which "day" is active."""
    model = tunable.tuned("day")
    model.add_adapter("night", tunable.config(**METHODS[method][2]))
    outputs = {"day": tunable.output(model)}
    model.set_adapter("night")
    perturb(model, seed=1)
    outputs["night"] = tunable.output(model)
    assert not torch.equal(outputs["day"], outputs["night"])
    model.set_adapter("day")
    return model, outputs


def test_it_is_a_peft_model_whose_adapter_alone_trains(tunable, method):
    model = tunable.tuned("test-adapter")
    assert type(model) is PeftModel and type(model.base_model) is MODELS[method]
    assert model.peft_type.value == method.upper()
    assert trainable_names(model) == adapter_parameters(model, "test-adapter") != set()
    assert all(f".{method}_" in name for name in trainable_names(model))


def test_training_lowers_the_loss_and_moves_all_of_the_adapter_and_nothing_else(tunable):
    model = get_peft_model(tunable.build(), tunable.config())  # from its initial values
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0)
    losses = []
    for _ in range(6):
        loss = tunable.loss(model)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses == sorted(losses, reverse=True) and losses[-1] < 0.99 * losses[0], losses
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved == trainable_names(model)


@pytest.mark.parametrize("tunable", ["segmenter"], indirect=True)
def test_a_segmenter_is_reloaded_with_its_head(tunable, tmp_path):
    model = tunable.tuned()
    model.save_pretrained(tmp_path)
    expected = tunable.output(model)
    for loaded in (
        PeftModel.from_pretrained(tunable.build(), tmp_path),
        as_a_second_adapter_without_memory(tunable, str(tmp_path)),
    ):
        assert torch.equal(tunable.output(loaded), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("autocast", [True, False])
def test_an_adapter_is_float32_or_of_the_bases_type(tunable, method, tmp_path, dtype, autocast):
    expected = {torch.float32 if autocast else dtype}
    tunable.tuned().save_pretrained(tmp_path)
    model = get_peft_model(tunable.build().to(dtype), tunable.config(), "made", autocast_adapter_dtype=autocast)
    model.add_adapter("added", tunable.config(), autocast_adapter_dtype=autocast)
    model.load_adapter(str(tmp_path), "loaded", autocast_adapter_dtype=autocast)
    model.load_adapter(str(tmp_path), "sparing", autocast_adapter_dtype=autocast, low_cpu_mem_usage=True)
    for name in model.peft_config:
        found = {p.dtype for n, p in model.named_parameters() if f".{method}_" in n and name in n.split(".")}
        assert found == expected, name
        model.set_adapter(name)
        output = tunable.output(model)
        assert output.dtype == dtype and output.isfinite().all(), name


def test_under_autocast_it_is_near_and_its_gradients_are_float32(tunable):
    model = tunable.tuned()
    expected = tunable.output(model)
    with torch.autocast("cpu", torch.bfloat16):
        loss = tunable.loss(model)
        torch.testing.assert_close(tunable.output(model).float(), expected, rtol=0.1, atol=0.1)
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert gradients.keys() == trainable_names(model)
    assert all(gradient.dtype == torch.float32 and gradient.abs().max() > 0 for gradient in gradients.values())


@pytest.fixture
def compilable(method):
    """Two blocks and two adapters of different form, of which "default" is active; see test_compile.py."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    config_class, arguments, others = METHODS[method]
    torch.manual_seed(0)
    torch.compiler.reset()
    model = get_peft_model(Dinov2Model(Dinov2Config(**sizes)), config_class(**arguments)).eval()
    model.add_adapter("night", config_class(**others, layers_to_transform=[1]))
    for name in ("night", "default"):
        model.set_adapter(name)
        perturb(model)
    return model


def test_training_steps_compile_into_one_graph(compilable):
    compiled = torch.compile(compilable, fullgraph=True, backend="aot_eager", dynamic=False)
    images = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    for adapter in ("default", "night"):
        compilable.set_adapter(adapter)
        steps = []
        for run in (compilable, compiled):
            compilable.zero_grad()
            features = run(images).last_hidden_state
            features.square().mean().backward()
            gradients = {name: p.grad.clone() for name, p in compilable.named_parameters() if p.grad is not None}
            steps.append({"features": features.detach(), **gradients})
        expected, found = steps
        assert found.keys() == expected.keys() == {"features", *adapter_parameters(compilable, adapter)}
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-5)


def test_inference_compiles_into_one_graph_for_all_batches(compilable):
    compiled = torch.compile(compilable, fullgraph=True, backend="eager", dynamic=True)
    with torch.no_grad():
        for batch in (2, 3):
            images = torch.randn(batch, 3, 28, 28, generator=torch.Generator().manual_seed(batch))
            torch.testing.assert_close(compiled(images).last_hidden_state, compilable(images).last_hidden_state)


def test_it_can_be_exported(compilable):
    images = torch.randn(1, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    model = compilable.requires_grad_(False).base_model.model
    exported = torch.export.export(model, (images,)).module()
    torch.testing.assert_close(exported(images).last_hidden_state, model(images).last_hidden_state)


@pytest.mark.parametrize("call", ["merge_adapter", "unmerge_adapter", "merge_and_unload"])
def test_merging_is_refused_with_the_reason(tunable, method, call):
    model = tunable.tuned()
    expected = tunable.output(model)
    name = {"adaptformer": "AdaptFormer", "vpt": "VPT"}[method]
    with pytest.raises(ValueError, match=f"{name} cannot be merged into the backbone: .* Use unload"):
        getattr(model, call)()
    assert torch.equal(tunable.output(model), expected)


def test_two_methods_in_one_model_are_refused(tunable, method):
    model = tunable.tuned()
    expected = tunable.output(model)
    for other in (rein_hf.ReinConfig(num_tokens=4), *(kind() for kind, *_ in METHODS.values())):
        if not isinstance(other, tunable.config_class):
            with pytest.raises(ValueError, match="cannot be added to a model that has adapters of another method"):
                model.base_model.model.add_adapter(other, "other")
    lora = tunable.build()
    lora.add_adapter(LoraConfig(target_modules=["q_proj"]), "lora")
    with pytest.raises(ValueError, match="cannot be added to a model that has adapters of another method; found Lora"):
        lora.add_adapter(tunable.config(), "other")
    assert list(model.peft_config) == ["default"] and torch.equal(tunable.output(model), expected)


def test_a_file_that_lacks_a_tensor_is_refused_on_every_way(tunable, tmp_path):
    tunable.tuned().save_pretrained(tmp_path)
    first = sorted(get_peft_model_state_dict(tunable.tuned()))[0]
    change_tensors(tmp_path, lambda tensors: tensors.update(other=tensors.pop(first)))
    with pytest.raises(ValueError, match=rf"1 missing \['{first}'\], 1 unknown"):
        PeftModel.from_pretrained(tunable.build(), tmp_path)
    model = tunable.build()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.load_adapter(str(tmp_path))
    with pytest.raises(ValueError, match="adapter 'default' cannot be used: .* were never loaded"):
        model(pixel_values=tunable.pixel_values)


def test_an_adapter_of_another_width_is_refused(tunable, tmp_path):
    tunable.tuned().save_pretrained(tmp_path)
    other = Dinov2Model(Dinov2Config(hidden_size=48, num_hidden_layers=4, num_attention_heads=2))
    with pytest.raises(ValueError, match="adapter was made for a backbone of hidden_size 32; found 48"):
        PeftModel.from_pretrained(other, tmp_path)


def test_several_adapters_in_a_batch_and_replicas_are_refused(tunable, day_and_night):
    model, _ = day_and_night
    with pytest.raises(ValueError, match="cannot mix adapters in one batch.* call set_adapter before each group"):
        model(pixel_values=tunable.pixel_values, adapter_names=["day", "night"])
    for module in (model, model.base_model.model):
        with pytest.raises(ValueError, match=r"replica of torch.nn.DataParallel"):
            replicate(module)(tunable.pixel_values)


def test_offloaded_weights_are_loaded_when_they_are_read(tunable, tmp_path):
    model = tunable.tuned().requires_grad_(False)
    expected = model(tunable.pixel_values).last_hidden_state
    cpu_offloaded(model, tmp_path)
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert torch.equal(model(tunable.pixel_values).last_hidden_state, expected)
    with pytest.raises(ValueError, match=r"accelerate has offloaded .*remove_hook_from_submodules"):
        model.add_adapter("night", tunable.config())


def test_each_layer_records_its_configurations(tunable, day_and_night):
    model, _ = day_and_night
    assert all(list(layer.configs) == ["day", "night"] for layer in tuner_layers(model))
