"""Rein among peft's methods, I: configurations on disk."""

import json

import pytest
from peft import (
    PeftConfig,
)

from rein_hf import ReinConfig


@pytest.mark.parametrize("subfolder", [None, "night"])
def test_a_configuration_comes_back_equal(tmp_path, subfolder):
    config = ReinConfig(
        r=None,
        num_tokens=7,
        link_queries=False,
        init_scale=0.5,
        use_softmax=False,
        zero_init=True,
        patch_size=14,
        layers_to_transform=3,
        target_modules=["encoder.layer"],
        modules_to_save=["head"],
        num_prefix_tokens=5,
        hidden_size=32,
        num_hidden_layers=4,
        base_config={"a": [1, {"b": None}]},
        base_model_name_or_path="somewhere",
        inference_mode=True,
    )
    config.save_pretrained(tmp_path / (subfolder or ""))
    loaded = PeftConfig.from_pretrained(str(tmp_path), subfolder=subfolder)
    assert type(loaded) is ReinConfig
    assert loaded.to_dict() == config.to_dict()
    assert (loaded.r, loaded.layers_to_transform, loaded.target_modules) == (None, [3], {"encoder.layer"})


def test_the_file_of_a_configuration_is_plain_json(tmp_path):
    ReinConfig(num_tokens=7).save_pretrained(tmp_path)
    content = json.loads((tmp_path / "adapter_config.json").read_text())
    assert content["peft_type"] == "REIN" and content["task_type"] is None
    assert (content["r"], content["num_tokens"], content["target_modules"]) == (16, 7, None)
    assert content.keys() == ReinConfig().to_dict().keys()


def test_what_a_configuration_file_says_goes_before_arguments(tmp_path):
    ReinConfig(num_tokens=7).save_pretrained(tmp_path)
    assert ReinConfig.from_pretrained(str(tmp_path), num_tokens=9).num_tokens == 7


def test_a_configuration_of_a_later_version_is_read_with_a_warning(tmp_path):
    ReinConfig(num_tokens=7).save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "of_the_future": 1}))
    with pytest.warns(UserWarning, match=r"Unexpected keyword arguments \['of_the_future'\] for class ReinConfig"):
        assert PeftConfig.from_pretrained(str(tmp_path)).num_tokens == 7
