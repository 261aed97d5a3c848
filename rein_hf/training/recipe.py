"""Recipes: YAML files of `RecipeArguments` and transformers' `TrainingArguments`; the rest is as in the paper."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict, get_type_hints

import torch
from huggingface_hub.dataclasses import validate_typed_dict
from huggingface_hub.errors import StrictDataclassFieldValidationError
from transformers import HfArgumentParser, TrainingArguments, get_scheduler
from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION

from ..files import parse_yaml, read_yaml, suggestion
from .optimizer_keys import OptimizerArguments, check_optimizer_keys
from .recipe_defaults import DEFAULTS, evaluation_defaults, short_run_defaults
from .recipe_keys import check_evaluation, check_needs, check_trainer_keys, data_workers
from .recipe_sections import check_sections, mend_numbers


@dataclasses.dataclass
class RecipeArguments(OptimizerArguments):
    backbone: str = dataclasses.field(metadata={"help": "Pretrained vision transformer: folder or Hub id."})
    train: list[str] = dataclasses.field(metadata={"help": "Source domains, described as in rein_hf.data."})
    weights: dict | None = dataclasses.field(
        default=None, metadata={"help": "Share of the samples by source; by default each image is seen alike."}
    )
    evaluate: list[str] = dataclasses.field(default_factory=list, metadata={"help": "Domains to evaluate on."})
    tuning: str = dataclasses.field(
        default="rein", metadata={"help": "rein, lora, adaptformer, vpt, soma, frozen or full."}
    )
    rein: dict | None = dataclasses.field(default=None, metadata={"help": "Arguments of ReinConfig."})
    lora: dict | None = dataclasses.field(default=None, metadata={"help": "Arguments of peft's LoraConfig."})
    adaptformer: dict | None = dataclasses.field(default=None, metadata={"help": "Arguments of AdaptFormerConfig."})
    vpt: dict | None = dataclasses.field(default=None, metadata={"help": "Arguments of VPTConfig."})
    soma: dict | None = dataclasses.field(default=None, metadata={"help": "Arguments of SomaConfig."})
    short_run: bool = dataclasses.field(
        default=False, metadata={"help": "Settings of Rein for hundreds of steps instead of the paper's."}
    )
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
    eval_pictures: int = dataclasses.field(default=4, metadata={"help": "Of validation images, at each evaluation."})


# Ways to tune the backbone. The head is trained alike in all of them.
TUNINGS = ("rein", "lora", "adaptformer", "vpt", "soma", "frozen", "full")

# Values that shape the weights beside the recipe's own arguments, and may not change when a run continues. All others
# may: how often it logs, saves and evaluates, where it runs and on how many processes.
FIXED_ON_RESUME = (
    "max_steps seed learning_rate weight_decay lr_scheduler_type lr_scheduler_kwargs warmup_steps max_grad_norm "
    "adam_beta1 adam_beta2 adam_epsilon load_best_model_at_end"
).split()

# Schedules whose learning rate depends on the scores.
FOLLOW_A_SCORE = ("reduce_lr_on_plateau", "greedy")

# Where scores decide (on the best step, or on the learning rate), all must be of the same data.
FIXED_WHERE_SCORES_DECIDE = ("evaluate", "eval_limit", "metric_for_best_model")

# Keys whose values are 1 at least.
POSITIVE_KEYS = ("crop", "patch_size", "num_queries", "max_steps", "eval_limit", "total_batch_size")


def read_recipe(path: str | Path, overrides: Sequence[str] = ()) -> tuple[RecipeArguments, TrainingArguments]:
    """Reads a recipe's file and the values that replace its own. Nothing but the file is read.

    Args:
        path: the YAML file.
        overrides: pairs of `--KEY` and a value in YAML; `--rein.r` is the key `r` of the dictionary `rein`.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no YAML; a key is unknown, missing, or would have no effect; a value has another type than
            its key's, or makes no sense there; the batch cannot be divided among the processes.
    """
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    file = read_yaml(path)
    try:
        given = _with_overrides(file, overrides)
        _check_types(file)
        _check_types(given)
        overridden = {key.removeprefix("--").partition(".")[0] for key in overrides[::2]}
        defaults = {**_defaults(TrainingArguments), **_defaults(RecipeArguments), **DEFAULTS, **data_workers(given)}
        defaults |= evaluation_defaults(given, given.get("max_steps", defaults["max_steps"]))
        check_trainer_keys(given, defaults)
        check_needs(file, given, overridden, defaults)
        values = _with_defaults(given, f"outputs/{Path(path).stem}")
        _check_values(values)
        values.update({**_split_batch(values, world_size), **data_workers(values)})
        precision = torch.backends.fp32_precision
        recipe, args = HfArgumentParser((RecipeArguments, TrainingArguments)).parse_dict(values)
        # for whoever compiles, transformers switches TF32 on; and it does that once in a process
        torch.backends.fp32_precision = {None: precision, True: "tf32", False: "ieee"}[args.tf32]
        _check_optimizer(args)
        if args.mixed_precision == "fp16" and args.device.type == "cpu":
            raise ValueError("fp16 is given, but has no effect on a CPU; use bf16.")
        if args.world_size != world_size:
            raise ValueError(
                f"{args.world_size} process(es) found each other; expected {world_size}, as were launched."
            )
    except (OSError, TypeError, ValueError, StrictDataclassFieldValidationError) as error:
        raise ValueError(f"{path}: {error}") from error
    return recipe, args


def config_fixed_on_resume(recipe: RecipeArguments, args: TrainingArguments) -> dict[str, Any]:
    """What may not change when a run continues, as JSON: the recipe, without its evaluation unless scores decide, and
    `FIXED_ON_RESUME`."""
    every = args.to_dict() | dataclasses.asdict(recipe)
    keys = [field.name for field in dataclasses.fields(recipe) if not field.name.startswith("eval")]
    keys += [*FIXED_ON_RESUME, *(FIXED_WHERE_SCORES_DECIDE if scores_decide(args) else ())]
    values = {key: every[key] for key in keys}
    values["mixed_precision"] = args.mixed_precision  # the recipe's or, where it says nothing, the launcher's
    return json.loads(json.dumps(values))


def scores_decide(args: TrainingArguments) -> bool:
    """Whether the weights that a run ends with depend on its evaluations."""
    best = args.load_best_model_at_end or args.save_strategy == "best"
    return best or args.lr_scheduler_type in FOLLOW_A_SCORE


def _defaults(arguments: type) -> dict[str, Any]:
    """The default of every field that has one."""
    values = {}
    for field in dataclasses.fields(arguments):
        if field.default is not dataclasses.MISSING:
            values[field.name] = field.default
        elif field.default_factory is not dataclasses.MISSING:
            values[field.name] = field.default_factory()
    return values


def _with_overrides(file: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """The values of the file, with those of the command line in their place."""
    if len(overrides) % 2 or not all(key.startswith("--") for key in overrides[::2]):
        raise ValueError(f"expected pairs of --KEY VALUE; found {list(overrides)}.")
    values = copy.deepcopy(file)
    for key, value in zip(overrides[::2], overrides[1::2], strict=True):
        *outer, inner = key.removeprefix("--").split(".")
        place = values
        for name in outer:
            place[name] = place.get(name) or {}
            place = place[name]
            if not isinstance(place, dict):
                raise ValueError(f"{key} is given, but {name} is {place!r}; expected keys with values there.")
        place[inner] = parse_yaml(value, f"{key} {value}")
    return values


def _check_types(values: dict[str, Any]) -> None:
    """Refuses unknown keys and values of another type than their keys'; mends what YAML reads otherwise than meant."""
    known = {**get_type_hints(RecipeArguments), **get_type_hints(TrainingArguments)}
    for key in values:
        if key not in known:
            raise ValueError(f"unknown key {key!r}{suggestion(key, known)}")
    mend_numbers(values, known)
    for key, value in values.items():
        if value is False and "bool" not in str(known[key]):
            values[key] = "no"  # which YAML reads as false
    validate_typed_dict(TypedDict("Recipe", known, total=False), values)


def _with_defaults(given: dict[str, Any], output_dir: str) -> dict[str, Any]:
    """A recipe's values, and the paper's where it gives none."""
    values = {**_defaults(RecipeArguments), **copy.deepcopy(DEFAULTS), "output_dir": output_dir, **given}
    values |= evaluation_defaults(given, values["max_steps"]) | short_run_defaults(values)
    kind, kwargs = values["lr_scheduler_type"], given.get("lr_scheduler_kwargs") or {}
    if not isinstance(kwargs, dict):
        raise ValueError(f"lr_scheduler_kwargs is {kwargs!r}; expected keys with values.")
    if kind == DEFAULTS["lr_scheduler_type"]:
        kwargs = DEFAULTS["lr_scheduler_kwargs"] | kwargs
    elif kind in FOLLOW_A_SCORE:
        kwargs = {"mode": "max"} | kwargs  # they follow the mIoU, of which transformers expects that less is better
    return {**values, "lr_scheduler_kwargs": kwargs}


def _check_values(values: dict[str, Any]) -> None:
    """Refuses values that make no sense, alone or together, before anything is loaded."""
    missing = sorted(key for key in ("backbone", "train") if not values.get(key))
    if missing:
        raise ValueError(f"{missing} missing.")
    for key in (*POSITIVE_KEYS, "eval_pictures"):
        if values[key] is not None and values[key] < (least := int(key in POSITIVE_KEYS)):
            raise ValueError(f"{key} is {values[key]}; expected {least} at least.")
    if values["tuning"] not in TUNINGS:
        raise ValueError(f"tuning is {values['tuning']!r}; expected one of {', '.join(TUNINGS)}.")
    dtype, tuning = values["backbone_dtype"], values["tuning"]
    if dtype != "float32" and (dtype != "bfloat16" or tuning in ("full", "soma")):
        raise ValueError(
            f"backbone_dtype is {dtype!r} with tuning {tuning!r}; expected float32, or bfloat16 for a backbone of "
            "which nothing trains."
        )
    weights = values["weights"]
    if weights is not None and not all(isinstance(weight, int | float) and weight > 0 for weight in weights.values()):
        raise ValueError(f"weights are {weights}; expected a positive number for each source.")
    check_sections(values)
    check_optimizer_keys(values)
    check_evaluation(values)


def _check_optimizer(args: TrainingArguments) -> None:
    """Refuses values that AdamW or the schedule of its learning rate would refuse once everything is loaded."""
    kind, kwargs = args.lr_scheduler_type, args.lr_scheduler_kwargs or {}
    parameters = inspect.signature(TYPE_TO_SCHEDULER_FUNCTION[kind]).parameters
    known = parameters.keys() - {"optimizer", "num_warmup_steps", "num_training_steps", "last_epoch"}
    for key in kwargs:
        if "kwargs" not in known and key not in known:
            name = f"lr_scheduler_kwargs.{key}"
            hint = suggestion(key, known, "lr_scheduler_kwargs.")
            raise ValueError(f"unknown key {name!r} of lr_scheduler_type {kind.value}{hint}")
    if kwargs.get("mode", "max") != "max":
        raise ValueError(f"lr_scheduler_kwargs.mode is {kwargs['mode']!r}; expected 'max': a greater mIoU is better.")
    betas = (args.adam_beta1, args.adam_beta2)
    optimizer = torch.optim.AdamW([torch.zeros(1)], args.learning_rate, betas, args.adam_epsilon, args.weight_decay)
    try:
        get_scheduler(kind, optimizer, args.get_warmup_steps(args.max_steps), args.max_steps, kwargs)
    except (TypeError, ValueError) as error:
        raise ValueError(f"lr_scheduler_type {kind.value} with lr_scheduler_kwargs {kwargs}: {error}") from error


def _split_batch(values: dict[str, Any], world_size: int) -> dict[str, Any]:
    """The batch of a step divided among the processes, and where they run."""
    total = values["total_batch_size"]
    per_device = values.get("per_device_train_batch_size", max(total // world_size, 1))
    if per_device < 1 or total % (per_device * world_size):
        raise ValueError(
            f"total_batch_size {total} is not a multiple of {per_device} images on each of {world_size} process(es)."
        )
    return {
        "per_device_train_batch_size": per_device,
        "gradient_accumulation_steps": total // (per_device * world_size),
        # processes that are not told where they run would not find each other
        "use_cpu": values.get("use_cpu", not torch.accelerator.is_available()),
        # every trainable parameter is used in every step, except in full fine-tuning
        "ddp_find_unused_parameters": values.get("ddp_find_unused_parameters", values["tuning"] == "full"),
    }
