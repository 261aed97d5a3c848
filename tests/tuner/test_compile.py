"""Rein under `torch.compile`: one graph for all blocks, in training and inference, as exact as without it.

A second block is what older versions of torch need in order to make an integer of a hook symbolic; `aot_eager` traces
the gradients too, which the backend `eager` does not.
"""

import copy
import pickle

import pytest
import torch
from peft import get_peft_model
from transformers import Dinov2Config, Dinov2Model

from rein_hf import ReinConfig
from tests.support.models import perturb


@pytest.fixture
def model():
    """Two blocks and two adapters of different form, of which "default" is active."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    torch.manual_seed(0)
    torch.compiler.reset()
    model = get_peft_model(Dinov2Model(Dinov2Config(**sizes)), ReinConfig(r=4, num_tokens=6)).eval()
    model.add_adapter("night", ReinConfig(r=None, num_tokens=4, layers_to_transform=[1]))
    for name in ("night", "default"):
        model.set_adapter(name)
        perturb(model)
    return model


def images(batch):
    return torch.randn(batch, 3, 28, 28, generator=torch.Generator().manual_seed(batch))


def gradients(model, features):
    model.zero_grad()
    features.float().square().mean().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("dynamic", "autocast"), [(False, True), (True, False)])
def test_training_steps_compile_into_one_graph(model, dynamic, autocast):
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for adapter, batch in (("default", 2), ("night", 2), ("default", 3 if dynamic else 2)):
        model.set_adapter(adapter)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            expected, found = (run(images(batch)).last_hidden_state for run in (model, compiled))
        tolerance = {"rtol": 0.05, "atol": 0.05} if autocast else {"rtol": 1e-4, "atol": 1e-5}
        torch.testing.assert_close(found, expected, **tolerance)
        expected, found = (gradients(model, features) for features in (expected, found))
        assert found.keys() == expected.keys() and found and all(adapter in name for name in found)
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, rtol=0.05, atol=0.05 * gradient.abs().max().item())


@pytest.mark.parametrize("dynamic", [False, True])
def test_inference_compiles_into_one_graph(model, dynamic):
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    outputs = []
    with torch.no_grad():
        for adapter, batch in (("default", 2), ("night", 2), ("default", 3 if dynamic else 2)):
            model.set_adapter(adapter)
            expected, found = model(images(batch)).last_hidden_state, compiled(images(batch)).last_hidden_state
            torch.testing.assert_close(found, expected)
            outputs.append(found)
    assert not torch.allclose(outputs[0], outputs[1])


def test_hooks_are_no_submodules_and_follow_copies(model):
    layer = model.base_model.model.encoder.layer
    names = [name for name, _ in model.named_modules()]
    assert not [module for module in model.modules() if "Hook" in type(module).__name__]
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert [name for name, _ in copied.named_modules()] == names
        blocks = copied.base_model.model.encoder.layer
        assert blocks is not layer
        for index, block in enumerate(blocks):
            (hook,) = (hook for hook in block._forward_hooks.values() if type(hook).__name__ == "RefinementHook")
            assert hook.index == index and hook.layer() is blocks
            assert not list(hook.parameters())
