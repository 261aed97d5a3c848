"""An adapter names a backbone on the disk by its path from the adapter's folder, and finds it again."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

import rein_hf
from rein_hf.hub.backbone_path import is_hub_id, relative_backbone, resolve_backbone, write_relative_backbone


def named(folder: Path) -> str:
    return json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]


@pytest.fixture
def workplace(rein_model, vit_folder, tmp_path):
    """A folder with a backbone and an adapter of it."""
    shutil.copytree(vit_folder, tmp_path / "here" / "models" / "vit")
    rein_model.peft_config["default"].base_model_name_or_path = str(tmp_path / "here" / "models" / "vit")
    rein_model.save_pretrained(tmp_path / "here" / "runs" / "rein")
    return tmp_path / "here"


def logits(model, pixel_values):
    with torch.no_grad():
        return model.eval()(pixel_values=pixel_values).class_queries_logits


def test_no_file_of_an_adapter_holds_an_absolute_path(workplace, tmp_path, vit_folder):
    assert named(workplace / "runs" / "rein") == "../../models/vit"
    for path in (workplace / "runs" / "rein").iterdir():
        content = path.read_bytes()
        assert str(tmp_path).encode() not in content and str(vit_folder).encode() not in content, path.name


def test_adapter_and_backbone_move_together(workplace, rein_model, pixel_values, tmp_path, monkeypatch):
    expected = logits(rein_model, pixel_values)
    workplace.rename(tmp_path / "there")
    folder = tmp_path / "there" / "runs" / "rein"
    for place, path in ((tmp_path / "there", "runs/rein"), (tmp_path, folder), (folder, ".")):
        monkeypatch.chdir(place)
        assert torch.equal(logits(rein_hf.from_pretrained(path), pixel_values), expected)
    assert rein_hf.describe(folder).base == str(tmp_path / "there" / "models" / "vit")
    (tmp_path / "there" / "models").rename(tmp_path / "elsewhere")
    with pytest.raises(OSError, match=r"its backbone is \.\./\.\./models/vit, a path that counts from the"):
        rein_hf.from_pretrained(folder)


def test_a_path_from_the_working_directory_is_found_as_before(workplace, rein_model, pixel_values, monkeypatch):
    config = workplace / "runs" / "rein" / "adapter_config.json"
    monkeypatch.chdir(workplace)
    for old in ("models/vit", "../here/models/vit", str(workplace / "models" / "vit")):
        config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": old}))
        loaded = rein_hf.from_pretrained("runs/rein")
        assert torch.equal(logits(loaded, pixel_values), logits(rein_model, pixel_values))
        loaded.save_pretrained("again")
        assert named(Path("again")) == "../models/vit"


def test_a_second_adapter_of_another_folder_is_of_the_same_backbone(workplace, rein_model, tmp_path):
    rein_model.save_pretrained(workplace / "deeper" / "runs" / "night")
    assert named(workplace / "deeper" / "runs" / "night") == "../../../models/vit"
    model = rein_hf.from_pretrained(workplace / "runs" / "rein")
    model.load_adapter(workplace / "deeper" / "runs" / "night", "night")
    base = rein_hf.from_pretrained(workplace / "runs" / "rein").unload()
    base.load_adapter(str(workplace / "runs" / "rein"), "day")  # of transformers, which knows no folder
    base.load_adapter(str(workplace / "deeper" / "runs" / "night"), "night")
    shutil.copytree(workplace / "models" / "vit", workplace / "models" / "other")
    model.peft_config["default"].base_model_name_or_path = str(workplace / "models" / "other")
    model.save_pretrained(tmp_path / "other", selected_adapters=["default"])
    with pytest.raises(ValueError, match="was trained on the backbone .*other"):
        rein_hf.from_pretrained(workplace / "runs" / "rein").load_adapter(tmp_path / "other", "other")


def test_further_adapters_count_from_their_own_folders(workplace, tmp_path):
    model = rein_hf.from_pretrained(workplace / "runs" / "rein")
    model.load_adapter(workplace / "runs" / "rein", "night")
    model.save_pretrained(workplace / "both")
    assert named(workplace / "both") == "../models/vit" and named(workplace / "both" / "night") == "../../models/vit"
    assert rein_hf.from_pretrained(workplace / "both" / "night").active_adapter == "default"


def test_a_hub_id_stays_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert relative_backbone("user/vit", "adapter") == "user/vit" and is_hub_id("user/vit")
    (tmp_path / "adapter" / "user" / "vit").mkdir(parents=True)
    assert resolve_backbone("user/vit", tmp_path / "adapter") == "user/vit"
    (tmp_path / "user" / "vit").mkdir(parents=True)  # now that name means a folder here, as in transformers
    assert relative_backbone("user/vit", "adapter") == "../user/vit" and not is_hub_id("user/vit")
    assert not any(map(is_hub_id, (None, "", "../vit", "/data/vit", "a/b/c", "nowhere--x")))


def test_a_backbone_inside_the_adapters_folder_is_no_hub_id(tmp_path):
    (tmp_path / "vit").mkdir()
    assert relative_backbone(tmp_path / "vit", tmp_path) == "./vit"
    assert resolve_backbone("./vit", tmp_path) == os.path.realpath(tmp_path / "vit")


def test_a_folder_that_will_be_renamed(workplace, tmp_path):
    folder = workplace / "runs" / "rein"
    write_relative_backbone(folder, tmp_path / "out")
    assert named(folder) == "../here/models/vit"
    folder.rename(tmp_path / "out")
    assert rein_hf.from_pretrained(tmp_path / "out").active_adapter == "default"


def test_the_model_in_a_file_names_no_path(workplace):
    def paths(values):
        if not isinstance(values, dict):
            return 0
        return ("_name_or_path" in values) + sum(map(paths, values.values()))

    assert paths(json.loads((workplace / "runs" / "rein" / "adapter_config.json").read_text())) == 0
