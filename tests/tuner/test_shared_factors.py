"""rein_hf.tuner.shared_factors with gradients: the factors of all blocks computed at once, and exact all the same."""

import copy
from functools import partial

import pytest
import torch
from peft import get_peft_model
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint
from transformers import AutoModel

from rein_hf import ReinConfig
from rein_hf.tuner.factors import Factors
from tests.support.models import perturb


FULL = {"r": None}
PLAIN = {"zero_init": True, "use_softmax": False}


@pytest.fixture
def build(vit_folder):
    def build(**options):
        torch.manual_seed(0)
        vit = AutoModel.from_pretrained(vit_folder, dtype=torch.float64)
        model = get_peft_model(vit, ReinConfig(**{"r": 4, "num_tokens": 6, **options}), autocast_adapter_dtype=False)
        perturb(model)
        return model.train()

    return build


@pytest.fixture
def images():
    return torch.randn(2, 3, 56, 56, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture
def computed(monkeypatch):
    """The numbers of blocks whose factors were computed in one go; 1 for a single one."""
    numbers, of_weights = [], Factors.of_weights.__func__

    def counted(cls, weights):
        numbers.append(len(weights.tokens[0]) if weights.tokens[0].dim() == 3 else 1)
        return of_weights(cls, weights)

    monkeypatch.setattr(Factors, "of_weights", classmethod(counted))
    return numbers


def blocks_of(model):
    return model.base_model.model.encoder.layer


def trainable(model):
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def gradients(model, images, forward=None):
    model.zero_grad()
    (forward or model)(images).last_hidden_state.square().mean().backward()
    return {name: p.grad.clone() for name, p in trainable(model).items()}


def plain_forward(model, weights):
    """Without parameters, so that autograd records every operation."""
    return lambda images: functional_call(model, weights, (images,))


def copies(model):
    return {name: p.detach().clone().requires_grad_() for name, p in trainable(model).items()}


def assert_equal(found, expected):
    assert found.keys() == expected.keys() and found
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("options", [{}, FULL, PLAIN, {"layers_to_transform": [0, 1, 3]}], ids=str)
def test_gradients_are_those_of_plain_autograd(build, images, options):
    model = build(**options)
    weights = copies(model)
    plain_forward(model, weights)(images).last_hidden_state.square().mean().backward()
    assert_equal(gradients(model, images), {name: weight.grad for name, weight in weights.items()})
    assert blocks_of(model)._shared_factors.pending is None


@pytest.mark.parametrize("checkpointing", [False, True])
def test_once_per_forward_and_once_per_backward_pass(build, images, computed, checkpointing):
    model = build()
    if checkpointing:
        model.base_model.model.gradient_checkpointing_enable({"use_reentrant": False})
    gradients(model, images)
    assert computed == [4, 4]


@pytest.mark.parametrize("options", [{}, FULL], ids=str)
def test_gradients_of_gradients(build, images, options):
    model = build(**options)

    def of_gradients(forward, weights):
        first = torch.autograd.grad(
            forward(images).last_hidden_state.square().mean(), [*weights.values()], create_graph=True
        )
        second = torch.autograd.grad(sum(one.square().sum() for one in first), [*weights.values()])
        return dict(zip(weights, second, strict=True))

    weights = copies(model)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        expected = of_gradients(plain_forward(model, weights), weights)
        assert_equal(of_gradients(model, trainable(model)), expected)


def test_some_weights_frozen(build, images):
    model = build()
    expected = gradients(model, images)
    for kept in ("rein_scale", "rein_tokens_b", "rein_delta.default.bias"):
        for name, p in model.named_parameters():
            p.requires_grad_(kept in name)
        assert_equal(gradients(model, images), {name: one for name, one in expected.items() if kept in name})


def test_reentrant_checkpointing(build, images):
    """Its gradients are those of its arguments alone: the factors are arguments, for the first block too."""
    model = build()
    expected = gradients(model, images)
    model.base_model.model.gradient_checkpointing_enable({"use_reentrant": True})
    assert_equal(gradients(model, images), expected)


def test_blocks_that_are_checkpointed_with_their_hooks(build, images, monkeypatch):
    """As by fairscale's and FSDP's wrappers: each block is repeated alone, the last one first."""
    model = build()
    expected = gradients(model, images)
    for block in blocks_of(model):
        call = partial(type(block).__call__, block)
        block.__class__ = type("Wrapped", (type(block),), {"__call__": repeated_in_backward(call)})
    assert_equal(gradients(model, images), expected)


def repeated_in_backward(call):
    return lambda self, *args, **kwargs: checkpoint(call, *args, use_reentrant=False, **kwargs)


def test_two_passes_block_by_block(build, images):
    """They share factors of one of them, and each calls backward by itself."""
    layer = blocks_of(build())
    features = [torch.randn(2, 17, 32, dtype=torch.float64) for _ in range(2)]

    def run(order):
        layer.zero_grad()
        maps = list(features)
        for index, which in order:
            maps[which] = layer[index](maps[which])
        for one in maps:
            one.square().mean().backward()
        return {name: p.grad.clone() for name, p in layer.named_parameters() if p.grad is not None}

    expected = run([(0, 0), (1, 0), (3, 0), (0, 1), (1, 1), (3, 1)])
    assert_equal(run([(0, 0), (0, 1), (1, 0), (1, 1), (3, 1), (3, 0)]), expected)


def test_a_pass_that_did_not_end_leaves_nothing_behind(build, images):
    model = build()
    expected = gradients(model, images)
    blocks_of(model)[0](torch.randn(2, 17, 32, dtype=torch.float64))
    assert blocks_of(model)._shared_factors.pending is not None
    copied = copy.deepcopy(model)
    assert blocks_of(copied)._shared_factors.pending is None
    for one in (model, copied):
        assert_equal(gradients(one, images), expected)
        with torch.no_grad():
            for parameter in trainable(one).values():
                parameter.mul_(1.5)
        name = "base_model.model.encoder.layer.rein_scale.default"
        assert not torch.equal(gradients(one, images)[name], expected[name])


def test_weights_changed_before_backward_are_an_error(build, images):
    model = build()
    loss = model(images).last_hidden_state.square().mean()
    with torch.no_grad():
        blocks_of(model).rein_tokens_a["default"].mul_(2)
    with pytest.raises(RuntimeError, match=r"modified by an inplace operation since"):
        loss.backward()


def test_hooks_of_parameters_run_once(build, images):
    model, seen = build(), []
    for name, parameter in trainable(model).items():
        parameter.register_hook(lambda gradient, name=name: seen.append(name))
    gradients(model, images)
    assert sorted(seen) == sorted(trainable(model))
