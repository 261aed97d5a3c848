"""Weights that are cast together, against autocast, which casts them one by one."""

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn
from transformers import Mask2FormerForUniversalSegmentation

from rein_hf.head import cast_weights
from rein_hf.head.cast_weights import CastWeights


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch):
    monkeypatch.setattr(cast_weights, "saves_time", lambda device: True)


def layers() -> nn.ModuleDict:
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(8, 2)
    return nn.ModuleDict({"first": nn.Linear(8, 8), "second": nn.Linear(8, 3, bias=False), "attention": attention})


def one_by_one(monkeypatch) -> None:
    monkeypatch.setattr(cast_weights, "_is_plain", lambda layer: False)


def test_the_head_gives_what_autocast_gives(rein_model, pixel_values, monkeypatch):
    """Logits bit for bit; gradients to the rounding of a sum in bfloat16, and none where there was none."""
    rein_model.set_adapter("default")
    results = []
    for _ in range(2):
        rein_model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            output = rein_model(pixel_values=pixel_values)
        (output.masks_queries_logits.float().square().mean() + output.class_queries_logits.square().mean()).backward()
        gradients = {name: p.grad.clone() for name, p in rein_model.named_parameters() if p.grad is not None}
        results.append((output.masks_queries_logits, output.class_queries_logits, gradients))
        one_by_one(monkeypatch)
    (masks, classes, gradients), (expected_masks, expected_classes, expected) = results
    assert torch.equal(masks, expected_masks) and torch.equal(classes, expected_classes)
    assert gradients.keys() == expected.keys() and len(gradients) > 100
    assert {gradient.dtype for gradient in gradients.values()} == {torch.float32}
    differences = torch.stack([(gradients[name] - one).norm() / one.norm() for name, one in expected.items()])
    assert differences.median() < 0.002  # a few gradients are no more than rounding: those of biases before a norm
    whole, other = (torch.cat([one.flatten() for one in each.values()]) for each in (gradients, expected))
    assert (whole - other).norm() < 0.002 * other.norm()


def test_gradients_are_those_of_the_weights():
    module = layers()
    module["first"].bias.requires_grad_(False)
    rows = torch.randn(5, 8)
    results = []
    for together in (True, False):
        module.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            casts = CastWeights(module, rows)
            first = casts.linear(module["first"], rows) if together else module["first"](rows)
        first.float().square().sum().backward()
        results.append({name: p.grad for name, p in module.named_parameters() if p.grad is not None})
    assert list(results[0]) == list(results[1]) == ["first.weight"]
    assert torch.equal(results[0]["first.weight"], results[1]["first.weight"])


def test_second_derivatives():
    weight = torch.randn(3, 4, dtype=torch.float32).requires_grad_()
    found, expected = [], []
    for results, cast in (
        (found, cast_weights._CastTogether.apply(torch.bfloat16, weight)[0]),
        (expected, weight.to(torch.bfloat16)),
    ):
        (gradient,) = torch.autograd.grad(cast.pow(3).sum(), weight, create_graph=True)
        results.extend([gradient.detach(), *torch.autograd.grad(gradient.sum(), weight)])
    assert all(map(torch.equal, found, expected)) and found[1].abs().min() > 0


def test_what_is_left_to_its_layer():
    """Without autocast, of other types, with hooks, and what peft has wrapped."""
    module, rows = layers(), torch.randn(5, 8)
    assert CastWeights(module, rows).dtype is None
    with torch.autocast("cpu", torch.bfloat16):
        assert CastWeights(module.double(), rows).dtype is None
        module.float()
        assert {weight.dtype for weight in CastWeights(module, rows).of(module["attention"])} == {torch.bfloat16}
        called = []
        module["first"].register_forward_hook(lambda *_: called.append("first"))
        CastWeights(module, rows).linear(module["first"], rows)
        assert called == ["first"]
        lora = inject_adapter_in_model(LoraConfig(target_modules=["second"], init_lora_weights=False), module)
        found = CastWeights(lora, rows).linear(lora["second"], rows)
        assert torch.equal(found, lora["second"](rows)) and not torch.equal(found, lora["second"].base_layer(rows))


def test_nothing_is_cast_in_graphs_and_under_transformations():
    module, rows = layers()["second"], torch.randn(5, 8)
    seen = []

    class Traced(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = module

        def forward(self, inputs):
            casts = CastWeights(self, inputs)
            seen.append(casts.dtype)
            return casts.linear(self.layer, inputs)

    model = Traced()
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        expected = model(rows)
        exported = torch.export.export(model, (rows,)).module()(rows)
        torch.func.grad(lambda one: model(one).float().sum())(rows)
    assert seen == [torch.bfloat16, None, None]
    assert torch.equal(exported, expected)


@pytest.mark.parametrize("kind", ["plain", "masked"])
def test_checkpointing_under_autocast_gives_the_same_gradients(rein_model, pixel_values, monkeypatch, kind):
    monkeypatch.setattr(Mask2FormerForUniversalSegmentation, "supports_gradient_checkpointing", True)
    rein_model.train().set_adapter("default")
    gradients = []
    for _ in range(2):
        rein_model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            output = rein_model(pixel_values=pixel_values)
        logits = output.class_queries_logits if kind == "plain" else output.masks_queries_logits
        logits.float().square().mean().backward()
        gradients.append([p.grad.clone() for p in rein_model.parameters() if p.grad is not None])
        rein_model.base_model.model.gradient_checkpointing_enable({"use_reentrant": False})
    assert gradients[0] and len(gradients[0]) == len(gradients[1])
    torch.testing.assert_close(gradients[0], gradients[1])


def test_a_cpu_leaves_casts_to_autocast(monkeypatch):
    monkeypatch.undo()
    module, rows = layers(), torch.randn(5, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert CastWeights(module, rows).dtype is None
