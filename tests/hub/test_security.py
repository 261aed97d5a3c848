"""What comes from elsewhere is read and never run, and leads nowhere outside its folder."""

import io
import json
import os
import pickle
import shutil
import subprocess
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from peft import PeftModel
from PIL import EpsImagePlugin, Image
from safetensors.torch import load_file, save_file
from transformers import HfArgumentParser

import rein_hf
from rein_hf.commands import assess, evaluate, predict, train
from rein_hf.data import load_folder
from rein_hf.hub import read_facts
from rein_hf.training import checkpoints
from tests.support.runs import HEAD, write_recipe


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.fixture
def ran(tmp_path):
    """The name of a folder that a payload makes when it is run; after each test it must not be there."""
    path = tmp_path / "ran"
    yield path
    assert not path.exists()


@pytest.fixture
def data(tmp_path) -> Path:
    """Two images of 72x64 with labels."""
    root = tmp_path / "data"
    for name in ("images", "labels"):
        (root / name).mkdir(parents=True)
        for index in range(2):
            Image.fromarray(np.full((64, 72), index, np.uint8)).save(root / name / f"{index}.png")
    return root


@pytest.fixture
def recipe(vit_folder, tmp_path) -> Path:
    """A recipe of two steps that saves after each."""
    values = {"max_steps": 2, "total_batch_size": 1, "save_steps": 1, "output_dir": str(tmp_path / "out")}
    return write_recipe(tmp_path / "run", vit_folder, **values).rename(tmp_path / "recipe.yaml")


# Pickles; those handed to the converter are in test_convert_rein_to_hf.py


def test_the_payload_would_run(tmp_path):
    torch.save(Payload(tmp_path / "proof"), tmp_path / "file")
    torch.load(tmp_path / "file", weights_only=False)
    assert (tmp_path / "proof").is_dir()


def test_a_pickled_adapter_is_refused(rein_model, build, tmp_path, ran):
    folder = tmp_path / "adapter"
    rein_model.save_pretrained(folder)
    (folder / "adapter_model.safetensors").unlink()
    torch.save({"weights": Payload(ran)}, folder / "adapter_model.bin")
    with pytest.raises(OSError, match="adapter has an adapter_config.json but no adapter_model.safetensors"):
        rein_hf.from_pretrained(folder)
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        PeftModel.from_pretrained(build(), str(folder))  # peft reads such files, as tensors alone


@pytest.mark.parametrize("what", ["backbone", "whole model"])
def test_a_pickled_model_is_not_run(vit_folder, build, tmp_path, ran, what):
    folder = tmp_path / "model"
    build().save_pretrained(folder) if what == "whole model" else shutil.copytree(vit_folder, folder)
    (folder / "model.safetensors").unlink()
    torch.save({"weights": Payload(ran)}, folder / "pytorch_model.bin")
    load = rein_hf.from_pretrained if what == "whole model" else build_on
    with pytest.raises((OSError, ValueError, pickle.UnpicklingError), match="pytorch_model.bin|Weights only"):
        load(folder)


def build_on(folder):
    return rein_hf.build_segmenter(folder, {0: "road"}, image_size=64, num_queries=8, head=HEAD)


def write_checksums_again(checkpoint: Path) -> None:
    (checkpoint / checkpoints.MANIFEST).unlink()
    checkpoints.write_manifest(checkpoint)


def test_pickles_in_a_checkpoint_are_not_run_on_resume(recipe, tmp_path, ran):
    out = tmp_path / "out"
    train.main(*train.parse([str(recipe)]))
    for path in out.iterdir():  # as if the run had been cut off after its first step
        if path.is_file() and path.name != "recipe.json":
            path.unlink()
    checkpoints.delete_checkpoint(out / "checkpoint-2")
    checkpoint = out / "checkpoint-1"
    pickled = {path.name for path in checkpoint.iterdir() if path.suffix in (".pt", ".pth", ".bin")}
    assert pickled == {"optimizer.pt", "scheduler.pt", "rng_state.pth"}
    for name in sorted(pickled):
        content = (checkpoint / name).read_bytes()
        torch.save(Payload(ran), checkpoint / name)
        write_checksums_again(checkpoint)  # whoever wrote the file wrote its checksum, too
        with pytest.raises(ValueError, match="checkpoint-1 holds more than tensors .* Weights only load failed"):
            train.main(*train.parse([str(recipe)]))
        (checkpoint / name).write_bytes(content)
    write_checksums_again(checkpoint)
    assert train.main(*train.parse([str(recipe)])).state.global_step == 2


# Code of other kinds


@pytest.mark.parametrize("model_type", ["dinov2", "of_the_hub"])
def test_code_beside_a_backbone_is_not_run(vit_folder, tmp_path, ran, model_type):
    folder = tmp_path / "vit"
    shutil.copytree(vit_folder, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": model_type, "auto_map": {"AutoConfig": "code.Config", "AutoModel": "code.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text(f"import os\nos.mkdir({str(ran)!r})\nclass Config: pass\nclass Model: pass\n")
    if model_type == "dinov2":
        assert build_on(folder).config.num_queries == 8  # transformers' own class
    else:
        with pytest.raises(ValueError, match="trust_remote_code"):
            build_on(folder)


@pytest.mark.parametrize("text", ["!!python/object/apply:os.mkdir [{ran}]", "crop: !!python/name:os.mkdir"])
def test_objects_in_yaml_are_refused(tmp_path, ran, recipe, text):
    path = tmp_path / "file.yaml"
    path.write_text(text.format(ran=ran))
    message = "file.yaml is no plain YAML: could not determine a constructor for the tag 'tag:yaml.org,2002:python/"
    with pytest.raises(ValueError, match=message):
        train.parse([str(path)])
    for read in (read_facts, assess.read_plan):
        with pytest.raises(ValueError, match=message):
            read(path)
    with pytest.raises(ValueError, match="recipe.yaml: --crop !!python/.* is no plain YAML"):
        train.parse([str(recipe), "--crop", f"!!python/object/apply:os.mkdir [{ran}]"])


def test_a_picture_that_is_a_program_is_not_run(rein_model, data, tmp_path, monkeypatch):
    """PostScript is a language, and Pillow hands it to Ghostscript."""
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail("Ghostscript was called"))
    content = io.BytesIO()
    Image.new("RGB", (72, 64)).save(content, "EPS")
    (data / "images" / "0.png").write_bytes(content.getvalue())
    with pytest.raises(ValueError, match="images/0.png cannot be read as an image"):
        load_folder(data).dataset[0]
    rein_model.save_pretrained(tmp_path / "adapter")
    rein_hf.build_image_processor().save_pretrained(tmp_path / "adapter")
    AcceleratorState._reset_state(reset_partial_state=True)
    arguments = ["--model", str(tmp_path / "adapter"), "--input", str(data / "images"), "--output_dir"]
    (parsed,) = HfArgumentParser(predict.PredictionArguments).parse_args_into_dataclasses(
        [*arguments, str(tmp_path / "segmented")]
    )
    assert predict.main(parsed) == 1
    written = {path.name for path in (tmp_path / "segmented").iterdir()}
    assert written == {"1_label.png", "1_color.png", "1_overlay.jpg"}


def test_a_picture_of_billions_of_pixels_is_not_unpacked(data):
    path = data / "images" / "0.png"
    content = bytearray(path.read_bytes())
    content[16:24] = (60_000).to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    path.write_bytes(content)
    with pytest.raises(ValueError, match="images/0.png cannot be read as an image: .*decompression bomb"):
        load_folder(data).dataset[0]


def test_the_demos_shell_script_takes_names_as_names(tmp_path, ran):
    """The name of its folder, all that it does not know, is a command here; python notes its arguments."""
    root = tmp_path / f"a b; $(mkdir {ran.name}) `mkdir {ran.name}` 'x\" *"
    (root / "recipes" / "demo").mkdir(parents=True)
    shutil.copy("recipes/demo/run.sh", root / "recipes" / "demo")
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin" / "python"
    python.write_text(f'#!/bin/sh\npwd >> "{tmp_path}/where"\nprintf "%s\\n" "$@" >> "{tmp_path}/arguments"\n')
    python.chmod(0o755)
    environment = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    script = str(root / "recipes" / "demo" / "run.sh")
    subprocess.run(["bash", script], check=True, cwd=tmp_path, env=environment, capture_output=True)
    assert set((tmp_path / "where").read_text().splitlines()) == {str(root)}
    arguments = (tmp_path / "arguments").read_text().splitlines()
    assert "outputs/demo/data/night" in arguments and not any(" " in argument for argument in arguments)
    assert not (root / ran.name).exists()


# Paths


@pytest.mark.parametrize("stem", ["../outside", "../../outside", "images/../../outside", "/outside"])
def test_an_index_does_not_lead_out_of_its_folder(data, tmp_path, stem):
    for folder in (tmp_path, data):
        for suffix in ("", "images", "labels"):
            (folder / suffix).mkdir(exist_ok=True)
            Image.new("L", (72, 64)).save(folder / suffix / "outside.png")
    for name in ("images", "labels"):
        (data / name / "outside.png").unlink()
    stem = stem if stem[0] != "/" else str(tmp_path / "outside")
    (data / "index.csv").write_text(f"stem,split\n{stem},train\n")
    with pytest.raises(FileNotFoundError, match=r"index.csv lists 1 missing image\(s\)"):
        load_folder(data)


def test_names_in_data_are_no_paths_of_results(rein_model, data, tmp_path):
    """Groups of index.csv and classes of classes.json, which end in results and pictures."""
    (data / "index.csv").write_text("stem,split,scene\n0,test,../../scene\n1,test,/scene\n")
    (data / "classes.json").write_text(json.dumps({"names": ["../../road", "/car", "sky"], "ignore_id": 255}))
    rein_model.base_model.model.config.id2label = {0: "../../road", 1: "/car", 2: "sky"}
    rein_model.peft_config["default"].base_config["id2label"] = {0: "../../road", 1: "/car", 2: "sky"}
    rein_model.save_pretrained(tmp_path / "adapter")
    rein_hf.build_image_processor().save_pretrained(tmp_path / "adapter")
    before = set(tmp_path.rglob("*"))
    AcceleratorState._reset_state(reset_partial_state=True)
    output_dir = tmp_path / "evaluation"
    arguments = ["--models", str(tmp_path / "adapter"), "--domains", str(data), "--output_dir", str(output_dir)]
    evaluate.main(*HfArgumentParser(evaluate.EvaluationArguments).parse_args_into_dataclasses(arguments))
    results = json.loads((output_dir / "results.json").read_text())
    assert "data/../../scene" in next(iter(results.values()))
    assert {path for path in tmp_path.rglob("*") if output_dir not in (path, *path.parents)} == before


def test_names_of_tensors_are_no_paths(rein_model, tmp_path):
    rein_model.save_pretrained(tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    save_file({**load_file(path), "../../outside": torch.zeros(1)}, path)
    before = set(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=r"not the adapter .* unknown \['../../outside'\]"):
        rein_hf.from_pretrained(tmp_path / "adapter")
    assert set(tmp_path.rglob("*")) == before
