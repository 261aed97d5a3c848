"""The authors' checkpoint files to ours and back, bit for bit, and everything that must be refused."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shlex
from pathlib import Path

import pytest
import torch
from peft import PeftConfig
from torch.nn import functional as F
from transformers import AutoModel

import rein_hf
from rein_hf.backbone.resampling import resample_patch_embed, resample_position_embed
from rein_hf.commands import cli
from rein_hf.commands import convert as command
from rein_hf.commands.convert import BACKBONE_FILE, REIN_AND_HEAD_FILE, ConversionArguments
from rein_hf.commands.convert_arguments import id2label
from rein_hf.labels import CITYSCAPES_CLASSES
from rein_hf.reference import default_out_indices, vit_config
from tests.support import vision_encoders
from tests.support.runs import run_recipe


FIXTURES = Path(__file__).parents[1] / "fixtures" / "micro_lora"
REIN, HEAD = "backbone.reins.", "decode_head."
HIDDEN, DEPTH, QUERIES, RANK = 32, 4, 10, 4


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def checkpoint() -> dict:
    return torch.load(FIXTURES / REIN_AND_HEAD_FILE, weights_only=True)["state_dict"]


@pytest.fixture
def backbone() -> dict:
    return torch.load(FIXTURES / BACKBONE_FILE, weights_only=True)


@pytest.fixture
def convert(tmp_path):
    """A function that writes the authors' two files and converts them to a folder."""

    def convert(checkpoint: dict, backbone: dict | str | None = None, out: str = "out", **kwargs) -> Path:
        (tmp_path / "theirs").mkdir(exist_ok=True)
        file = tmp_path / "theirs" / "rein_and_head.pth"
        torch.save({"meta": {}, "state_dict": checkpoint}, file)
        if isinstance(backbone, dict):
            torch.save(backbone, tmp_path / "theirs" / "dinov2.pth")
            backbone = str(tmp_path / "theirs" / "dinov2.pth")
        arguments = {"num_attention_heads": 2, "output_dir": str(tmp_path / out), **kwargs}
        command.main(ConversionArguments(checkpoint=str(file), backbone=backbone, **arguments))
        return tmp_path / out

    return convert


def normal(*size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def full_tokens(checkpoint: dict, backbone: dict) -> None:
    a, b = (checkpoint.pop(f"{REIN}learnable_tokens_{name}") for name in "ab")
    checkpoint[f"{REIN}learnable_tokens"] = a @ b


def no_link(checkpoint: dict, backbone: dict) -> None:
    for name in (f"{REIN}transform", f"{REIN}merge", f"{HEAD}querys2feat"):
        for leaf in ("weight", "bias"):
            del checkpoint[f"{name}.{leaf}"]
    checkpoint[f"{HEAD}query_embed.weight"] = normal(QUERIES, HIDDEN, seed=1)
    checkpoint[f"{HEAD}query_feat.weight"] = normal(QUERIES, HIDDEN, seed=2)


def no_scale(checkpoint: dict, backbone: dict) -> None:
    del checkpoint[f"{REIN}scale"]


def swiglu(checkpoint: dict, backbone: dict) -> None:
    width = 88  # two thirds of 4 * 32, rounded up to a multiple of 8
    for block in range(DEPTH):
        for name in ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"):
            del backbone[f"blocks.{block}.mlp.{name}"]
        backbone[f"blocks.{block}.mlp.w12.weight"] = normal(2 * width, HIDDEN, seed=block)
        backbone[f"blocks.{block}.mlp.w12.bias"] = normal(2 * width, seed=block)
        backbone[f"blocks.{block}.mlp.w3.weight"] = normal(HIDDEN, width, seed=block)
        backbone[f"blocks.{block}.mlp.w3.bias"] = normal(HIDDEN, seed=block)


def no_mask_token(checkpoint: dict, backbone: dict) -> None:
    del backbone["mask_token"]


def input_projections(checkpoint: dict, backbone: dict) -> None:
    for level in range(3):
        checkpoint[f"{HEAD}decoder_input_projs.{level}.weight"] = normal(HIDDEN, HIDDEN, 1, 1, seed=level)
        checkpoint[f"{HEAD}decoder_input_projs.{level}.bias"] = normal(HIDDEN, seed=level)


def as_it_is(checkpoint: dict, backbone: dict) -> None:
    pass


def assert_same(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name


@pytest.mark.parametrize(
    "change", [as_it_is, full_tokens, no_link, no_scale, swiglu, no_mask_token, input_projections]
)
def test_there_and_back_is_bit_equal(convert, tmp_path, checkpoint, backbone, change, capsys):
    change(checkpoint, backbone)
    out = convert(checkpoint, backbone)
    assert "every tensor is equal to the converted one" in capsys.readouterr().out
    command.main(ConversionArguments(checkpoint=str(out), output_dir=str(tmp_path / "back"), reverse=True))
    found = torch.load(tmp_path / "back" / REIN_AND_HEAD_FILE, weights_only=True)
    assert found["meta"] == {}
    assert_same(found["state_dict"], checkpoint)
    assert_same(torch.load(tmp_path / "back" / BACKBONE_FILE, weights_only=True), backbone)


def logits(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    model = rein_hf.from_pretrained(folder).requires_grad_(False).double()
    output = model(pixel_values=normal(1, 3, 64, 96).double())
    return output.class_queries_logits, output.masks_queries_logits


@pytest.mark.parametrize("change", [full_tokens, no_link])
def test_the_same_model_in_another_form(convert, tmp_path, checkpoint, backbone, change):
    """Full tokens that are A @ B, and learned queries that are what the link makes of the tokens, change nothing."""
    linked = rein_hf.from_pretrained(convert(checkpoint, backbone, "linked"))
    queries = linked.base_model.model.model.transformer_module
    change(checkpoint, backbone)
    if change is no_link:
        checkpoint[f"{HEAD}query_embed.weight"] = queries.queries_embedder.weight.detach()
        checkpoint[f"{HEAD}query_feat.weight"] = queries.queries_features.weight.detach()
    out = convert(checkpoint, backbone)
    assert PeftConfig.from_pretrained(str(out)).link_queries == (change is not no_link)
    for found, expected in zip(logits(out), logits(tmp_path / "linked"), strict=True):
        assert (found - expected).abs().max() < 1e-5 * expected.abs().max()


def test_swiglu_gates_the_first_half(convert, checkpoint, backbone):
    swiglu(checkpoint, backbone)
    vit = AutoModel.from_pretrained(f"{convert(checkpoint, backbone)}-backbone")
    x = normal(5, HIDDEN)
    gate, up = F.linear(x, backbone["blocks.1.mlp.w12.weight"], backbone["blocks.1.mlp.w12.bias"]).chunk(2, dim=-1)
    expected = F.linear(F.silu(gate) * up, backbone["blocks.1.mlp.w3.weight"], backbone["blocks.1.mlp.w3.bias"])
    assert torch.allclose(vit.encoder.layer[1].mlp(x), expected, rtol=1e-4, atol=1e-4)


def test_full_checkpoint(convert, checkpoint, backbone):
    full = checkpoint | {f"backbone.{name}": tensor for name, tensor in backbone.items()}
    out = convert(full, out="full")
    for found, expected in zip(logits(out), logits(convert(checkpoint, backbone)), strict=True):
        assert torch.equal(found, expected)


def test_release_of_patch_14_is_resampled(convert, checkpoint, backbone):
    backbone["patch_embed.proj.weight"] = normal(HIDDEN, 3, 14, 14)
    backbone["pos_embed"] = normal(1, 1 + 9 * 9, HIDDEN)
    out = convert(checkpoint, backbone, image_size=128)
    written = AutoModel.from_pretrained(f"{out}-backbone")
    assert (written.config.patch_size, written.config.image_size) == (14, 9 * 14)
    assert torch.equal(written.embeddings.position_embeddings, backbone["pos_embed"])
    embeddings = rein_hf.from_pretrained(out).base_model.model.model.pixel_level_module.encoder.vit.embeddings
    kernel = resample_patch_embed(backbone["patch_embed.proj.weight"], 16)
    assert torch.equal(embeddings.patch_embeddings.projection.weight, kernel)
    assert torch.equal(embeddings.position_embeddings, resample_position_embed(backbone["pos_embed"], 128 // 16))


def test_backbone_is_a_folder_of_transformers(convert, tmp_path, checkpoint, backbone):
    folder = f"{convert(checkpoint, backbone)}-backbone"
    second = convert(checkpoint, folder, "second")
    named = PeftConfig.from_pretrained(str(second)).base_model_name_or_path
    assert not Path(named).is_absolute() and Path(second, named).samefile(folder)
    assert not Path(f"{second}-backbone").exists()
    for found, expected in zip(logits(second), logits(tmp_path / "out"), strict=True):
        assert torch.equal(found, expected)


def test_adapter_names_its_backbone_for_any_working_directory(convert, tmp_path, checkpoint, backbone, monkeypatch):
    monkeypatch.chdir(tmp_path)
    convert(checkpoint, backbone, output_dir="here/out", backbone_dir="there/vit")
    config = json.loads((tmp_path / "here/out/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "../../there/vit"
    assert str(tmp_path) not in json.dumps(config) + Path("here/out/README.md").read_text()
    assert "# Rein on vit\n" in Path("here/out/README.md").read_text()
    files = ["README.md", "adapter_config.json", "adapter_model.safetensors", "preprocessor_config.json"]
    assert sorted(os.listdir("here/out")) == files
    assert os.listdir("here") == ["out"], "something was left beside the output"
    monkeypatch.chdir(os.sep)
    model = rein_hf.from_pretrained(tmp_path / "here/out")
    assert [model.config.id2label[i] for i in range(19)] == list(CITYSCAPES_CLASSES)
    assert model.config.backbone_config.out_indices == [1, 2, 3, 4]


@pytest.mark.parametrize("encoding", [None, "utf-8", "utf-8-sig"])
def test_names_of_classes(convert, tmp_path, checkpoint, backbone, encoding):
    """As an argument, or in a file."""
    checkpoint[f"{HEAD}cls_embed.weight"], checkpoint[f"{HEAD}cls_embed.bias"] = normal(3, HIDDEN), normal(3)
    names = json.dumps({"1": "Straße", "0": "land"}, ensure_ascii=False)
    if encoding:
        (tmp_path / "names.json").write_text(names, encoding=encoding)
        names = str(tmp_path / "names.json")
    found = rein_hf.from_pretrained(convert(checkpoint, backbone, id2label=names)).config.id2label
    assert found == {0: "land", 1: "Straße"}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ('{"0": "a"}', "--id2label names classes 0 to 0; the checkpoint has classes 0 to 18"),
        ('{"1": "a", "2": "b"}', "--id2label has the ids 1, 2; expected 0 to 1"),
        ('{"0": "a", "1": "a"}', "--id2label.*'a'"),
        ('["a"]', "--id2label is .*expected a name for each id"),
        (b'{"0": "Stra\xdfe"}', "names.json'; expected JSON in UTF-8, or a file of it, .*'utf-8' codec"),
        (json.dumps({index: str(index) for index in range(300)}), "--id2label.* 300 classes; expected 1 to 255"),
    ],
)
def test_names_that_are_refused(tmp_path, names, message):
    if isinstance(names, bytes):
        (tmp_path / "names.json").write_bytes(names)
        names = str(tmp_path / "names.json")
    with pytest.raises(ValueError, match=message):
        id2label(names, 19)


def test_sizes_that_weights_cannot_tell():
    assert default_out_indices(24) == [7, 11, 15, 23] and default_out_indices(12) == [2, 5, 8, 11]
    large = {"pos_embed": torch.zeros(1, 1025, 1024, device="meta")}
    large["patch_embed.proj.weight"] = torch.zeros(1024, 3, 16, 16, device="meta")
    large["blocks.0.mlp.fc1.weight"] = torch.zeros(4096, 1024, device="meta")
    config = vit_config(large)
    assert (config.num_attention_heads, config.image_size, config.mlp_ratio) == (16, 512, 4)


def refused(tmp_path: Path, **arguments: str) -> str:
    """Runs the command; what it writes on stderr. Nothing else is written."""
    before = sorted(tmp_path.rglob("*"))
    argv = ["--output_dir", str(tmp_path / "out")]
    for name, value in {"num_attention_heads": "2", **arguments}.items():
        argv += [f"--{name}", *str(value).split()] if value is not None else []
    with contextlib.redirect_stderr(io.StringIO()) as stderr:
        assert cli.run("convert", argv) == 2
    assert sorted(tmp_path.rglob("*")) == before
    return stderr.getvalue().rstrip("\n")


@pytest.fixture
def files(tmp_path) -> dict[str, str]:
    return {"checkpoint": str(FIXTURES / REIN_AND_HEAD_FILE), "backbone": str(FIXTURES / BACKBONE_FILE)}


def test_every_wrong_key_of_both_files_is_listed(tmp_path, checkpoint, backbone):
    del checkpoint[f"{HEAD}transformer_decoder.layers.1.self_attn.attn.in_proj_bias"]
    checkpoint[f"{REIN}merge.weight"] = normal(32, 95)
    checkpoint[f"{HEAD}loss.weight"] = normal(2)
    del backbone["blocks.2.attn.qkv.weight"]
    backbone["blocks.3.ls2.gamma"] = normal(31)
    backbone["register_tokens"] = normal(1, 4, 32)
    torch.save({"state_dict": checkpoint}, tmp_path / "a.pth")
    torch.save(backbone, tmp_path / "b.pth")
    message = refused(tmp_path, checkpoint=tmp_path / "a.pth", backbone=tmp_path / "b.pth")
    for line in (
        "6 keys do not fit, nothing was written:",
        f"a.pth: missing key {HEAD}transformer_decoder.layers.1.self_attn.attn.in_proj_bias (96,)",
        f"a.pth: misshapen key {REIN}merge.weight: (32, 95), expected (32, 96)",
        f"a.pth: unknown key {HEAD}loss.weight (2,)",
        "b.pth: missing key blocks.2.attn.qkv.weight (96, 32)",
        "b.pth: misshapen key blocks.3.ls2.gamma: (31,), expected (32,)",
        "b.pth: unknown key register_tokens (1, 4, 32)",
    ):
        assert line in message


@pytest.mark.parametrize("key", [f"{REIN}learnable_tokens_b", f"{HEAD}cls_embed.weight", "pos_embed"])
def test_a_key_that_tells_a_size_is_missing(tmp_path, checkpoint, backbone, key):
    for name, tensors in (("a.pth", checkpoint), ("b.pth", backbone)):
        tensors.pop(key, None)
        torch.save(tensors, tmp_path / name)
    message = refused(tmp_path, checkpoint=tmp_path / "a.pth", backbone=tmp_path / "b.pth")
    assert f"missing key {key}" in message


class Code:
    """Runs when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_pickled_code_is_refused_and_not_run(tmp_path, files):
    torch.save({"state_dict": {}, "meta": Code(tmp_path / "ran")}, tmp_path / "code.pth")
    message = refused(tmp_path, **{**files, "checkpoint": tmp_path / "code.pth"})
    assert "code.pth holds pickled code (posix.mkdir)" in message or "code.pth holds pickled code (nt." in message
    assert "code.pth holds pickled code" in refused(tmp_path, **{**files, "backbone": tmp_path / "code.pth"})


@pytest.mark.parametrize("part", [0, 0.3, 0.99])
@pytest.mark.parametrize("which", ["checkpoint", "backbone"])
def test_truncated(tmp_path, files, which, part):
    content = Path(files[which]).read_bytes()
    (tmp_path / "cut.pth").write_bytes(content[: int(len(content) * part)])
    assert "cut.pth is truncated or no PyTorch file" in refused(tmp_path, **{**files, which: tmp_path / "cut.pth"})


def test_swapped_arguments(tmp_path, files):
    message = refused(tmp_path, checkpoint=files["backbone"], backbone=files["checkpoint"])
    assert "are --checkpoint and --backbone swapped?" in message


def test_another_architecture(tmp_path, files):
    torch.save({"state_dict": {"layer1.0.conv1.weight": normal(8, 3, 3, 3)}}, tmp_path / "resnet.pth")
    message = refused(tmp_path, **{**files, "checkpoint": tmp_path / "resnet.pth"})
    assert "no keys backbone.reins.* and decode_head.*; found layer1.0.conv1.weight" in message
    message = refused(tmp_path, **{**files, "backbone": tmp_path / "resnet.pth"})
    assert "resnet.pth is no DINOv2" in message


def test_backbone_of_another_size(tmp_path, files, backbone):
    shallow = {name: tensor for name, tensor in backbone.items() if not name.startswith("blocks.3.")}
    torch.save(shallow, tmp_path / "shallow.pth")
    message = refused(tmp_path, **{**files, "backbone": tmp_path / "shallow.pth"})
    assert "for a backbone of num_hidden_layers 4; found 3" in message


def test_weights_that_are_not_finite_or_no_tensors(tmp_path, files, checkpoint):
    checkpoint[f"{REIN}scale"] = torch.tensor(float("nan"))
    checkpoint[f"{REIN}merge.bias"] = 3
    torch.save(checkpoint, tmp_path / "nan.pth")
    message = refused(tmp_path, **{**files, "checkpoint": tmp_path / "nan.pth"})
    assert f"{REIN}scale: torch.float32, or not finite" in message and f"'{REIN}merge.bias': int" in message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backbone": None}, "holds no backbone; give --backbone"),
        ({"backbone": "nowhere.pth"}, "nowhere.pth is no file"),
        ({"checkpoint": "nowhere.pth"}, "nowhere.pth is no file"),
        ({"num_attention_heads": None}, "hidden size is 32, no multiple of 64: give --num_attention_heads"),
        ({"num_attention_heads": 3}, "num_attention_heads is 3; expected a divisor of the hidden size 32"),
        ({"decoder_attention_heads": 8}, "--decoder_attention_heads is 8; "),
        ({"out_indices": "0 1 2 4"}, "--out_indices is [0, 1, 2, 4]; expected four of the blocks 0 to 3"),
        ({"image_size": 512}, "--image_size is 512, but the backbone's positions fit 128 pixels"),
        ({"id2label": "road"}, "--id2label is 'road'; expected JSON"),
    ],
)
def test_arguments(tmp_path, files, change, message):
    assert message in refused(tmp_path, **{**files, **change})


def test_folder_that_is_there_already(tmp_path, files):
    for name in ("out", "out-backbone"):
        (tmp_path / name).mkdir()
    (tmp_path / "out-backbone" / "model.safetensors").touch()
    assert "out-backbone is there already; expected a new or an empty folder" in refused(tmp_path, **files)


def rewrite(folder: Path, changes: dict) -> None:
    """Changes values in an adapter's configuration, those of dictionaries in it by their names with dots."""
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    for name, value in changes.items():
        *outer, inner = name.split(".")
        place = config
        for key in outer:
            place = place[key]
        place[inner] = value
    path.write_text(json.dumps(config))


def test_reverse_of_what_their_files_cannot_tell(tmp_path, convert, checkpoint, backbone):
    out = convert(checkpoint, backbone, "adapter")
    vit = "base_config.backbone_config.backbone_config."
    rewrite(out, {"use_softmax": False})
    rewrite(out, {"base_config.pre_norm": True, "base_config.activation_function": "gelu"})
    rewrite(out, {f"{vit}hidden_act": "relu", f"{vit}layer_norm_eps": 1e-3})
    processor = rein_hf.build_image_processor()
    processor.image_mean = [0.5, 0.5, 0.5]
    processor.save_pretrained(out)
    message = refused(tmp_path, checkpoint=out, reverse=True)
    assert "6 value(s) that the files cannot tell" in message
    for line in (
        "use_softmax is False; the files give True",
        "pre_norm is True; the files give False",
        "activation_function is 'gelu'; the files give 'relu'",
        "backbone_config.backbone_config.hidden_act is 'relu'; the files give 'gelu'",
        "backbone_config.backbone_config.layer_norm_eps is 0.001; the files give 1e-06",
        "image_mean is [0.5, 0.5, 0.5]; the files give [0.485, 0.456, 0.406]",
    ):
        assert f"\n  {line}" in message


def test_reverse_of_another_patch(tmp_path, recipe):
    run_recipe(recipe, "--max_steps", "1", "--patch_size", "8")
    message = refused(tmp_path, checkpoint=tmp_path / "out", reverse=True)
    assert (
        "1 value(s)" in message and "\n  backbone_config.backbone_config.patch_size is 8; the files give 16" in message
    )


def test_reverse_of_rein_in_some_blocks(tmp_path, recipe):
    run_recipe(recipe, "--max_steps", "1", "--rein.layers_to_transform", "[1, 3]")
    message = refused(tmp_path, checkpoint=tmp_path / "out", reverse=True)
    assert "has layers_to_transform [1, 3]; the authors' files hold Rein in all blocks, 0 to 3" in message


def test_reverse_minds_nothing_that_changes_no_output(tmp_path, convert, checkpoint, backbone):
    out = convert(checkpoint, backbone)
    rewrite(out, {"init_scale": 0.5, "patch_size": 14, "layers_to_transform": [0, 1, 2, 3]})
    names = ("train_num_points", "class_weight", "init_std", "backbone_config.backbone_config.layerscale_value")
    rewrite(out, {f"base_config.{name}": 7 if name == names[0] else 7.0 for name in names})
    rewrite(out, {"base_config.dropout": 0.1, "base_config.palette": [[0, 0, index] for index in range(19)]})
    command.main(ConversionArguments(checkpoint=str(out), output_dir=str(tmp_path / "back"), reverse=True))
    found = torch.load(tmp_path / "back" / REIN_AND_HEAD_FILE, weights_only=True)
    assert_same(found["state_dict"], checkpoint)


def test_reverse_says_what_the_way_back_needs(tmp_path, convert, checkpoint, backbone, capsys):
    """What the forward conversion can be told is no loss: with it, the same model comes back."""
    for name in [name for name in backbone if name.startswith("blocks.3.")]:
        backbone[name.replace(".3.", ".4.")] = backbone[name] + 0.01
    for name in "ab":
        tokens = checkpoint[f"{REIN}learnable_tokens_{name}"]
        checkpoint[f"{REIN}learnable_tokens_{name}"] = torch.cat([tokens, tokens[-1:] + 0.01])
    names = json.dumps({index: f"Straße {index}" for index in range(19)}, ensure_ascii=False)
    out = convert(checkpoint, backbone, out_indices=[0, 1, 3, 4], id2label=names)
    command.main(ConversionArguments(checkpoint=str(out), output_dir=str(tmp_path / "back"), reverse=True))
    ((_, said),) = [line.split(": ", 1) for line in capsys.readouterr().out.splitlines() if "way back" in line]
    options = shlex.split(said)
    assert options == ["--num_attention_heads", "2", "--out_indices", "0", "1", "3", "4", "--id2label", names]
    files = ["--checkpoint", str(tmp_path / "back" / REIN_AND_HEAD_FILE)]
    files += ["--backbone", str(tmp_path / "back" / BACKBONE_FILE), "--output_dir", str(tmp_path / "again")]
    assert cli.run("convert", [*files, *options]) == 0
    configs = [PeftConfig.from_pretrained(str(folder)).base_config for folder in (out, tmp_path / "again")]
    assert configs[0] == configs[1]
    for found, expected in zip(logits(tmp_path / "again"), logits(out), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tuning", "adaptformer"], "is an adapter of peft_type ADAPTFORMER; the authors' files hold Rein"),
        (["--tuning", "vpt"], "is an adapter of peft_type VPT; the authors' files hold Rein"),
        (["--head", "{model_type: upernet, hidden_size: 16}"], "is an adapter with a head of model_type 'upernet'; "),
        (
            ["--tuning", "lora", "--head", "{model_type: upernet, hidden_size: 16}"],
            "is an adapter with a head of model_type 'upernet'; ",
        ),
        (["--tuning", "full"], "is a whole Mask2FormerForUniversalSegmentation; the authors' files hold Rein"),
    ],
)
def test_reverse_of_another_kind(tmp_path, recipe, options, message):
    run_recipe(recipe, *options, "--max_steps", "1")
    said = refused(tmp_path, checkpoint=tmp_path / "out", reverse=True)
    assert message in said and "\n" not in said


@pytest.mark.parametrize("name", ["clip", "dinov3"])
def test_reverse_of_another_backbone(tmp_path, recipe, name):
    backbone = vision_encoders.write_encoder(name, tmp_path / "encoder")
    run_recipe(recipe, "--max_steps", "1", "--backbone", str(backbone))
    said = refused(tmp_path, checkpoint=tmp_path / "out", reverse=True)
    assert "is an adapter on a backbone of model_type '" in said and "\n" not in said
