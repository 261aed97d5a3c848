"""rein_hf.hub.peft_model: further adapters of a model fit it and are whole, or are refused and leave it as it was."""

import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig

import rein_hf
from rein_hf.hub import SegmenterPeftModel
from tests.support.adapters import change_config, change_tensors
from tests.support.models import perturb
from tests.support.runs import HEAD


REIN = "base_model.model.model.pixel_level_module.encoder.vit.encoder.layer."


def logits(model, pixel_values) -> torch.Tensor:
    with torch.no_grad():
        output = model.requires_grad_(False)(pixel_values=pixel_values)
    return torch.cat([output.class_queries_logits.flatten(), output.masks_queries_logits.flatten()])


@pytest.fixture(scope="module")
def saved(vit_folder, tmp_path_factory) -> Path:
    """A folder of two adapters, `day` and `night`, of the tiny segmenter."""
    root = tmp_path_factory.mktemp("adapters")
    torch.manual_seed(0)
    classes = {0: "road", 1: "car", 2: "sky"}
    base = rein_hf.build_segmenter(vit_folder, classes, image_size=64, num_queries=8, head=HEAD)
    model = rein_hf.add_rein(base, rein_hf.ReinConfig(r=4, num_tokens=8))
    for seed, name in enumerate(["day", "night"]):
        perturb(model, seed)
        model.save_pretrained(root / name)
    return root


@pytest.fixture(scope="module")
def model(saved):
    """The model of `day`, which all tests may use that leave it as it was."""
    return rein_hf.from_pretrained(saved / "day")


@pytest.fixture
def day(saved) -> Path:
    return saved / "day"


@pytest.fixture
def night(saved, tmp_path) -> Path:
    """A copy of `night` to be changed."""
    return Path(shutil.copytree(saved / "night", tmp_path / "night"))


VIT = ("base_config", "backbone_config", "backbone_config")
FAULTS = {
    "no tensor of Rein": (
        lambda folder: change_tensors(folder, lambda tensors: tensors.pop(REIN + "rein_delta.weight")),
        "rein_delta.weight",
    ),
    "no tensor of the head": (
        lambda folder: change_tensors(folder, lambda tensors: tensors.pop("base_model.model.class_predictor.bias")),
        r"adapter_model.safetensors .* missing \['base_model.model.class_predictor.bias'\], unknown \[\]",
    ),
    "an unknown tensor": (
        lambda folder: change_tensors(folder, lambda tensors: tensors.update({"other": torch.zeros(1)})),
        "other",
    ),
    "a misshapen tensor": (
        lambda folder: change_tensors(folder, lambda tensors: tensors.update({REIN + "rein_scale": torch.zeros(2)})),
        r"misshapen .*rein_scale \(2,\), expected \(1,\)",
    ),
    "a tensor with NaN": (
        lambda folder: change_tensors(
            folder, lambda tensors: tensors["base_model.model.class_predictor.bias"][0].fill_(torch.nan)
        ),
        r"adapter_model.safetensors: base_model.model.class_predictor.bias holds 1 of 4 values that are NaN or inf",
    ),
    "other names of classes": (
        lambda folder: change_config(folder, "base_config", "id2label", value={"0": "road", "1": "bus", "2": "sky"}),
        r"What differs: classes \['road', 'bus', 'sky'\] in the adapter, \['road', 'car', 'sky'\] in the model\.$",
    ),
    "fewer classes": (
        lambda folder: change_config(folder, "base_config", "id2label", value={"0": "road", "1": "car"}),
        r"classes \['road', 'car'\] in the adapter, \['road', 'car', 'sky'\] in the model",
    ),
    "a class twice": (
        lambda folder: change_config(folder, "base_config", "id2label", value={"0": "a", "1": "b", "2": "a"}),
        r"base_config\.id2label.*\[0, 2\].*'a'|base_config\.id2label.*'a': \[0, 2\]",
    ),
    "another crop": (
        lambda folder: change_config(folder, *VIT, "image_size", value=128),
        r"What differs: backbone_config.backbone_config.image_size 128 in the adapter, 64 in the model\.$",
    ),
    "other blocks": (
        lambda folder: [
            change_config(folder, "base_config", "backbone_config", "out_indices", value=[1, 2, 3, 4]),
            change_config(folder, *VIT, "layer_norm_eps", value=1e-5),
        ],
        "layer_norm_eps 1e-05 in the adapter, 1e-06 in the model",
    ),
    "another head": (
        lambda folder: change_config(folder, "base_config", "num_attention_heads", value=2),
        r"What differs: num_attention_heads 2 in the adapter, 4 in the model\.$",
    ),
    "another kind of segmenter": (
        lambda folder: change_config(folder, "base_config", "model_type", value="upernet"),
        "Use rein_hf.from_pretrained .* upernet on a vit_pyramid on a dinov2, and not to the mask2former on",
    ),
    "another backbone": (
        lambda folder: change_config(folder, "base_model_name_or_path", value="user/vit"),
        "trained on the backbone user/vit; the model's is .*vit.*load_adapter",
    ),
    "no adapter's configuration": (
        lambda folder: (folder / "adapter_config.json").write_text("[]"),
        "adapter_config.json is no configuration of an adapter",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_does_not_fit_is_refused_and_leaves_the_model_as_it_was(model, night, pixel_values, fault):
    change, message = FAULTS[fault]
    change(night)
    expected = logits(model, pixel_values)
    with pytest.raises(ValueError, match=message) as caught:
        model.load_adapter(night, "night")
    assert str(night) in str(caught.value)
    assert list(model.peft_config) == ["default"] and model.active_adapters == ["default"]
    assert not any("night" in name.split(".") for name in model.state_dict())
    assert torch.equal(logits(model, pixel_values), expected)


def test_after_a_refusal_the_name_is_free(day, night, pixel_values, tmp_path):
    model = rein_hf.from_pretrained(day)
    broken = Path(shutil.copytree(night, tmp_path / "broken"))
    FAULTS["no tensor of the head"][0](broken)
    with pytest.raises(ValueError, match="broken"):
        model.load_adapter(broken, "night")
    model.load_adapter(night, "night")
    model.set_adapter("night")
    assert torch.equal(logits(model, pixel_values), logits(rein_hf.from_pretrained(night), pixel_values))


def test_losses_may_differ(day, night, pixel_values):
    for key, value in {"dice_weight": 7.0, "train_num_points": 7, "dropout": 0.7}.items():
        change_config(night, "base_config", key, value=value)
    model = rein_hf.from_pretrained(day)
    model.load_adapter(night, "night")
    model.set_adapter("night")
    assert torch.equal(logits(model, pixel_values), logits(rein_hf.from_pretrained(night), pixel_values))


def test_a_backbone_under_two_names(day, night, vit_folder, pixel_values, tmp_path):
    (tmp_path / "link").symlink_to(vit_folder)
    change_config(night, "base_model_name_or_path", value=str(tmp_path / "link"))
    model = rein_hf.from_pretrained(day)
    model.load_adapter(night, "the same folder")
    change_config(night, "base_model_name_or_path", value="user/vit")
    with pytest.raises(ValueError, match="trained on the backbone user/vit"):
        model.load_adapter(night, "night")
    model.load_adapter(night, "night", backbone=vit_folder)
    model.set_adapter("night")
    expected = logits(rein_hf.from_pretrained(night, backbone=vit_folder), pixel_values)
    assert torch.equal(logits(model, pixel_values), expected)


def test_weights_of_an_adapter_that_is_there_are_replaced(day, night, pixel_values):
    model = rein_hf.from_pretrained(day)
    model.load_adapter(night, "default", is_trainable=True)  # as the Trainer does
    expected = logits(rein_hf.from_pretrained(night), pixel_values)
    assert torch.equal(logits(model, pixel_values), expected)
    for fault in ("no tensor of Rein", "a misshapen tensor", "other names of classes"):
        broken = Path(shutil.copytree(night, night.with_name(fault)))
        FAULTS[fault][0](broken)
        with pytest.raises(ValueError, match=FAULTS[fault][1]):
            model.load_adapter(broken, "default")
        assert torch.equal(logits(model, pixel_values), expected)


def test_a_trainable_one_is_trainable(day, night):
    model = rein_hf.from_pretrained(day)
    model.load_adapter(night, "night", is_trainable=True)
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trainable and all("night" in name.split(".") for name in trainable)
    assert model.peft_config["night"].inference_mode is False


def test_other_methods_are_checked_too(build, vit_folder, pixel_values, tmp_path):
    """peft reads a LoRA's configuration without what it records of the segmenter."""
    lora = LoraConfig(target_modules=["fc1"])
    for name, classes in {"one": "abc", "two": "abc", "three": "abd"}.items():
        model = rein_hf.add_adapter(build(id2label=dict(enumerate(classes))), lora)
        assert type(model) is SegmenterPeftModel and lora.modules_to_save is None
        perturb(model, seed=len(name))
        model.save_pretrained(tmp_path / name)
    model = rein_hf.from_pretrained(tmp_path / "one")
    model.load_adapter(tmp_path / "two", "two")
    model.set_adapter("two")
    assert torch.equal(logits(model, pixel_values), logits(rein_hf.from_pretrained(tmp_path / "two"), pixel_values))
    model.save_pretrained(tmp_path / "again", selected_adapters=["two"])
    again = rein_hf.from_pretrained(tmp_path / "again" / "two")
    assert torch.equal(logits(model, pixel_values), logits(again, pixel_values))
    with pytest.raises(ValueError, match=r"classes \['a', 'b', 'd'\] in the adapter, \['a', 'b', 'c'\] in the model"):
        model.load_adapter(tmp_path / "three", "three")
    with pytest.raises(ValueError, match="two cannot be loaded: Cannot combine adapters with different peft types"):
        rein_hf.add_rein(build(id2label=dict(enumerate("abc"))), rein_hf.ReinConfig(r=4, num_tokens=8)).load_adapter(
            tmp_path / "two", "two"
        )
    with pytest.raises(ValueError, match="The model has an adapter already"):
        rein_hf.add_rein(model.get_base_model())


def test_what_is_no_adapter(model, vit_folder, tmp_path):
    with pytest.raises(OSError, match="has no adapter_config.json; expected the folder or Hub id of an adapter"):
        model.load_adapter(vit_folder, "night")
    with pytest.raises(OSError, match="nowhere"):
        model.load_adapter(tmp_path / "nowhere", "night")


# From the Hub


def test_a_second_adapter_of_the_hub_is_verified(hub, client, adapter_folder, rein_model, tmp_path):
    perturb(rein_model, seed=1)
    rein_model.save_pretrained(tmp_path / "night")
    hub.add("user/night", tmp_path / "night")
    cache = {"cache_dir": str(tmp_path / "cache")}
    expected = client.load(pretrained="user/night", **cache)
    assert expected.error is None and expected.outputs != client.load(pretrained="user/adapter", **cache).outputs
    assert client.load(pretrained="user/adapter", second="user/night", **cache).outputs == expected.outputs
    hub.fail("adapter_model.safetensors", replace=lambda body: body[:-1] + bytes([body[-1] ^ 1]))
    perturb(rein_model, seed=2)
    rein_model.save_pretrained(tmp_path / "night")
    hub.add("user/night", tmp_path / "night")
    error = client.load(pretrained="user/adapter", second="user/night", **cache).error
    assert error.startswith("ValueError: user/night: adapter_model.safetensors has SHA-256")
