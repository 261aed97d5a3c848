"""SoMA: how it starts, what it trains, and that it is a plain LoRA wherever it is saved."""

import copy
import json

import pytest
import torch
from peft import (
    LoraConfig,
    PeftConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import Dinov2Config, Dinov2Model

import rein_hf
from rein_hf import SomaConfig, add_adapter
from rein_hf.backbone import backbone_of, cast_frozen_weights
from rein_hf.soma import SomaLinear, default_first_block, minor_components
from rein_hf.training import SegmentationTrainer
from tests.support.models import perturb
from tests.support.runs import HEAD, adapter_weights, equal_adapters, run_recipe
from tests.support.vision_encoders import CHECKPOINTS, write_encoder


def outputs(model, pixel_values):
    model = copy.deepcopy(model).eval().requires_grad_(False)
    found = model(pixel_values=pixel_values)
    return torch.cat([found.class_queries_logits.flatten(), found.masks_queries_logits.flatten()])


@pytest.fixture
def tuned(segmenter):
    """The tiny segmenter with SoMA of rank 4, of which all that is trained differs from its start."""
    model = add_adapter(segmenter, SomaConfig(r=4))
    perturb(model)
    return model.eval()


def layers_of(model):
    return {name: module for name, module in model.named_modules() if isinstance(module, SomaLinear)}


def test_the_components_are_the_smallest():
    """Of a matrix with known singular values 1 to 6."""
    generator = torch.Generator().manual_seed(0)
    u = torch.linalg.qr(torch.randn(8, 6, generator=generator))[0]
    v = torch.linalg.qr(torch.randn(6, 6, generator=generator))[0]
    s = torch.tensor([6.0, 5.0, 4.0, 3.0, 2.0, 1.0])
    b, a = minor_components(u * s @ v.T, 2)
    assert b.shape == (8, 2) and a.shape == (2, 6)
    torch.testing.assert_close(b @ a, u[:, 4:] * s[4:] @ v[:, 4:].T, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(b.norm(dim=0), torch.tensor([2.0, 1.0]).sqrt())  # each half of a value's root
    torch.testing.assert_close(a.norm(dim=1), torch.tensor([2.0, 1.0]).sqrt())
    with pytest.raises(ValueError, match=r"r is 7; expected at most 6 for a weight of \(8, 6\)"):
        minor_components(u * s @ v.T, 7)


def test_the_first_step_is_the_untouched_models(build, pixel_values):
    expected = outputs(build(), pixel_values)
    found = outputs(add_adapter(build(), SomaConfig(r=4)), pixel_values)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_each_layer_computes_what_the_method_says(tuned):
    """(W - B0 A0 + B A) x + b, with factors made here."""
    assert len(layers_of(tuned)) == 3 * 6  # blocks 2 to 4 of 4: q, k, v, proj, fc1, fc2
    for layer in layers_of(tuned).values():
        weight = layer.base_layer.weight.double()
        u, s, vh = torch.linalg.svd(weight, full_matrices=False)
        rest = weight - (u[:, -4:] * s[-4:]) @ vh[-4:]
        b, a = layer.lora_B["default"].weight.double(), layer.lora_A["default"].weight.double()
        x = torch.randn(5, weight.shape[1], dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        expected = nn.functional.linear(x, rest + b @ a, layer.base_layer.bias.double())
        torch.testing.assert_close(layer(x.float()).double(), expected, rtol=1e-4, atol=1e-5)


def test_fsdp_can_shard_it(tuned):
    assert all(parameter.is_contiguous() for parameter in tuned.parameters())


def test_parameters_of_dinov2_large():
    """Of the paper: 4,718,592 in A and B of blocks 9 to 24, and 147,456 biases."""
    with torch.device("meta"):
        vit = Dinov2Model(
            Dinov2Config(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, patch_size=16, image_size=512)
        )
        model = get_peft_model(vit, SomaConfig())
    trained = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    assert sum(trained.values()) == 4_866_048
    assert sum(count for name, count in trained.items() if name.endswith(".bias")) == 147_456
    assert {int(name.split(".layer.")[1].split(".")[0]) for name in trained} == set(range(8, 24))
    assert {layer.r["default"] for layer in layers_of(model).values()} == {16} and len(layers_of(model)) == 16 * 6


def test_where_it_begins():
    assert [default_first_block(blocks) for blocks in (24, 12, 32, 40, 4)] == [9, 5, 11, 14, 2]


# linear layers that are tuned, where they are not q, k, v, proj, fc1 and fc2 of three blocks
COUNTS = {"dinov2 with SwiGLU": 3 * 7, "sam": 3 * 4, "sam vision": 3 * 4, "sam2 hiera": 5 * 4}


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_every_architecture(kind, tmp_path):
    """From the second block of four on, the third of seven. What changes the width of Hiera stays frozen."""
    encoder = write_encoder(kind, tmp_path / "vit")
    model = rein_hf.build_segmenter(encoder, {0: "a", 1: "b"}, image_size=64, num_queries=8, head=HEAD)
    tuned = add_adapter(model, SomaConfig(r=2))
    assert len(layers_of(tuned)) == COUNTS.get(kind, 3 * 6)
    tuned.save_pretrained(tmp_path / "adapter")
    assert type(rein_hf.from_pretrained(tmp_path / "adapter").base_model).__name__ == "LoraModel"


def test_it_is_saved_as_a_plain_lora(tuned, tmp_path, pixel_values):
    """Its outputs come back bit for bit, without this library's SoMA."""
    tuned.save_pretrained(tmp_path / "adapter")
    config = PeftConfig.from_pretrained(tmp_path / "adapter")
    assert type(config) is LoraConfig and (config.r, config.lora_alpha, config.bias) == (8, 8, "lora_only")
    assert "first_block" not in json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    loaded = rein_hf.from_pretrained(tmp_path / "adapter")
    assert not layers_of(loaded) and type(loaded.base_model).__name__ == "LoraModel"
    assert torch.equal(outputs(loaded, pixel_values), outputs(tuned, pixel_values))
    for name, layer in layers_of(tuned).items():
        plain = loaded.get_submodule(name)
        assert plain.scaling == {"default": 1.0} and plain.lora_A["default"].weight.shape[0] == 8
        torch.testing.assert_close(plain.get_delta_weight("default"), layer.get_delta_weight("default"))
        assert torch.equal(plain.base_layer.bias, layer.base_layer.bias)


def test_peft_alone_loads_it(tuned, build, tmp_path, pixel_values):
    tuned.save_pretrained(tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_config.json"
    values = json.loads(path.read_text())
    del values["base_config"]  # of this library
    path.write_text(json.dumps(values))
    assert torch.equal(
        outputs(PeftModel.from_pretrained(build(), tmp_path / "adapter"), pixel_values), outputs(tuned, pixel_values)
    )


def test_it_comes_back_into_its_own_model(tuned, build, tmp_path):
    """As in a run that continues: B, A, B0 and A0, bit for bit."""
    tuned.save_pretrained(tmp_path / "adapter")
    other = add_adapter(build(), SomaConfig(r=4))
    other.load_adapter(tmp_path / "adapter", "default", is_trainable=True)
    expected, found = tuned.state_dict(), other.state_dict()
    assert expected.keys() == found.keys() and all(torch.equal(found[name], expected[name]) for name in expected)
    trained = {name for name, p in tuned.named_parameters() if p.requires_grad}
    assert {name for name, p in other.named_parameters() if p.requires_grad} == trained
    assert not any("lora_start" in name for name in trained)


def test_a_file_of_another_rank_is_refused(tuned, build, tmp_path):
    tuned.save_pretrained(tmp_path / "adapter")
    with pytest.raises(ValueError, match="misshapen .*lora_"):
        add_adapter(build(), SomaConfig(r=3)).load_adapter(tmp_path / "adapter", "default")
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    save_file(
        {name: t[:7].contiguous() if "lora_A" in name else t for name, t in tensors.items()},
        tmp_path / "a.safetensors",
    )
    with pytest.raises(ValueError, match="has 7 ranks; expected 8, since a SoMA with r 4"):
        set_peft_model_state_dict(tuned, load_file(tmp_path / "a.safetensors"))


def test_merged_it_is_a_model_without_adapter(tuned, pixel_values):
    expected = outputs(tuned, pixel_values)
    for safe in (False, True):
        merged = copy.deepcopy(tuned).merge_and_unload(safe_merge=safe)
        assert not layers_of(merged)
        assert (outputs(merged, pixel_values) - expected).abs().max() <= 1e-4 * expected.abs().max()
    model = copy.deepcopy(tuned)
    model.merge_adapter()
    model.unmerge_adapter()
    assert (outputs(model, pixel_values) - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_switched_off_the_weights_are_the_backbones(tuned, build):
    """The weights themselves were never changed, only the biases are."""
    expected = build().state_dict()
    for name, layer in layers_of(tuned).items():
        assert torch.equal(layer.base_layer.weight, expected[name.removeprefix("base_model.model.") + ".weight"])


def test_frozen_weights_in_half_precision_keep_the_factors(tuned):
    before = get_peft_model_state_dict(tuned, save_embedding_layers=False)
    before = {name: tensor.clone() for name, tensor in before.items()}
    cast = cast_frozen_weights(backbone_of(tuned), torch.bfloat16)
    assert cast and not any("lora_" in name for name in cast)
    after = get_peft_model_state_dict(tuned, save_embedding_layers=False)
    assert all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"r": 0}, "SomaConfig has r 0 and first_block None; expected numbers of at least 1"),
        ({"first_block": 0}, "first_block 0; expected"),
        ({"lora_alpha": 8}, "SomaConfig.lora_alpha is 8; expected r, 16: the scaling is 1"),
        ({"use_dora": True}, "SomaConfig.use_dora is True; expected False, since SoMA starts from the weights"),
        ({"lora_dropout": 0.1}, "SomaConfig.lora_dropout is 0.1; expected 0.0"),
        ({"first_block": 2, "target_modules": ["q_proj"]}, "SomaConfig.first_block has no effect: target_modules"),
    ],
)
def test_what_has_no_place_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        SomaConfig(**values)


def test_models_that_do_not_fit_are_refused(segmenter):
    with pytest.raises(ValueError, match="first_block is 5, but the backbone has 4 blocks"):
        add_adapter(segmenter, SomaConfig(r=2, first_block=5))
    with pytest.raises(ValueError, match=r"r is 33; expected at most 32 for a weight of \(32, 32\)"):
        add_adapter(copy.deepcopy(segmenter), SomaConfig(r=33))
    with pytest.raises(TypeError, match="target_modules of SoMA name a Conv2d; expected linear layers"):
        add_adapter(copy.deepcopy(segmenter), SomaConfig(r=2, target_modules=["projection"]))
    with pytest.raises(ValueError, match="target_modules is None, and model_type None is not known"):
        get_peft_model(nn.Sequential(nn.Linear(3, 3)), SomaConfig(r=2))


# ---- as a recipe's tuning ----

SOMA = ("--tuning", "soma", "--rein", "null", "--soma.r", "4", "--learning_rate", "1e-2", "--adapter_lr_factor", "0.5")


def test_a_recipe_trains_it(recipe, tmp_path, build):
    """A, B and biases move; what is subtracted stays."""
    biases = add_adapter(build(), SomaConfig(r=4)).state_dict()
    trainer = run_recipe(recipe, *SOMA, "--weight_decay_end", "1e-5", "--ema_decay", "0.5", "--ema_start", "0.3")
    assert {group["lr"] for group in trainer.optimizer.param_groups} == {0.0}  # at the end of the schedule
    assert {group["initial_lr"] for group in trainer.optimizer.param_groups} == {1e-2, 5e-3}
    for name, layer in layers_of(trainer.model).items():
        b, a = minor_components(layer.base_layer.weight, 4)
        assert torch.equal(layer.lora_start_A["default"], a) and torch.equal(layer.lora_start_B["default"], b)
        assert not torch.equal(layer.lora_A["default"].weight, a) and not torch.equal(
            layer.lora_B["default"].weight, b
        )
        assert not torch.equal(layer.base_layer.bias, biases[f"{name}.base_layer.bias"])
    saved = adapter_weights(tmp_path / "out")
    assert {t.shape[0] for name, t in saved.items() if name.endswith("lora_A.weight")} == {8}
    model = rein_hf.from_pretrained(tmp_path / "out")
    assert not layers_of(model) and model.peft_config["default"].r == 8


def test_an_interrupted_run_ends_with_the_same_weights(recipe, tmp_path, monkeypatch):
    run_recipe(recipe, *SOMA, "--output_dir", str(tmp_path / "straight"))
    step, calls = SegmentationTrainer.training_step, []

    def interrupted(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(SegmentationTrainer, "training_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_recipe(recipe, *SOMA)
    trainer = run_recipe(recipe, *SOMA)
    assert trainer._initial_global_step == 2 and equal_adapters(tmp_path / "out", tmp_path / "straight")


def test_keys_of_a_recipe(recipe):
    for values, message in [
        (["--soma.lora_alpha", "8"], "soma.lora_alpha cannot be set in a recipe: it is r"),
        (["--soma.use_dora", "true"], "soma.use_dora cannot be set in a recipe: SoMA starts from the weights alone"),
        (["--soma.rank", "8"], "unknown key 'soma.rank'"),
        (["--soma.r", "0"], "soma: SomaConfig has r 0"),
        (["--backbone_dtype", "bfloat16"], "backbone_dtype is 'bfloat16' with tuning 'soma'"),
    ]:
        with pytest.raises(ValueError, match=message):
            run_recipe(recipe, *SOMA, *values)
    with pytest.raises(ValueError, match="soma has no effect: tuning is 'rein'; it needs soma."):
        run_recipe(recipe, "--soma.r", "4")
