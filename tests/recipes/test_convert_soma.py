"""SoMA's checkpoint files to adapters and back. The files are made here, in the format of its released ones."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftConfig

import rein_hf
from rein_hf.commands import cli
from rein_hf.commands import convert as command
from rein_hf.commands.convert import BACKBONE_FILE, REIN_AND_HEAD_FILE, ConversionArguments
from rein_hf.commands.convert_soma import SOMA_FILE
from rein_hf.soma import minor_components
from tests.support.runs import adapter_weights, equal_adapters, run_recipe


FIXTURES = Path(__file__).parents[1] / "fixtures" / "micro_lora"
HIDDEN, QUERIES, RANK = 32, 10, 3
TUNED = (1, 2, 3)  # of the blocks 0 to 3
LAYERS = ("attn.q", "attn.k", "attn.v", "attn.proj", "mlp.fc1", "mlp.fc2")


@pytest.fixture
def backbone() -> dict:
    return torch.load(FIXTURES / BACKBONE_FILE, weights_only=True)


def weight_of(backbone: dict, block: int, layer: str, leaf: str = "weight") -> torch.Tensor:
    """A weight or bias by SoMA's name, in the backbone by DINOv2's."""
    if layer[-2:] in (".q", ".k", ".v"):
        return backbone[f"blocks.{block}.attn.qkv.{leaf}"].chunk(3)["qkv".index(layer[-1])]
    return backbone[f"blocks.{block}.{layer}.{leaf}"]


@pytest.fixture
def trained(backbone) -> dict:
    """The weights of a run, by SoMA's names."""
    generator = torch.Generator().manual_seed(3)

    def moved(tensor: torch.Tensor) -> torch.Tensor:
        return tensor + 0.1 * tensor.std() * torch.randn(tensor.shape, generator=generator)

    head = torch.load(FIXTURES / REIN_AND_HEAD_FILE, weights_only=True)["state_dict"]
    tensors = {k: v for k, v in head.items() if k.startswith("decode_head.") and "querys2feat" not in k}
    for name in ("query_embed", "query_feat"):
        tensors[f"decode_head.{name}.weight"] = torch.randn(QUERIES, HIDDEN, generator=generator)
    for block in range(4):
        for layer in LAYERS:
            bias = weight_of(backbone, block, layer, "bias")
            if block in TUNED:
                b, a = minor_components(weight_of(backbone, block, layer), RANK)
                tensors[f"backbone.model.blocks.{block}.{layer}.lora_A.weight"] = moved(a)
                tensors[f"backbone.model.blocks.{block}.{layer}.lora_B.weight"] = moved(b)
                bias = moved(bias)
            tensors[f"backbone.model.blocks.{block}.{layer}.bias"] = bias.clone()
        tensors[f"backbone.model.blocks.{block}.norm1.bias"] = backbone[f"blocks.{block}.norm1.bias"]
    tensors["backbone.model.mask_token"] = backbone["mask_token"]
    return tensors


@pytest.fixture
def convert(tmp_path):
    """A function that writes files of SoMA and of DINOv2 and converts them to a folder."""

    def convert(tensors: dict, backbone: dict, out: str = "out", other: dict | None = None, **kwargs) -> Path:
        content = {"state_dict": tensors}
        if other is not None:
            content["ema_state_dict"] = {"steps": torch.tensor(7), **{f"module.{k}": v for k, v in other.items()}}
        torch.save(content, tmp_path / "soma.pth")
        torch.save(backbone, tmp_path / "dinov2.pth")
        files = {"checkpoint": str(tmp_path / "soma.pth"), "backbone": str(tmp_path / "dinov2.pth")}
        arguments = {"num_attention_heads": 2, "output_dir": str(tmp_path / out), **files, **kwargs}
        command.main(ConversionArguments(**arguments))
        return tmp_path / out

    return convert


def logits(model) -> torch.Tensor:
    x = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    output = model.eval().requires_grad_(False).double()(pixel_values=x)
    return torch.cat([output.class_queries_logits.flatten(), output.masks_queries_logits.flatten()])


def test_converted_is_what_was_trained(convert, trained, backbone, capsys):
    """Beside the model whose weights are W - B0 A0 + B A, made here."""
    out = convert(trained, backbone)
    said = capsys.readouterr().out
    assert "LoRA of SoMA and biases" in said and "every tensor is equal to the converted one" in said
    config = PeftConfig.from_pretrained(out)
    assert type(config) is LoraConfig and (config.r, config.lora_alpha, config.bias) == (6, 6, "lora_only")
    found = logits(rein_hf.from_pretrained(out))
    model = rein_hf.from_pretrained(out).unload().double()
    untouched = logits(model)
    ours = ("attention.q_proj", "attention.k_proj", "attention.v_proj", "attention.o_proj", "mlp.fc1", "mlp.fc2")
    for block in TUNED:
        for theirs, name in zip(LAYERS, ours, strict=True):
            prefix = f"backbone.model.blocks.{block}.{theirs}."
            w = weight_of(backbone, block, theirs).double()
            u, s, vh = torch.linalg.svd(w, full_matrices=False)
            rest = w - (u[:, -RANK:] * s[-RANK:]) @ vh[-RANK:]
            layer = model.get_submodule(f"model.pixel_level_module.encoder.vit.encoder.layer.{block}.{name}")
            b, a = trained[f"{prefix}lora_B.weight"].double(), trained[f"{prefix}lora_A.weight"].double()
            layer.weight.data = rest + b @ a
            assert torch.equal(layer.bias.data.float(), trained[f"{prefix}bias"])
    expected = logits(model)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert (untouched - expected).abs().max() > 1e-3 * expected.abs().max()


def test_both_kinds_of_weights(convert, trained, backbone):
    other = {name: tensor + (0.01 if ".lora_" in name else 0) for name, tensor in trained.items()}
    first = adapter_weights(convert(trained, backbone, "first", other))
    second = adapter_weights(convert(trained, backbone, "second", other, weights="ema_state_dict"))
    assert equal_adapters(
        convert(trained, backbone, "alone"), convert(other, backbone, "none", trained).parent / "first"
    )
    name = next(name for name in first if name.endswith("lora_A.weight"))
    torch.testing.assert_close(second[name][:RANK], first[name][:RANK] + 0.01)
    assert torch.equal(second[name][RANK:], first[name][RANK:])


def test_there_and_back_is_bit_equal(convert, trained, backbone, tmp_path):
    out = convert(trained, backbone)
    command.main(ConversionArguments(checkpoint=str(out), output_dir=str(tmp_path / "back"), reverse=True))
    found = torch.load(tmp_path / "back" / SOMA_FILE, weights_only=True)
    expected = {
        name: tensor
        for name, tensor in trained.items()
        if name.startswith("decode_head.") or ".lora_" in name or name.endswith(".bias") and ".blocks.0." not in name
    }
    expected = {name: tensor for name, tensor in expected.items() if ".norm1." not in name}
    assert found["state_dict"].keys() == expected.keys()
    assert all(torch.equal(found["state_dict"][name], tensor) for name, tensor in expected.items())
    averaged = {name.removeprefix("module."): tensor for name, tensor in found["ema_state_dict"].items()}
    assert all(torch.equal(averaged[name], tensor) for name, tensor in expected.items())
    back = torch.load(tmp_path / "back" / BACKBONE_FILE, weights_only=True)
    assert back.keys() == backbone.keys() and all(torch.equal(back[name], backbone[name]) for name in backbone)


def test_a_run_of_ours_becomes_such_a_file_and_comes_back(recipe, tmp_path, vit_folder):
    soma = ("--tuning", "soma", "--rein", "null", "--soma.r", "4", "--learning_rate", "1e-2")
    run_recipe(recipe, *soma)
    files, again = tmp_path / "files", tmp_path / "again"
    command.main(ConversionArguments(checkpoint=str(tmp_path / "out"), output_dir=str(files), reverse=True))
    command.main(
        ConversionArguments(
            checkpoint=str(files / SOMA_FILE),
            backbone=vit_folder,
            output_dir=str(again),
            image_size=64,
        )
    )
    assert equal_adapters(tmp_path / "out", again)
    trained, converted = PeftConfig.from_pretrained(tmp_path / "out"), PeftConfig.from_pretrained(again)
    assert (trained.target_modules, trained.r) == (converted.target_modules, converted.r)


def refused(tmp_path, **arguments: str) -> str:
    argv = ["--output_dir", str(tmp_path / "out"), "--num_attention_heads", "2"]
    for name, value in arguments.items():
        argv += [f"--{name}", str(value)]
    with contextlib.redirect_stderr(io.StringIO()) as stderr:
        assert cli.run("convert", argv) == 2
    assert not (tmp_path / "out").exists()
    return stderr.getvalue()


def test_what_does_not_fit_is_listed(tmp_path, trained, backbone):
    prefix = "backbone.model.blocks."
    del trained[f"{prefix}2.attn.k.lora_B.weight"]
    trained[f"{prefix}3.mlp.fc1.lora_A.weight"] = torch.zeros(RANK, HIDDEN + 1)
    trained[f"{prefix}3.mlp.fc3.weight"] = torch.zeros(2)
    torch.save({"state_dict": trained}, tmp_path / "soma.pth")
    torch.save(backbone, tmp_path / "dinov2.pth")
    message = refused(tmp_path, checkpoint=tmp_path / "soma.pth", backbone=tmp_path / "dinov2.pth")
    for line in (
        "3 keys do not fit, nothing was written:",
        f"missing key {prefix}2.attn.k.lora_B.weight (32, 3)",
        f"misshapen key {prefix}3.mlp.fc1.lora_A.weight: (3, 33), expected (3, 32)",
        f"unknown key {prefix}3.mlp.fc3.weight (2,)",
    ):
        assert line in message


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        (
            {"backbone.model.blocks.0.attn.q.bias": torch.ones(32)},
            {},
            "another value in encoder.layer.0.attention.q_pro",
        ),
        ({"backbone.model.blocks.0.extra.bias": torch.ones(32)}, {}, "unknown blocks.0.extra.bias"),
        (
            {"backbone.model.blocks.1.attn.q.lora_A.weight": torch.ones(5, 32)},
            {},
            "have the ranks [[3], [5]]; expected",
        ),
        ({}, {"weights": "ema_state_dict"}, "holds no ema_state_dict; leave --weights ema_state_dict out"),
        ({}, {"weights": "ema"}, "--weights is 'ema'; expected one of state_dict, ema_state_dict"),
        ({}, {"backbone": None}, "holds no backbone; give --backbone"),
    ],
)
def test_refusals(tmp_path, trained, backbone, change, arguments, message):
    torch.save({"state_dict": trained | change}, tmp_path / "soma.pth")
    torch.save(backbone, tmp_path / "dinov2.pth")
    values = {"checkpoint": tmp_path / "soma.pth", "backbone": tmp_path / "dinov2.pth", **arguments}
    assert message in refused(tmp_path, **{name: value for name, value in values.items() if value is not None})


def test_weights_of_a_file_of_rein_have_no_choice(tmp_path):
    files = {"checkpoint": FIXTURES / REIN_AND_HEAD_FILE, "backbone": FIXTURES / BACKBONE_FILE}
    assert "--weights state_dict has no effect" in refused(tmp_path, **files, weights="state_dict")


def test_a_lora_that_is_not_somas_has_no_such_file(recipe, tmp_path):
    run_recipe(recipe, "--tuning", "lora", "--rein", "null", "--lora", "{r: 4}", "--max_steps", "1")
    message = refused(tmp_path / "to", checkpoint=tmp_path / "out", reverse="true")
    assert "these layers have a LoRA that does not subtract the smallest singular components" in message


def test_a_lora_where_soma_has_none_has_no_such_file(recipe, tmp_path):
    run_recipe(recipe, "--tuning", "lora", "--lora", "{r: 4, target_modules: [projection]}", "--max_steps", "1")
    message = refused(tmp_path / "to", checkpoint=tmp_path / "out", reverse="true")
    assert "has tensors that SoMA's files have no name for:" in message and "projection.lora_A.weight" in message


def test_reverse_of_what_their_files_cannot_tell(recipe, tmp_path):
    soma = ("--tuning", "soma", "--rein", "null", "--max_steps", "1")
    run_recipe(recipe, *soma, "--head.pre_norm", "true")
    message = refused(tmp_path / "to", checkpoint=tmp_path / "out", reverse="true")
    assert "1 value(s) that the files cannot tell" in message and "\n  pre_norm is True; the files give Fal" in message
    path = tmp_path / "out" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "lora_alpha": 1}))
    message = refused(tmp_path / "to", checkpoint=tmp_path / "out", reverse="true")
    assert "2 value(s)" in message and "\n  lora_alpha is 1; the files give 32" in message


def test_reverse_says_what_the_way_back_needs(convert, trained, backbone, tmp_path, capsys):
    out = convert(trained, backbone)
    command.main(ConversionArguments(checkpoint=str(out), output_dir=str(tmp_path / "back"), reverse=True))
    assert "The way back from these files needs: --num_attention_heads 2\n" in capsys.readouterr().out


def test_reverse_without_trained_biases(recipe, tmp_path):
    run_recipe(recipe, "--tuning", "soma", "--rein", "null", "--max_steps", "1", "--soma.bias", "none")
    message = refused(tmp_path / "to", checkpoint=tmp_path / "out", reverse="true")
    assert "bias is 'none'; the files give 'lora_only'" in message
