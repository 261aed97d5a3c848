"""Parameter groups: learning rate and weight decay of each kind of parameter; and which AdamW trains them."""

from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig

from rein_hf import add_adapter
from rein_hf.training import OptimizerArguments, SegmentationTrainer, param_groups
from rein_hf.training.optim import use_fused_optimizer
from rein_hf.training.weight_decay import annealed_weight_decay
from tests.support.runs import run_recipe


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


def test_each_part_has_its_factors(rein_model):
    factors = {"adapter_lr_factor": 10.0, "head_lr_factor": 0.5, "adapter_weight_decay_factor": 0.2}
    assert OptimizerArguments(**factors).factors() == factors and OptimizerArguments().factors() == {}
    found = by_name(param_groups(rein_model, lr=1e-4, weight_decay=0.05, **factors))
    plain = by_name(param_groups(rein_model, lr=1e-4, weight_decay=0.05))
    assert set(found) == set(plain)
    for name, (rate, decay) in found.items():
        of_rein = ".rein_" in name
        assert rate == 1e-4 * (10.0 if of_rein else 0.5), name
        assert decay == plain[name][1] * (0.2 if of_rein else 1.0), name
    assert {decay for name, (_, decay) in found.items() if ".rein_" in name} == {0.0, 0.05 * 0.2}


def test_a_loras_biases_are_the_adapters(segmenter):
    lora = LoraConfig(r=2, target_modules=r".*\.vit\..*\.(q_proj|v_proj)", bias="lora_only")
    model = add_adapter(segmenter, lora)
    found = by_name(param_groups(model, 1e-4, 0.05, adapter_lr_factor=0.5, adapter_weight_decay_factor=3.0))
    adapter = {name: values for name, values in found.items() if ".vit." in name}
    assert any(name.endswith("q_proj.base_layer.bias") for name in adapter)
    assert any(".lora_A." in name for name in adapter) and set(adapter.values()) == {(0.5e-4, 3.0 * 0.05)}
    assert {rate for name, (rate, _) in found.items() if name not in adapter} == {1e-4}


def test_weight_decay_is_annealed_along_a_cosine(recipe, monkeypatch):
    """At 0 of 4 steps 0.05, at 2 the mean, after the last the end; norms and tokens keep none."""
    values = [annealed_weight_decay(0.05, 1e-5, step, 4) for step in range(5)]
    assert values[0] == 0.05 and values[2] == pytest.approx(0.025005) and values[4] == pytest.approx(1e-5)
    assert values[1] == pytest.approx(1e-5 + 0.04999 * 0.8535533905932737)
    seen, step = [], torch.optim.AdamW.step

    def watched(self, *args, **kwargs):
        seen.append({(group["weight_decay_factor"], group["weight_decay"]) for group in self.param_groups})
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    run_recipe(recipe, "--weight_decay_end", "1e-5", "--adapter_weight_decay_factor", "0.5")
    assert seen == [{(0.0, 0.0), (1.0, value), (0.5, value * 0.5)} for value in values[:4]]


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
    trainer = SimpleNamespace(optimizer=None, model=rein_model, args=args, optimization=OptimizerArguments())
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
