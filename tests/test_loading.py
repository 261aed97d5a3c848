"""rein_hf.loading: each way to save a segmenter comes back bit for bit; what is not whole is refused."""

import json
import subprocess
import sys
import warnings

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, ViTConfig, ViTModel, pipeline
from transformers.utils import logging as transformers_logging

import rein_hf
from rein_hf import ReinConfig, ViTPyramidConfig
from rein_hf.backbone import backbone_of, cast_frozen_weights
from rein_hf.files import check_finite
from rein_hf.hub import with_base_config
from tests.support.adapters import change_tensors
from tests.support.models import perturb
from tests.support.runs import HEAD


def logits(model, pixel_values) -> torch.Tensor:
    with torch.no_grad():
        output = model.eval().requires_grad_(False)(pixel_values=pixel_values)
    return torch.cat([output.class_queries_logits.flatten(), output.masks_queries_logits.flatten()])


def test_the_package_imports_nothing_that_only_training_and_plots_need():
    """They would take half a second until a photo is segmented."""
    code = "import sys, rein_hf; print({'datasets', 'pandas', 'matplotlib', 'gradio'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# With its backbone


@pytest.mark.parametrize("method", ["rein", "lora"])
def test_adapter_and_backbone_in_one_folder(build, pixel_values, tmp_path, method):
    lora = LoraConfig(target_modules=["fc1"])
    model = (
        rein_hf.add_rein(build(), ReinConfig(r=4, num_tokens=8))
        if method == "rein"
        else rein_hf.add_adapter(build(), lora)
    )
    perturb(model)
    with torch.no_grad():  # no checkpoint elsewhere has this backbone
        for name, parameter in model.named_parameters():
            if ".vit." in name and not parameter.requires_grad:
                parameter.mul_(1.5)
    model.peft_config["default"].base_model_name_or_path = "nowhere"
    expected = logits(model, pixel_values)
    model.save_pretrained(tmp_path, with_backbone=True)
    assert {path.name for path in (tmp_path / "backbone").iterdir()} == {"config.json", "model.safetensors"}
    loaded = rein_hf.from_pretrained(tmp_path)
    assert torch.equal(logits(loaded, pixel_values), expected)
    # where it came from is not forgotten, and an argument goes before what is there
    assert loaded.peft_config["default"].base_model_name_or_path == "nowhere"
    with pytest.raises(OSError, match="its backbone elsewhere cannot be loaded"):
        rein_hf.from_pretrained(tmp_path, backbone="elsewhere")


def test_a_backbone_without_its_unused_modules_is_whole(pixel_values, tmp_path):
    sizes = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 64}
    ViTModel(ViTConfig(**sizes, image_size=64, patch_size=16)).save_pretrained(tmp_path / "vit")
    model = rein_hf.build_segmenter(tmp_path / "vit", {0: "road", 1: "sky"}, image_size=64, num_queries=8, head=HEAD)
    model = rein_hf.add_rein(model, ReinConfig(r=4, num_tokens=8))
    perturb(model)
    model.save_pretrained(tmp_path / "both", with_backbone=True)
    assert not any("pooler" in name for name in load_file(tmp_path / "both" / "backbone" / "model.safetensors"))
    loaded = rein_hf.from_pretrained(tmp_path / "both")
    assert torch.equal(logits(loaded, pixel_values), logits(model, pixel_values))


def test_adapter_and_backbone_in_one_repository(hub, client, rein_model, tmp_path):
    rein_model.peft_config["default"].base_model_name_or_path = "user/lost"
    rein_model.save_pretrained(tmp_path / "both", with_backbone=True)
    hub.add("user/both", tmp_path / "both")
    seen = client.load(pretrained="user/both", cache_dir=str(tmp_path / "cache"))
    assert seen.error is None and seen.outputs == client.load(pretrained="user/adapter").outputs
    assert client.load(pretrained="user/both", cache_dir=str(tmp_path / "cache"), local_files_only=True) == seen


# Whole segmenters


def test_whole_segmenters_come_back(build, pixel_values, tmp_path):
    model = build(id2label={0: "Straße", 1: "sky"})
    perturb(model)  # all of it is trained, as by `tuning: full`
    model.save_pretrained(tmp_path)
    loaded = rein_hf.from_pretrained(tmp_path)
    assert type(loaded) is Mask2FormerForUniversalSegmentation and loaded.config.id2label == {0: "Straße", 1: "sky"}
    assert torch.equal(logits(loaded, pixel_values), logits(model, pixel_values))


def test_what_is_saved_from_inside_an_adapted_model_is_refused(rein_model, tmp_path):
    rein_model.get_base_model().save_pretrained(tmp_path / "half")
    message = r"half is not the segmenter .* it lacks \d+ tensors .*save_pretrained\(FOLDER, with_backbone=True\)"
    with pytest.raises(ValueError, match=message):
        rein_hf.from_pretrained(tmp_path / "half")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("class_predictor.bias"), r"lacks 1 tensors \(class_predictor.bias \.\.\.\)"),
        (lambda tensors: tensors.update(other=torch.zeros(1)), r"has 1 unknown ones \(other \.\.\.\)\. Save it again"),
        (lambda tensors: tensors.update({"class_predictor.bias": torch.zeros(9)}), "cannot be loaded"),
    ],
    ids=["missing", "unknown", "misshapen"],
)
def test_whole_segmenters_that_are_not_whole_are_refused(segmenter, tmp_path, change, message):
    segmenter.save_pretrained(tmp_path / "whole")
    change_tensors(tmp_path / "whole", change, "model.safetensors")
    with pytest.raises(ValueError, match=f"whole .*{message}"):
        rein_hf.from_pretrained(tmp_path / "whole")


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_no_numbers_are_refused(rein_model, build, tmp_path, value):
    """They would make every pixel class 0."""
    rein_model.save_pretrained(tmp_path / "both", with_backbone=True)
    build().save_pretrained(tmp_path / "whole")
    rein_hf.from_pretrained(tmp_path / "both")
    for folder, name in (("both/backbone", "layernorm.weight"), ("whole", "class_predictor.bias")):
        change_tensors(
            tmp_path / folder,
            lambda tensors, name=name: tensors[name].view(-1)[1:3].fill_(value),
            "model.safetensors",
        )
        with pytest.raises(ValueError, match=rf"{folder}: {name} holds 2 of \d+ values that are NaN or infinite"):
            rein_hf.from_pretrained(tmp_path / folder.split("/")[0])


def test_pointers_of_git_lfs_are_named(rein_model, build, tmp_path):
    rein_model.save_pretrained(tmp_path / "both", with_backbone=True)
    build().save_pretrained(tmp_path / "whole")
    for name in ("whole/model.safetensors", "both/backbone/model.safetensors", "both/adapter_model.safetensors"):
        (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 5\n")
        with pytest.raises(ValueError, match=f"{name} is a pointer of git-lfs, expected .* run `git lfs pull`"):
            rein_hf.from_pretrained(tmp_path / name.split("/")[0])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "a/reinn",
            "^a/reinn: no such folder here, and no copy of a repository of this name in the cache. We couldn't",
        ),
        ("./a/reinn", "^./a/reinn: no such folder here, and no Hub id"),
        ("/nowhere/a/rein", "^/nowhere/a/rein: no such folder here, and no Hub id"),
    ],
)
def test_a_folder_that_is_not_there_is_named(name, message):
    with pytest.raises(OSError, match=message):
        rein_hf.from_pretrained(name)


def test_sums_that_are_too_large_are_weights_all_the_same():
    for dtype in (torch.float16, torch.float32):
        check_finite([("large", torch.full((8,), torch.finfo(dtype).max, dtype=dtype))], "file")
    check_finite([("none", torch.zeros(0)), ("whole", torch.ones(2, dtype=torch.int64))], "file")
    check_finite([("elsewhere", torch.empty(2, device="meta"))], "file")


def test_classes_of_whole_segmenters_are_checked(segmenter, tmp_path):
    segmenter.save_pretrained(tmp_path / "whole")
    path = tmp_path / "whole" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "id2label": {"1": "road", "2": "sky"}}))
    with pytest.raises(ValueError, match="whole: id2label in config.json has the ids 1, 2; expected 0 to 1"):
        rein_hf.from_pretrained(tmp_path / "whole")


def test_an_adapter_without_its_head_is_refused(build, tmp_path):
    get_peft_model(
        build(), with_base_config(ReinConfig(r=4, num_tokens=8), build().config.to_diff_dict())
    ).save_pretrained(tmp_path / "headless")
    with pytest.raises(ValueError, match=r"headless: .* lacks 92 tensors of the segmentation head: "):
        rein_hf.from_pretrained(tmp_path / "headless")


# Configurations of other versions, and of other encodings


@pytest.mark.parametrize("method", ["rein", "lora"])
def test_unknown_keys_are_named_and_the_recorded_base_is_not(build, tmp_path, method):
    lora = LoraConfig(target_modules=["fc1"])
    rein = ReinConfig(r=4, num_tokens=8)
    (rein_hf.add_rein(build(), rein) if method == "rein" else rein_hf.add_adapter(build(), lora)).save_pretrained(
        tmp_path
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        rein_hf.from_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "of_the_future": 1}))
    with pytest.warns(UserWarning, match=r"Unexpected keyword arguments \['of_the_future'\]") as caught:
        rein_hf.from_pretrained(tmp_path)
    assert len([warning for warning in caught if "Unexpected keyword" in str(warning.message)]) == 1


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_an_edited_configuration_may_hold_any_letters(rein_model, tmp_path, encoding):
    rein_model.save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    config = json.loads(path.read_text())
    config["base_config"]["id2label"] = {"0": "Straße", "1": "car", "2": "空"}
    path.write_text(json.dumps(config, ensure_ascii=False), encoding=encoding)
    assert rein_hf.from_pretrained(tmp_path).config.id2label == {0: "Straße", 1: "car", 2: "空"}
    assert rein_hf.describe(tmp_path).classes == ("Straße", "car", "空")
    path.write_bytes(json.dumps(config, ensure_ascii=False).encode("cp1252", "replace"))
    with pytest.raises(
        ValueError, match=r"adapter_config.json is no configuration .*UnicodeDecodeError.*'utf-8' codec"
    ):
        rein_hf.from_pretrained(tmp_path)


# Messages that are not true


@pytest.fixture
def messages():
    """What transformers says at its usual level, said again if it was said before."""
    said = []
    handler = transformers_logging.logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_warning()
    transformers_logging.warning_once.cache_clear()
    transformers_logging.add_handler(handler)
    yield said
    transformers_logging.remove_handler(handler)
    transformers_logging.set_verbosity(verbosity)


def test_nothing_is_called_unsupported_that_is_not(messages, build, rein_model, tmp_path):
    Mask2FormerConfig(backbone_config=ViTPyramidConfig())
    build().save_pretrained(tmp_path / "whole")
    rein_model.save_pretrained(tmp_path / "adapter", with_backbone=True)
    for folder in ("whole", "adapter"):
        model = rein_hf.from_pretrained(tmp_path / folder)
        pipeline("image-segmentation", model=model, image_processor=rein_hf.build_image_processor())
    pipeline("image-segmentation", model=model.get_base_model(), image_processor=rein_hf.build_image_processor())
    Mask2FormerForUniversalSegmentation.from_pretrained(tmp_path / "whole")
    assert not [message for message in messages if "support" in message], messages
    Mask2FormerConfig(backbone_config={"model_type": "dinov2"})  # those that are true are said
    assert any("Backbone dinov2 is not a supported model" in message for message in messages)


def test_the_backbones_revision_is_recorded(build, tmp_path):
    model = rein_hf.add_rein(build(revision="v1"), rein_hf.ReinConfig(r=4, num_tokens=8))
    model.save_pretrained(tmp_path / "adapter")
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))["revision"] == "v1"


def test_a_whole_segmenter_takes_no_backbone(segmenter, vit_folder, tmp_path):
    segmenter.save_pretrained(tmp_path / "whole")
    with pytest.raises(ValueError, match="a whole segmenter, which has its own backbone; found"):
        rein_hf.from_pretrained(tmp_path / "whole", backbone=vit_folder)


def test_a_backbone_whose_weights_were_rounded_is_not_saved(rein_model, tmp_path):
    cast_frozen_weights(backbone_of(rein_model), torch.bfloat16)
    with pytest.raises(ValueError, match="weights were cast to torch.bfloat16 .*Save the adapter alone"):
        rein_model.save_pretrained(tmp_path / "both", with_backbone=True)
    assert not (tmp_path / "both").exists()
    rein_model.save_pretrained(tmp_path / "adapter")
