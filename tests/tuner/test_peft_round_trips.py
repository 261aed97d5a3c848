"""Rein among peft's methods, V: weights through torch's own files, frozen adapters, models that are not of
transformers."""

import pytest
import torch
from peft import PeftModel, get_peft_model, get_peft_model_state_dict
from peft.utils import WEIGHTS_NAME
from torch import nn

from rein_hf import ReinConfig, ReinLayer
from tests.support.models import adapter_parameters, perturb, trainable_names


only_vit = pytest.mark.parametrize("tunable", ["vit"], indirect=True)


def test_weights_in_torchs_own_format(tunable, tmp_path):
    model = tunable.tuned()
    model.save_pretrained(tmp_path, safe_serialization=False)
    assert {path.name for path in tmp_path.iterdir()} == {"adapter_config.json", WEIGHTS_NAME, "README.md"}
    saved = torch.load(tmp_path / WEIGHTS_NAME, weights_only=True)
    assert saved.keys() == get_peft_model_state_dict(model).keys()
    loaded = PeftModel.from_pretrained(tunable.build(), tmp_path)
    assert torch.equal(tunable.output(loaded), tunable.output(model))
    model.save_pretrained(tmp_path / "other", safe_serialization=False)
    torch.save({name: saved[name] for name in list(saved)[1:]}, tmp_path / "other" / WEIGHTS_NAME)
    with pytest.raises((ValueError, KeyError)):
        PeftModel.from_pretrained(tunable.build(), tmp_path / "other")


def test_a_state_dict_of_the_whole_model(tunable, tmp_path):
    model, other = tunable.tuned(), tunable.tuned(seed=3)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    result = other.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    assert result.missing_keys == result.unexpected_keys == []
    assert torch.equal(tunable.output(other), tunable.output(model))


@only_vit
def test_a_whole_model_in_one_file(tunable, tmp_path):
    model = tunable.tuned()
    torch.save(model, tmp_path / "model.pt")
    loaded = torch.load(tmp_path / "model.pt", weights_only=False)
    assert torch.equal(tunable.output(loaded), tunable.output(model))


def test_a_configuration_for_inference_freezes_the_adapter(tunable):
    model = get_peft_model(tunable.build(), tunable.config(inference_mode=True))
    assert trainable_names(model) == set()
    model = tunable.tuned("day")
    model.add_adapter("night", tunable.config(inference_mode=True))
    assert trainable_names(model) == adapter_parameters(model, "day")


@only_vit
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_of_both_kinds(tunable, use_reentrant):
    model = tunable.tuned().train()
    model.enable_input_require_grads()
    tunable.loss(model).backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    tunable.loss(model).backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert found.keys() == expected.keys() == trainable_names(model)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name])


@only_vit
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_in_half_precision_all_is_finite_and_near(tunable, dtype):
    model = tunable.tuned()
    expected = tunable.output(model)
    model.to(dtype)
    found = tunable.output(model)
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), expected, rtol=0.1, atol=0.1)
    loss = model(pixel_values=tunable.pixel_values.to(dtype)).last_hidden_state.float().square().mean()
    loss.backward()
    assert all(p.grad.isfinite().all() and p.grad.dtype == dtype for p in model.parameters() if p.requires_grad)


class Encoder(nn.Module):
    """A model with blocks and without a configuration."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(nn.Linear(32, 32) for _ in range(3))

    def forward(self, features):
        for block in self.blocks:
            features = block(features).tanh()
        return features


ENCODER = {"target_modules": ["blocks"], "hidden_size": 32, "num_prefix_tokens": 0, "num_tokens": 4}


def test_a_model_without_a_configuration(tmp_path):
    features = torch.randn(2, 5, 32)
    model = get_peft_model(Encoder(), ReinConfig(**ENCODER))
    perturb(model)
    assert isinstance(model.base_model.model.blocks, ReinLayer)
    with torch.no_grad():
        expected = model(features)
        assert not torch.equal(expected, Encoder()(features))
        model.save_pretrained(tmp_path)
        assert torch.equal(PeftModel.from_pretrained(Encoder(), tmp_path)(features), expected)
        assert torch.equal(model.unload()(features), Encoder()(features))


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("target_modules", "ReinConfig.target_modules is not set and the backbone's model_type 'custom' is not known"),
        ("hidden_size", "ReinConfig.hidden_size is not set and the model's configuration does not tell it"),
    ],
)
def test_what_a_model_without_a_configuration_has_to_be_told(missing, message):
    with pytest.raises(ValueError, match=message):
        get_peft_model(Encoder(), ReinConfig(**{**ENCODER, missing: None}))
