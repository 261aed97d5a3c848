"""recipes/accelerate: how accelerate reads each file; one of them is launched."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DeepSpeedPlugin, FullyShardedDataParallelPlugin, patch_environment
from accelerate.utils.launch import (
    prepare_deepspeed_cmd_env,
    prepare_multi_gpu_env,
    prepare_simple_launcher_cmd_env,
)

from rein_hf.commands import train
from rein_hf.training import checkpoints
from tests.support.runs import run_recipe


FILES = {path.stem: path for path in Path("recipes/accelerate").glob("*.yaml")}


def launched(name: str):
    """The arguments that `accelerate launch --config_file` makes of a file."""
    args = launch_command_parser().parse_args(["--config_file", str(FILES[name]), "recipes/train.py", "RECIPE"])
    return _validate_launch_command(args)[0]


def test_there_is_a_file_for_each_way():
    assert set(FILES) == {"cpu", "gpu", "gpus", "nodes", "fsdp2", "fsdp2_dinov3", "deepspeed_zero2"}


@pytest.mark.parametrize("name", ["cpu", "gpus"])
def test_processes_are_started_by_torchrun(name):
    args = launched(name)
    prepare_multi_gpu_env(args)
    assert args.multi_gpu and args.nproc_per_node == "2" and not args.use_fsdp and not args.use_deepspeed


def test_one_gpu_has_bfloat16():
    args = launched("gpu")
    _, environment = prepare_simple_launcher_cmd_env(args)
    assert environment["ACCELERATE_MIXED_PRECISION"] == "bf16" and args.num_processes == 1 and not args.multi_gpu


@pytest.mark.parametrize(("name", "block"), [("fsdp2", "Dinov2Layer"), ("fsdp2_dinov3", "DINOv3ViTLayer")])
def test_fsdp2_saves_whole_models(name, block):
    args = launched(name)
    environment = prepare_multi_gpu_env(args)
    assert args.use_fsdp and environment["FSDP_VERSION"] == "2"
    ours = {key: value for key, value in environment.items() if key.startswith(("FSDP_", "ACCELERATE_"))}
    with patch_environment(**ours):
        plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2 and plugin.reshard_after_forward is True
    assert "FULL_STATE_DICT" in str(plugin.state_dict_type)
    assert plugin.transformer_cls_names_to_wrap == [block, "TransformerDecoderLayer"]


def test_deepspeed_is_what_it_says():
    """Only accelerate's own configuration of DeepSpeed, which is not installed."""
    args = launched("deepspeed_zero2")
    args.deepspeed_fields_from_accelerate_config = ""
    _, environment = prepare_deepspeed_cmd_env(args)
    assert args.use_deepspeed
    ours = {key: value for key, value in environment.items() if key.startswith("ACCELERATE_")}
    with patch_environment(**ours):
        config = DeepSpeedPlugin().deepspeed_config
    assert config["zero_optimization"]["stage"] == 2
    assert config["zero_optimization"]["offload_optimizer"]["device"] == "none"


def test_processes_that_do_not_find_each_other_are_refused(recipe, monkeypatch):
    """They would each train on their own, with a part of the batch."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=r"1 process\(es\) found each other; expected 2"):
        train.parse([str(recipe), "--use_cpu", "false"])


def test_a_number_of_processes_that_does_not_divide_the_batch_is_refused(recipe, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ValueError, match="total_batch_size 2 is not a multiple of 1 images on each of 3 process"):
        train.parse([str(recipe)])


def test_sharding_that_would_not_happen_is_refused(recipe, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    with pytest.raises(ValueError, match="accelerate does not shard on cpu: FSDP was asked for"):
        run_recipe(recipe)


def test_the_precision_of_the_launcher_is_the_recipes_where_it_says_none(recipe, monkeypatch, tmp_path):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    run_recipe(recipe, "--max_steps", "1")
    assert checkpoints.read_json(tmp_path / "out" / "recipe.json")["mixed_precision"] == "bf16"


@pytest.mark.slow
def test_two_processes_on_a_cpu(recipe, tmp_path):
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(FILES["cpu"])]
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    subprocess.run(
        [*command, "-m", "rein_hf.commands.train", str(recipe)], env=environment, check=True, capture_output=True
    )
    saved = tmp_path / "out" / "checkpoint-4"
    assert {path.name for path in saved.glob("rng_state*")} == {"rng_state_0.pth", "rng_state_1.pth"}
    assert checkpoints.verify(saved) is None and (tmp_path / "out" / "adapter_model.safetensors").is_file()
