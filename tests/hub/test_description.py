"""rein_hf.describe: what an adapter is, for a few kB."""

import json
import re
from pathlib import Path

import pytest
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from peft import LoraConfig, get_peft_model
from transformers import Dinov2Model

import rein_hf
from rein_hf import ReinConfig, describe


@pytest.fixture
def card(adapter_folder):
    result = EvalResult(
        task_type="image-segmentation",
        dataset_type="user/fog",
        dataset_name="fog",
        metric_type="mean_iou",
        metric_name="mIoU",
        metric_value=12.3,
    )
    data = ModelCardData(license="cc-by-4.0", model_name="adapter", eval_results=[result])
    ModelCard.from_template(data, template_str="---\n{{ card_data }}\n---\n\n# An adapter\n").save(
        adapter_folder / "README.md"
    )


# the tiny model's parameters by hand: 4 blocks, 8 tokens of rank 4, 32 channels, 32 wide queries
REIN = 4 * (8 * 4 + 4 * 32) + 2 * (32 * 32 + 32) + 1 + (32 * 32 + 32) + (96 * 32 + 32)


def test_a_local_adapter(adapter_folder, card, rein_model, vit_folder):
    found = describe(adapter_folder)
    assert (found.base, found.base_bytes) == ("user/vit", None)  # offline, nobody can be asked for its size
    assert found.classes == ("road", "car", "sky")
    assert (found.crop, found.patch_size, found.rank, found.num_tokens, found.linked) == (64, 16, 4, 8, True)
    assert found.rein_parameters == REIN
    trained = sum(
        p.numel() for name, p in rein_model.named_parameters() if ".rein_" in name or "modules_to_save" in name
    )
    assert found.rein_parameters + found.head_parameters == trained
    assert found.bytes == 4 * trained
    assert found.license == "cc-by-4.0"
    assert [(r.dataset_name, r.metric_name, r.metric_value) for r in found.results] == [("fog", "mIoU", 12.3)]
    assert str(found).splitlines()[2:] == [
        "classes:     3: road, car, sky",
        "crop, patch: 64, 16 pixels",
        "Rein:        8 tokens per block, rank 4, which are the object queries",
        f"parameters:  {REIN:,} of Rein, {trained - REIN:,} of the head",
        "licence:     cc-by-4.0",
        "results:     fog: mIoU 12.3",
    ]


def test_full_tokens_without_link_and_without_card(segmenter, vit_folder, tmp_path):
    rein_hf.add_rein(segmenter, ReinConfig(r=None, num_tokens=5, link_queries=False)).save_pretrained(tmp_path)
    (tmp_path / "README.md").unlink()
    found = describe(tmp_path)
    assert (found.rank, found.linked, found.license, found.results) == (None, False, None, ())
    assert found.base_bytes == Path(vit_folder, "model.safetensors").stat().st_size
    assert "full tokens, not linked to object queries" in str(found) and "licence:     not stated" in str(found)


def test_an_adapter_of_a_bare_backbone(vit_folder, tmp_path):
    get_peft_model(Dinov2Model.from_pretrained(vit_folder), ReinConfig(r=4, num_tokens=8)).save_pretrained(tmp_path)
    found = describe(tmp_path)
    assert (found.classes, found.head_parameters, found.linked) == ((), 0, False)
    assert "none, no head" in str(found)


def test_what_is_not_reins_is_refused(vit_folder, tmp_path):
    lora = LoraConfig(target_modules=["fc1"])
    get_peft_model(Dinov2Model.from_pretrained(vit_folder), lora).save_pretrained(tmp_path / "lora")
    with pytest.raises(ValueError, match="lora: adapter_config.json is a LoraConfig that records no segmenter"):
        describe(tmp_path / "lora")
    with pytest.raises(OSError, match="does not appear to have a file named adapter_config.json"):
        describe(vit_folder)


def test_damaged_files_are_named(adapter_folder):
    weights, config = (adapter_folder / name for name in ("adapter_model.safetensors", "adapter_config.json"))
    whole = weights.read_bytes()
    weights.write_bytes(whole[:40])
    with pytest.raises(ValueError, match=re.escape(str(adapter_folder)) + ".*adapter_model.safetensors"):
        describe(adapter_folder)
    weights.write_bytes(whole)
    values = json.loads(config.read_text(encoding="utf-8"))
    values["base_config"]["backbone_config"] = 1
    config.write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(ValueError, match=re.escape(str(adapter_folder))):
        describe(adapter_folder)


def test_from_the_hub_it_takes_some_kilobytes(hub, client, adapter_folder, card, vit_folder, tmp_path):
    hub.add("user/adapter", adapter_folder)  # with its card
    seen = client.describe(pretrained="user/adapter", cache_dir=str(tmp_path / "cache"))
    assert seen.error is None, seen.error
    size = Path(vit_folder, "model.safetensors").stat().st_size
    assert f"backbone:    user/vit, {size / 1e6:.2f} MB" in seen.outputs
    assert f"{REIN:,} of Rein" in seen.outputs and "fog: mIoU 12.3" in seen.outputs
    assert hub.sent("adapter_model.safetensors") == 100_001  # of a quarter of a million: the header is in it
    assert sum(request.sent for request in hub.requests) < 110_000
    assert not [request for request in hub.requests if "user/vit/resolve" in request.path]
    # what is there already is read from there
    assert client.load(pretrained="user/adapter", cache_dir=str(tmp_path / "cache")).error is None
    sent = hub.sent("adapter_model.safetensors")
    again = client.describe(pretrained="user/adapter", cache_dir=str(tmp_path / "cache"))
    assert again.outputs == seen.outputs and hub.sent("adapter_model.safetensors") == sent


def test_a_backbone_that_nobody_may_see_has_no_size(hub, client, tmp_path):
    hub.repos["user/vit"].gated = True
    config = json.loads(hub.files("user/adapter")["adapter_config.json"])
    assert config["base_model_name_or_path"] == "user/vit"
    seen = client.describe(pretrained="user/adapter", cache_dir=str(tmp_path / "cache"))
    assert "backbone:    user/vit\n" in seen.outputs
    missing = client.describe(pretrained="user/nobody", cache_dir=str(tmp_path / "cache"))
    assert missing.error.startswith("OSError: user/nobody is not a local folder and is not a valid model identifier")


@pytest.mark.parametrize(
    ("config", "count", "line"),
    [
        (
            rein_hf.AdaptFormerConfig(bottleneck_size=4),
            4 * (2 * 4 * 32 + 4 + 32),
            "AdaptFormer: a bottleneck of 4 beside every MLP, scale 0.1",
        ),
        (rein_hf.VPTConfig(num_prompts=5), 4 * 5 * 32, "VPT:         5 prompts per block"),
    ],
)
def test_other_methods_are_described_alike(segmenter, tmp_path, config, count, line):
    model = rein_hf.add_adapter(segmenter, config)
    model.save_pretrained(tmp_path)
    found = describe(tmp_path)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert (found.rein_parameters, found.head_parameters) == (count, trained - count)
    assert (found.method, found.rank, found.num_tokens, found.linked) == (line.split(":")[0], None, 0, False)
    assert (found.classes, found.crop) == (("road", "car", "sky"), 64)
    assert str(found).splitlines()[4:6] == [
        line,
        f"parameters:  {count:,} of {found.method}, {trained - count:,} of the head",
    ]
