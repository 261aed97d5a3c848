"""rein_hf.tuner.recorded: an adapter of Rein is compared with the model that it is put into, whoever loads it."""

import copy
import shutil
from pathlib import Path

import pytest
from peft import PeftModel, get_peft_model
from transformers import AutoModel, pipeline

import rein_hf
from rein_hf import ReinConfig
from rein_hf.tuner.recorded import BaseModelError, check_model_types, differences
from tests.support.adapters import change_config
from tests.support.runs import HEAD


@pytest.fixture(scope="module")
def build_base(vit_folder):
    def build():
        classes = {0: "road", 1: "car", 2: "sky"}
        return rein_hf.build_segmenter(vit_folder, classes, image_size=64, num_queries=8, head=HEAD)

    return build


@pytest.fixture(scope="module")
def base(build_base):
    """A segmenter that refused adapters leave as it was."""
    return build_base()


@pytest.fixture(scope="module")
def model(build_base):
    """Another one, that has an adapter."""
    return rein_hf.add_rein(build_base(), ReinConfig(r=4, num_tokens=8))


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def adapter(saved, tmp_path) -> Path:
    """A copy of the adapter to be changed."""
    return Path(shutil.copytree(saved, tmp_path / "adapter"))


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (
            ["id2label"],
            {"0": "road", "1": "bus", "2": "sky"},
            r"classes \['road', 'bus', 'sky'\] in the adapter, \['road', 'car', 'sky'\] in the model\.$",
        ),
        (
            ["backbone_config", "backbone_config", "image_size"],
            128,
            r"What differs: backbone_config.backbone_config.image_size 128 in the adapter, 64 in the model\.$",
        ),
        (["num_attention_heads"], 2, r"What differs: num_attention_heads 2 in the adapter, 4 in the model\.$"),
        (["num_attention_heads"], "two", "base_config in adapter_config.json is no Mask2FormerConfig"),
    ],
)
def test_what_differs_is_refused_by_peft_and_by_transformers(model, base, adapter, keys, value, message):
    change_config(adapter, "base_config", *keys, value=value)
    with pytest.raises(ValueError, match=message):
        PeftModel.load_adapter(model, str(adapter), "night")
    assert list(model.peft_config) == ["default"]
    with pytest.raises(ValueError, match=message):
        PeftModel.from_pretrained(base, str(adapter))
    with pytest.raises(ValueError, match=message):
        base.load_adapter(str(adapter))


def test_a_second_adapter_of_another_backbone_is_refused_by_peft_and_by_transformers(build_base, model, adapter):
    change_config(adapter, "base_model_name_or_path", value="user/vit")
    with pytest.raises(ValueError, match="trained on the backbone user/vit; the model's is "):
        PeftModel.load_adapter(model, str(adapter), "night")
    base = build_base()
    base.load_adapter(str(adapter))  # whoever names the base of a first one means it
    change_config(adapter, "base_model_name_or_path", value="user/other")
    with pytest.raises(ValueError, match="trained on the backbone user/other; the model's is user/vit or "):
        base.load_adapter(str(adapter), adapter_name="night")


def test_a_segmenters_adapter_on_its_bare_backbone_says_what_loads_it(saved, vit_folder, monkeypatch):
    monkeypatch.chdir(saved)  # from where peft and transformers find the backbone
    message = r"^Use rein_hf\.from_pretrained to load this adapter: it belongs to a whole segmenter, mask2former on"
    with pytest.raises(BaseModelError, match=message):
        PeftModel.from_pretrained(AutoModel.from_pretrained(vit_folder), str(saved))
    with pytest.raises(BaseModelError, match=message):
        pipeline("image-segmentation", model=str(saved))


def test_adapters_of_a_bare_backbone_are_not_compared(base, vit_folder, tmp_path):
    check_model_types({"model_type": "dinov2"}, base.config)
    check_model_types(None, base.config)
    check_model_types("text", {})
    model = get_peft_model(AutoModel.from_pretrained(vit_folder), ReinConfig(r=4, num_tokens=8))
    model.save_pretrained(tmp_path)
    change_config(tmp_path, "base_config", "image_size", value=28)
    PeftModel.from_pretrained(AutoModel.from_pretrained(vit_folder), str(tmp_path))


def test_what_outputs_do_not_depend_on_may_differ(base):
    recorded = base.config.to_dict()
    assert differences(recorded, base.config) == []
    changed = copy.deepcopy(recorded)
    changed.update(dice_weight=7.0, train_num_points=7, dropout=0.7, transformers_version="9", dtype="bfloat16")
    changed["backbone_config"]["backbone_config"].update(_name_or_path="elsewhere", drop_path_rate=0.1)
    changed["backbone_config"]["backbone_config"].update(out_indices=[1, 2], out_features=["stage1", "stage2"])
    changed["backbone_config"]["backbone_config"].update(apply_layernorm=False, layerscale_value=1e-5)
    assert differences(changed, base.config) == []
    changed["backbone_config"]["backbone_config"]["layer_norm_eps"] = 1e-5
    changed["mask_feature_size"] = 16
    assert differences(changed, base.config) == [
        "backbone_config.backbone_config.layer_norm_eps 1e-05 in the adapter, 1e-06 in the model",
        "mask_feature_size 16 in the adapter, 32 in the model",
    ]
