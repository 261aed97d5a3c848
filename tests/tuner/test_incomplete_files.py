"""An adapter's file that lacks tensors or has unknown ones is refused on every way to load that peft and transformers
have."""

import pytest
import torch
from peft import PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file

from rein_hf import ReinConfig
from tests.support.models import perturb


WEIGHTS = "adapter_model.safetensors"
NOT_WHOLE = r"The tensors given for adapter '{}' are not those of its configuration: {} missing \[.*\], {} unknown"


@pytest.fixture
def folder(tunable, tmp_path):
    tunable.tuned().save_pretrained(tmp_path)
    return tmp_path


def rewrite(folder, change) -> None:
    """Write the weights anew, after `change` was made to the state dict."""
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


def without(end):
    """Removes the one tensor whose name ends so."""

    def change(tensors):
        [name] = [name for name in tensors if name.endswith(end)]
        del tensors[name]

    return change


def with_unknown(tensors):
    tensors["base_model.model.encoder.layer.rein_of_the_future"] = torch.zeros(1)


def with_one_of_the_base(tensors):
    tensors["base_model.model.embeddings.cls_token"] = torch.zeros(1, 1, 32)


def under_other_names(tensors):
    for name in [name for name in tensors if ".rein_" in name]:
        tensors[name.replace(".rein_", ".other_")] = tensors.pop(name)


CHANGES = {
    "tokens": (without("rein_tokens_a"), 1, 0),
    "scale": (without("rein_scale"), 1, 0),
    "linear": (without("rein_delta.weight"), 1, 0),
    "unknown": (with_unknown, 0, 1),
    "of the base": (with_one_of_the_base, 0, 1),
    "renamed": (under_other_names, r"\d+", r"\d+"),
}


# every way to be wrong on a bare vision transformer, and two on the segmenter
wrong = pytest.mark.parametrize(
    ("tunable", "change"),
    [*(("vit", name) for name in CHANGES), ("segmenter", "linear"), ("segmenter", "renamed")],
    indirect=["tunable"],
)


@wrong
def test_by_peft(tunable, folder, change):
    change, missing, unknown = CHANGES[change]
    rewrite(folder, change)
    for low_cpu_mem_usage in (False, True):
        with pytest.raises(ValueError, match=NOT_WHOLE.format("default", missing, unknown)):
            PeftModel.from_pretrained(tunable.build(), folder, low_cpu_mem_usage=low_cpu_mem_usage)


@wrong
def test_as_a_second_adapter_and_as_a_state_dict(tunable, folder, change):
    change, missing, unknown = CHANGES[change]
    rewrite(folder, change)
    model = tunable.tuned("day", seed=3)
    expected = tunable.output(model)
    with pytest.raises(ValueError, match=NOT_WHOLE.format("day", missing, unknown)):
        set_peft_model_state_dict(model, load_file(folder / WEIGHTS), adapter_name="day")
    with pytest.raises(ValueError, match=NOT_WHOLE.format("night", missing, unknown)):
        model.load_adapter(folder, "night")
    assert torch.equal(tunable.output(model), expected)
    model.set_adapter("night")
    with pytest.raises(ValueError, match=r"'night' cannot be used: \d+ of its \d+ tensors .* were never loaded"):
        model(pixel_values=tunable.pixel_values)
    # a whole state dict heals it
    set_peft_model_state_dict(model, get_peft_model_state_dict(model, adapter_name="day"), adapter_name="night")
    assert torch.equal(tunable.output(model), expected)


def test_names_are_told_as_they_are_in_the_file(tunable, folder):
    rewrite(folder, without("rein_scale"))
    [layer] = [name for name, module in tunable.tuned().named_modules() if type(module).__name__ == "ReinLayer"]
    with pytest.raises(ValueError, match=rf"1 missing \['{layer}.rein_scale'\], 0 unknown \[\]"):
        PeftModel.from_pretrained(tunable.build(), folder)


@pytest.mark.parametrize("is_trainable", [False, True])
@pytest.mark.parametrize(
    ("tunable", "end"),
    [("vit", "rein_tokens_a"), ("vit", "rein_delta.weight"), ("segmenter", "rein_scale")],
    indirect=["tunable"],
)
def test_by_transformers_the_first_forward_pass_is_refused(tunable, folder, end, is_trainable):
    """Its `load_adapter` only logs what is missing and asks nobody."""
    rewrite(folder, without(end))
    model = tunable.build()
    model.load_adapter(str(folder), is_trainable=is_trainable)
    with pytest.raises(ValueError, match=rf"'default' cannot be used: 1 of its (7|11) .* values: {end.split('.')[0]}"):
        model(pixel_values=tunable.pixel_values)


def test_by_transformers_without_any_tensor_of_rein(tunable, folder):
    rewrite(folder, under_other_names)
    model = tunable.build()
    model.load_adapter(str(folder))
    with pytest.raises(
        ValueError, match=r"'default' cannot be used: (7 of its 7|11 of its 11) tensors in this ReinLayer"
    ):
        model(pixel_values=tunable.pixel_values)


@pytest.mark.parametrize("tunable", ["vit"], indirect=True)
def test_an_adapter_made_for_inference_has_to_be_loaded(tunable, folder):
    """What happens to whoever makes a model from a saved configuration and forgets the weights."""
    model = get_peft_model(tunable.build(), ReinConfig.from_pretrained(folder)).eval()
    with pytest.raises(
        ValueError, match="7 of its 7 tensors in this ReinLayer were never loaded and have random values"
    ):
        tunable_output = model(pixel_values=tunable.pixel_values)  # noqa: F841
    trained = tunable.tuned(seed=5)
    model.load_state_dict(trained.state_dict())
    assert torch.equal(tunable.output(model), tunable.output(trained))


@pytest.mark.parametrize("tunable", ["vit"], indirect=True)
def test_an_adapter_that_is_trained_is_never_asked(tunable):
    model = get_peft_model(tunable.build(), tunable.config())
    model(pixel_values=tunable.pixel_values)
    perturb(model)
    model.peft_config["default"].inference_mode = True
    assert tunable.output(model).isfinite().all()
