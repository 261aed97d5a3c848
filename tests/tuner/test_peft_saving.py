"""Rein among peft's methods, I: weights on disk, by every way that peft and transformers have."""

import copy
import json
import pickle
import warnings

import huggingface_hub
import pytest
import torch
from peft import (
    AutoPeftModel,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from safetensors.torch import load_file

import rein_hf
from rein_hf import ReinConfig
from tests.support.models import adapter_parameters, perturb, trainable_names


# What is written


def test_an_adapters_folder_holds_its_configuration_its_weights_and_a_card(tunable, tmp_path):
    model = tunable.tuned()
    model.save_pretrained(tmp_path)
    files = {path.name for path in tmp_path.iterdir()}
    assert files == {"adapter_config.json", "adapter_model.safetensors", "README.md"}
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == model.base_model.model.name_or_path
    assert config["inference_mode"] is True and model.peft_config["default"].inference_mode is False


def test_the_card_names_base_and_library(tunable, tmp_path):
    model = tunable.tuned()
    model.save_pretrained(tmp_path)
    card = huggingface_hub.ModelCard.load(tmp_path / "README.md")
    assert card.data.library_name == "peft"
    assert card.data.base_model == model.base_model.model.name_or_path
    assert "PEFT 0." in card.text


def test_saving_again_keeps_what_was_written_on_the_card(tunable, tmp_path):
    model = tunable.tuned()
    model.save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    (tmp_path / "README.md").write_text(card.replace("# Model Card for Model ID", "# Streets by night"))
    model.save_pretrained(tmp_path)
    assert "# Streets by night" in (tmp_path / "README.md").read_text()


def test_each_adapter_has_a_folder_and_those_selected_are_written(tunable, tmp_path):
    model = tunable.tuned()
    for name in ("night", "default2", "a_default", "efaul"):
        model.add_adapter(name, tunable.config())
    model.save_pretrained(tmp_path / "all")
    assert {path.name for path in (tmp_path / "all").iterdir() if path.is_dir()} == set(model.peft_config) - {
        "default"
    }
    model.save_pretrained(tmp_path / "one", selected_adapters=["default"])
    assert not any(path.is_dir() for path in (tmp_path / "one").iterdir())
    # names that contain one another are told apart
    for folder in ("all", "all/efaul", "one"):
        assert (
            load_file(tmp_path / folder / "adapter_model.safetensors").keys()
            == get_peft_model_state_dict(model).keys()
        )
    with pytest.raises(ValueError, match="You passed an invalid `selected_adapters`"):
        model.save_pretrained(tmp_path / "none", selected_adapters=["day"])


# Reading it again


def by_peft(tunable, folder):
    return PeftModel.from_pretrained(tunable.build(), folder)


def by_peft_without_memory(tunable, folder):
    return PeftModel.from_pretrained(tunable.build(), folder, low_cpu_mem_usage=True)


def by_peft_under_another_name(tunable, folder):
    return PeftModel.from_pretrained(tunable.build(), folder, adapter_name="night")


def by_peft_from_a_subfolder(tunable, folder):
    outer, _, inner = folder.rpartition("/")
    return PeftModel.from_pretrained(tunable.build(), outer, subfolder=inner)


def as_a_second_adapter(tunable, folder):
    model = tunable.tuned(seed=3)
    result = model.load_adapter(folder, "second")
    assert result.missing_keys == [] and result.unexpected_keys == []
    model.set_adapter("second")
    return model


def as_a_second_adapter_without_memory(tunable, folder):
    model = tunable.tuned(seed=3)
    model.load_adapter(folder, "second", low_cpu_mem_usage=True)
    model.set_adapter("second")
    return model


def by_transformers(tunable, folder):
    model = tunable.build()
    model.load_adapter(folder)
    return model


@pytest.mark.parametrize(
    "load",
    [
        by_peft,
        by_peft_without_memory,
        by_peft_under_another_name,
        by_peft_from_a_subfolder,
        as_a_second_adapter,
        as_a_second_adapter_without_memory,
        by_transformers,
    ],
)
def test_reload_is_bit_equal(tunable, tmp_path, load):
    model = tunable.tuned()
    model.save_pretrained(tmp_path / "adapter")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*[Mm]issing.*")
        loaded = load(tunable, str(tmp_path / "adapter"))
    assert all(parameter.device.type == "cpu" for parameter in loaded.parameters())  # none is left on meta
    assert torch.equal(tunable.output(loaded), tunable.output(model))


def test_auto_peft_model_finds_the_base(tunable, tmp_path):
    base = tunable.build()
    base.save_pretrained(tmp_path / "base")
    base.name_or_path = str(tmp_path / "base")
    model = get_peft_model(base, tunable.config())
    perturb(model)
    model.save_pretrained(tmp_path / "adapter")
    loaded = AutoPeftModel.from_pretrained(str(tmp_path / "adapter"), dtype=torch.float32)
    # to rounding: its Mask2Former is the stock one, without the leaner head of the segmenter
    torch.testing.assert_close(tunable.output(loaded), tunable.output(model))


def test_an_adapter_saved_by_transformers_is_read_by_peft(tunable, tmp_path):
    model = tunable.build()
    model.add_adapter(tunable.config(), "day")
    perturb(model)
    model.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    assert torch.equal(tunable.output(by_peft(tunable, str(tmp_path))), tunable.output(model))


def test_transformers_hands_over_an_adapters_state_dict(tunable):
    model = tunable.build()
    model.add_adapter(tunable.config(), "day")
    perturb(model)
    state_dict = model.get_adapter_state_dict("day")
    assert state_dict.keys() == get_peft_model_state_dict(model, adapter_name="day").keys()
    other = tunable.build()
    other.load_adapter(peft_config=tunable.config(), adapter_state_dict=state_dict, adapter_name="night")
    assert torch.equal(tunable.output(other), tunable.output(model))


def test_a_state_dict_loads_under_another_name(tunable):
    model, other = tunable.tuned("day"), tunable.tuned("night", seed=3)
    state_dict = get_peft_model_state_dict(model, adapter_name="day")
    assert not any("day" in name.split(".") for name in state_dict)
    result = set_peft_model_state_dict(other, state_dict, adapter_name="night")
    assert result.unexpected_keys == []
    assert torch.equal(tunable.output(other), tunable.output(model))


def test_a_copy_is_equal_and_independent(tunable):
    model = tunable.tuned()
    expected = tunable.output(model)
    copied = copy.deepcopy(model)
    perturb(model, seed=1)
    assert torch.equal(tunable.output(copied), expected)
    assert not torch.equal(tunable.output(model), expected)


@pytest.mark.parametrize("tunable", ["vit"], indirect=True)  # transformers puts closures into a Mask2Former
def test_a_pickle_is_equal_and_independent(tunable):
    model = tunable.tuned()
    expected = tunable.output(model)
    pickled = pickle.dumps(model)
    perturb(model, seed=1)
    assert torch.equal(tunable.output(pickle.loads(pickled)), expected)


def test_a_configuration_that_is_handed_over_is_used_as_it_is(tunable, tmp_path):
    model = tunable.tuned()
    model.save_pretrained(tmp_path)
    config = tunable.config()
    loaded = PeftModel.from_pretrained(tunable.build(), str(tmp_path), config=config)
    assert loaded.peft_config["default"] is config and config.inference_mode
    assert torch.equal(tunable.output(loaded), tunable.output(model))


@pytest.mark.parametrize("is_trainable", [False, True])
def test_a_loaded_adapter_is_trainable_if_asked_for(tunable, tmp_path, is_trainable):
    tunable.tuned().save_pretrained(tmp_path)
    model = PeftModel.from_pretrained(tunable.build(), str(tmp_path), is_trainable=is_trainable)
    assert trainable_names(model) == (adapter_parameters(model, "default") if is_trainable else set())
    model.load_adapter(str(tmp_path), "other", is_trainable=is_trainable)
    assert trainable_names(model) == (adapter_parameters(model, "default", "other") if is_trainable else set())
    model.load_adapter(str(tmp_path), "opposite", is_trainable=not is_trainable)
    expected = adapter_parameters(model, "default", "other") if is_trainable else adapter_parameters(model, "opposite")
    assert trainable_names(model) == expected
    model.add_adapter("added", tunable.config())
    assert trainable_names(model) == expected


def test_tensors_of_another_shape_are_refused_or_left_out_with_a_warning(tunable, tmp_path):
    model = tunable.tuned()
    model.save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match=r"size mismatch for .*rein_tokens_a.default"):
        PeftModel.from_pretrained(tunable.build(), str(tmp_path), config=tunable.config(r=2))
    with pytest.warns(UserWarning, match=r"rein_tokens_a.default: found shape"):
        loaded = PeftModel.from_pretrained(
            tunable.build(), str(tmp_path), config=tunable.config(r=2), ignore_mismatched_sizes=True
        )
    expected, found = get_peft_model_state_dict(model), get_peft_model_state_dict(loaded)
    left_out = {name for name in expected if not torch.equal(expected[name], found[name])}
    assert {name.rpartition(".")[-1] for name in left_out} == {"rein_tokens_a", "rein_tokens_b"}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("autocast", [True, False])
def test_an_adapter_is_float32_or_of_the_bases_type(tunable, tmp_path, dtype, autocast):
    tunable.arguments["modules_to_save"] = None  # low_cpu_mem_usage leaves those in the type of the file

    def dtypes(model, name):
        return {p.dtype for n, p in model.named_parameters() if ".rein_" in n and name in n.split(".")}

    expected = {torch.float32 if autocast else dtype}
    tunable.tuned().save_pretrained(tmp_path)
    model = get_peft_model(tunable.build().to(dtype), tunable.config(), "made", autocast_adapter_dtype=autocast)
    model.add_adapter("added", tunable.config(), autocast_adapter_dtype=autocast)
    model.load_adapter(str(tmp_path), "loaded", autocast_adapter_dtype=autocast)
    model.load_adapter(str(tmp_path), "sparing", autocast_adapter_dtype=autocast, low_cpu_mem_usage=True)
    for name in model.peft_config:
        assert dtypes(model, name) == expected, name
        model.set_adapter(name)
        output = tunable.output(model)
        assert output.dtype == dtype and output.isfinite().all(), name
    first = PeftModel.from_pretrained(tunable.build().to(dtype), str(tmp_path), autocast_adapter_dtype=autocast)
    assert dtypes(first, "default") == expected


def test_without_the_package_an_adapter_is_not_known(tmp_path):
    """Importing rein_hf registers Rein under its name in peft's three tables; peft has no other place for a method."""
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING

    assert PEFT_TYPE_TO_CONFIG_MAPPING["REIN"] is ReinConfig
    assert PEFT_TYPE_TO_TUNER_MAPPING["REIN"] is rein_hf.ReinModel
    assert PEFT_TYPE_TO_PREFIX_MAPPING["REIN"] == "rein_"
