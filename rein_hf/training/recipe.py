"""A recipe: a YAML file of `RecipeArguments` and transformers.TrainingArguments; what it leaves out is the paper's."""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict, get_type_hints

import torch
from huggingface_hub.dataclasses import validate_typed_dict
from huggingface_hub.errors import StrictDataclassFieldValidationError
from transformers import HfArgumentParser, TrainingArguments

from ..files import parse_yaml, read_yaml


@dataclasses.dataclass
class RecipeArguments:
    backbone: str = dataclasses.field(metadata={"help": "Pretrained DINOv2: folder or Hub id."})
    train: list[str] = dataclasses.field(metadata={"help": "Source domains, described as in rein_hf.data."})
    weights: dict | None = dataclasses.field(
        default=None, metadata={"help": "Share of the samples by source; by default each image is seen alike."}
    )
    evaluate: list[str] = dataclasses.field(default_factory=list, metadata={"help": "Domains to evaluate on."})
    tuning: str = dataclasses.field(default="rein", metadata={"help": "Of the backbone: rein, lora, frozen or full."})
    rein: dict | None = dataclasses.field(default=None, metadata={"help": "Arguments of ReinConfig."})
    lora: dict | None = dataclasses.field(default=None, metadata={"help": "Arguments of peft's LoraConfig."})
    head: dict | None = dataclasses.field(
        default=None, metadata={"help": "Arguments of Mask2FormerConfig; with model_type: upernet of UperNetConfig."}
    )
    num_queries: int = dataclasses.field(default=100, metadata={"help": "Object queries, and Rein's tokens."})
    crop: int = dataclasses.field(default=512, metadata={"help": "Side of the training crops in pixels."})
    patch_size: int = dataclasses.field(default=16, metadata={"help": "The backbone is resampled to it."})
    out_indices: list[int] | None = dataclasses.field(
        default=None, metadata={"help": "Blocks of the pyramid, from 1."}
    )
    backbone_dtype: str = dataclasses.field(
        default="float32", metadata={"help": "Of the frozen backbone: float32, or bfloat16 for half of its memory."}
    )
    total_batch_size: int = dataclasses.field(default=4, metadata={"help": "Images per step, over all processes."})
    eval_limit: int | None = dataclasses.field(default=None, metadata={"help": "Images per domain while training."})


# Ways to tune the backbone; the head trains alike in all.
TUNINGS = ("rein", "lora", "frozen", "full")

# The paper's recipe, and what transformers' Trainer needs to leave segmentation batches alone.
DEFAULTS = {
    "max_steps": 40_000,
    "learning_rate": 1e-4,
    "weight_decay": 0.05,
    "lr_scheduler_type": "polynomial",
    "lr_scheduler_kwargs": {"power": 0.9, "lr_end": 0.0},
    "max_grad_norm": 0.0,
    "train_sampling_strategy": "sequential",  # TrainingSamples is in random order already
    "remove_unused_columns": False,
    "save_total_limit": 2,
    "metric_for_best_model": "miou",
    "logging_nan_inf_filter": False,  # it would hide such a loss from the log, and waits for the device at every step
    "report_to": "none",
    "hub_strategy": "end",  # the stock Trainer pushes checkpoints with its arguments pickled
}

# What shapes the weights beside the recipe's own arguments, and may not change when a run goes on. Whatever is not
# here may: how often it logs, saves and evaluates, where it runs and on how many processes.
FIXED_ON_RESUME = (
    "max_steps seed learning_rate weight_decay lr_scheduler_type lr_scheduler_kwargs warmup_steps max_grad_norm "
    "adam_beta1 adam_beta2 adam_epsilon load_best_model_at_end"
).split()

# 1 at least, each of them.
POSITIVE_KEYS = ("crop", "patch_size", "num_queries", "max_steps", "eval_limit", "total_batch_size")


def read_recipe(path: str | Path, overrides: Sequence[str] = ()) -> tuple[RecipeArguments, TrainingArguments]:
    """A recipe file and what replaces its values.

    Args:
        path: the YAML file.
        overrides: pairs of `--KEY` and a value in YAML; `--rein.r` is the key `r` in the dictionary `rein`.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no YAML; a key is unknown or missing; a value is of another kind than its key's, or makes no
            sense there; the batch cannot be divided among the processes.
    """
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    values = {**DEFAULTS, "output_dir": f"outputs/{Path(path).stem}", **read_yaml(path)}
    try:
        _apply_overrides(values, overrides)
        _validate(values)
        values.update(_split_batch(values, world_size))
        recipe, args = HfArgumentParser((RecipeArguments, TrainingArguments)).parse_dict(values)
        if args.world_size != world_size:
            raise ValueError(
                f"{args.world_size} process(es) found each other; expected {world_size}, as were launched."
            )
    except (OSError, TypeError, ValueError, StrictDataclassFieldValidationError) as error:
        raise ValueError(f"{path}: {error}") from error
    return recipe, args


def config_fixed_on_resume(recipe: RecipeArguments, args: TrainingArguments) -> dict[str, Any]:
    """What may not change when a run goes on, as JSON: the recipe but for its evaluation, and `FIXED`."""
    values = {key: value for key, value in dataclasses.asdict(recipe).items() if not key.startswith("eval")}
    values["mixed_precision"] = args.mixed_precision  # of the recipe or, where it says nothing, of the launcher
    stock = args.to_dict()
    return json.loads(json.dumps(values | {key: stock[key] for key in FIXED_ON_RESUME}))


def _apply_overrides(values: dict[str, Any], overrides: Sequence[str]) -> None:
    """Puts the values of the command line in the place of the file's."""
    if len(overrides) % 2 or not all(key.startswith("--") for key in overrides[::2]):
        raise ValueError(f"expected pairs of --KEY VALUE; found {list(overrides)}.")
    for key, value in zip(overrides[::2], overrides[1::2], strict=True):
        *outer, inner = key.removeprefix("--").split(".")
        place = values
        for name in outer:
            place[name] = place.get(name) or {}
            place = place[name]
            if not isinstance(place, dict):
                raise ValueError(f"{key} is given, but {name} is {place!r}; expected keys with values there.")
        place[inner] = parse_yaml(value, f"{key} {value}")


def _validate(values: dict[str, Any]) -> None:
    """Refuses what is no recipe; mends what YAML reads otherwise than it is meant."""
    known = {**get_type_hints(RecipeArguments), **get_type_hints(TrainingArguments)}
    for key in values.keys() - known.keys():
        close = difflib.get_close_matches(str(key), known, n=1)
        raise ValueError(f"unknown key {key!r}{f', did you mean {close[0]!r}?' if close else '.'}")
    if values.get("hub_token"):
        raise ValueError("a hub_token does not belong in a recipe or on a command line; log in with `hf auth login`.")
    for key, value in values.items():
        kind = str(known[key])
        if "float" in kind and ("str" not in kind and isinstance(value, str) or type(value) is int):
            values[key] = float(value)  # YAML reads 1e-4 as text, and 1 as a whole number
        if value is False and "bool" not in kind:
            values[key] = "no"  # and no as false
    lacking = {"backbone", "train"} - values.keys()
    if lacking:
        raise ValueError(f"{sorted(lacking)} missing.")
    validate_typed_dict(TypedDict("Recipe", known, total=False), values)
    for key in POSITIVE_KEYS:
        if values.get(key) is not None and values[key] < 1:
            raise ValueError(f"{key} is {values[key]}; expected 1 at least.")
    if values.get("tuning", TUNINGS[0]) not in TUNINGS:
        raise ValueError(f"tuning is {values['tuning']!r}; expected one of {', '.join(TUNINGS)}.")


def _split_batch(values: dict[str, Any], world_size: int) -> dict[str, Any]:
    """The batch of a step divided among the processes, and where they run."""
    total = values.get("total_batch_size", RecipeArguments.total_batch_size)
    per_device = values.get("per_device_train_batch_size", max(total // world_size, 1))
    if per_device < 1 or total % (per_device * world_size):
        raise ValueError(
            f"total_batch_size {total} is not a multiple of {per_device} images on each of {world_size} process(es)."
        )
    return {
        "per_device_train_batch_size": per_device,
        "gradient_accumulation_steps": total // (per_device * world_size),
        # said nowhere, processes would not find each other
        "use_cpu": values.get("use_cpu", not torch.accelerator.is_available()),
        # all that trains is used in every step, but for what full fine-tuning trains along
        "ddp_find_unused_parameters": values.get("ddp_find_unused_parameters", values.get("tuning") == "full"),
    }
