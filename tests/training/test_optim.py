"""Parameter groups: learning rate and weight decay of each kind of parameter; and which AdamW trains them."""

from types import SimpleNamespace

import pytest
import torch

from rein_hf.training import SegmentationTrainer, param_groups
from rein_hf.training.optim import use_fused_optimizer


def by_name(groups):
    return {name: (group["lr"], group["weight_decay"]) for group in groups for name in group["names"]}


def test_groups_of_rein(rein_model):
    found = by_name(param_groups(rein_model, lr=1e-4, weight_decay=0.05))
    trainable = {name for name, parameter in rein_model.named_parameters() if parameter.requires_grad}
    assert set(found) == trainable
    model = "base_model.model.model."
    layer = model + "pixel_level_module.encoder.vit.encoder.layer."
    decoder = model + "transformer_module.decoder.modules_to_save.default."
    pixel = model + "pixel_level_module.decoder.modules_to_save.default."
    expected = {
        layer + "rein_tokens_a.default": 0.0,
        layer + "rein_tokens_b.default": 0.0,
        layer + "rein_scale.default": 0.0,
        layer + "rein_delta.default.weight": 0.05,
        layer + "rein_delta.default.bias": 0.05,
        layer + "rein_query_merge.default.bias": 0.05,
        model + "transformer_module.queries_features.rein_query_content.default.weight": 0.05,
        model + "transformer_module.level_embed.modules_to_save.default.weight": 0.0,
        pixel + "level_embed": 0.05,
        pixel + "input_projections.0.0.bias": 0.05,
        pixel + "input_projections.0.1.weight": 0.0,  # GroupNorm
        pixel + "encoder.layers.0.self_attn_layer_norm.bias": 0.0,
        decoder + "layers.0.cross_attn.in_proj_weight": 0.05,
        decoder + "layernorm.weight": 0.0,
        "base_model.model.class_predictor.modules_to_save.default.bias": 0.05,
    }
    assert {name: found[name] for name in expected} == {name: (1e-4, decay) for name, decay in expected.items()}


def test_full_fine_tuning_learns_the_backbone_at_a_tenth(segmenter):
    found = by_name(param_groups(segmenter, lr=1e-3, weight_decay=0.05))
    rates = {name: rate for name, (rate, _) in found.items()}
    backbone = "model.pixel_level_module.encoder."
    assert {rate for name, rate in rates.items() if name.startswith(backbone)} == {1e-3 * 0.1}
    assert {rate for name, rate in rates.items() if not name.startswith(backbone)} == {1e-3}
    assert found[backbone + "vit.encoder.layer.0.norm1.weight"][1] == 0.0


def test_nothing_to_train_is_an_error(segmenter):
    with pytest.raises(ValueError, match="No parameter of the model requires gradients"):
        param_groups(segmenter.requires_grad_(False), lr=1e-4, weight_decay=0.05)


def on(device, kind=torch.Tensor):
    return SimpleNamespace(device=torch.device(device), data=torch.ones(1).as_subclass(kind))


class Sharded(torch.Tensor):
    """In the place of FSDP's DTensor."""


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ([on("cuda:0"), on("cuda:1")], True),
        ([on("cuda:0"), on("cpu")], None),
        ([on("cpu")], None),
        ([on("cuda:0"), on("cuda:0", Sharded)], None),
    ],
)
def test_the_optimizer_is_fused_on_cuda(parameters, expected):
    assert use_fused_optimizer([{"params": parameters[:1]}, {"params": parameters[1:]}]) is expected


@pytest.mark.parametrize("fused", [True, None])
def test_the_trainer_makes_the_optimizer_that_fits(rein_model, monkeypatch, fused):
    """torch has a fused AdamW on a CPU too, with which a step can be compared."""
    asked = []
    monkeypatch.setattr("rein_hf.training.trainer.use_fused_optimizer", lambda groups: asked.append(groups) or fused)
    args = SimpleNamespace(learning_rate=1e-3, weight_decay=0.05, adam_beta1=0.9, adam_beta2=0.99, adam_epsilon=1e-8)
    trainer = SimpleNamespace(optimizer=None, model=rein_model, args=args)
    optimizer = SegmentationTrainer.create_optimizer(trainer)
    assert optimizer.defaults["fused"] is fused and trainer.optimizer is optimizer
    (groups,) = asked
    assert [group["names"] for group in groups] == [group["names"] for group in optimizer.param_groups]
    trained = [p for p in rein_model.parameters() if p.requires_grad]
    other = torch.optim.AdamW([p.detach().clone().requires_grad_() for p in trained], lr=1e-3, betas=(0.9, 0.99))
    other.param_groups[0]["weight_decay"] = 0.0
    for group in optimizer.param_groups:
        group["weight_decay"] = 0.0
    for ours, theirs in zip(trained, other.param_groups[0]["params"], strict=True):
        ours.grad = torch.ones_like(ours)
        theirs.grad = torch.ones_like(theirs)
    optimizer.step()
    other.step()
    for ours, theirs in zip(trained, other.param_groups[0]["params"], strict=True):
        torch.testing.assert_close(ours, theirs)
