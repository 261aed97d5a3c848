"""`rein-hf train --help` and `--list`: the keys of a recipe with their values, and the recipes there are."""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peft import PeftConfig
from transformers import TrainingArguments

from ..adaptformer import AdaptFormerConfig
from ..files import read_yaml
from ..training import LORA, RecipeArguments
from ..training.recipe import DEFAULTS
from ..training.recipe_keys import USABLE
from ..training.recipe_sections import REFUSED_IN_ADAPTER, REFUSED_IN_REIN
from ..tuner import BackboneTunerConfig, ReinConfig
from ..vpt import VPTConfig
from .grammar import CommandParser, shown
from .shipped import shipped_files
from .train_keys import ALIASES


# Which heading a key stands under, by its beginning or its name; the first that fits.
GROUPS = {
    "data": "train evaluate weights",
    "model": "backbone backbone_dtype head num_queries crop patch_size out_indices",
    "tuning": "tuning short_run rein lora adaptformer vpt soma",
    "length and batch": "max_steps total_batch_size per_device_train_batch_size seed full_determinism output_dir",
    "optimizer": "learning_rate lr_scheduler_ warmup_steps weight_decay adam_ max_grad_norm backbone_lr_factor "
    "adapter_lr_factor head_lr_factor adapter_weight_decay_factor ema_",
    "evaluation and checkpoints": "eval_ metric_for_best_model load_best_model_at_end save_",
    "what is reported": "log disable_tqdm report_to run_name project trackio_ skip_memory_metrics",
    "precision, memory and speed": "bf16 fp16 tf32 activation_ gradient_ torch_ use_cpu dataloader_",
    "several processes": "ddp_ accelerator_config",
    "Hub": "push_to_hub hub_",
}
# Keys of transformers that mean more, or have another default, in a recipe.
HELP = {
    "max_steps": ("Length of a run.", 40_000),
    "output_dir": ("Folder of the run.", "outputs/RECIPE"),
    "per_device_train_batch_size": ("Images that a process takes at once.", "total_batch_size / processes"),
    "backbone_lr_factor": ("Learning rate of a backbone that trains in full, in parts of the recipe's.", 0.1),
    "adapter_lr_factor": ("Learning rate of the adapter, in parts of the recipe's.", 1.0),
    "head_lr_factor": ("Learning rate of the head, in parts of the recipe's.", 1.0),
    "adapter_weight_decay_factor": ("Weight decay of the adapter, in parts of the recipe's.", 1.0),
    "ema_start": ("Step after which the average starts, below 1 as a share of max_steps.", 0),
    "use_cpu": ("Train on the CPU.", "where there is no GPU"),
    "eval_strategy": ("When to evaluate: no, steps or epoch.", "steps where evaluate names domains"),
    "eval_steps": ("Steps between evaluations.", "max_steps / 10, 200 at least"),
    "eval_limit": ("Images per domain while training.", "50 where eval_strategy is not given"),
    "metric_for_best_model": ("NAME_miou or miou.", "validation: of a split of the source, else none"),
    "report_to": ("tensorboard, wandb, trackio or none.", "tensorboard where it is installed"),
    "lr_scheduler_kwargs": ("Arguments of the schedule.", "power: 0.9, lr_end: 0.0"),
    "ddp_find_unused_parameters": ("As of DistributedDataParallel.", "with tuning full alone"),
}
LAUNCH = "accelerate launch --config_file FILE -m rein_hf.commands.train RECIPE"


def group_of(name: str) -> str:
    """The heading that a key stands under.

    Raises:
        StopIteration: none; a test asks for all keys.
    """
    fits = (title for title, names in GROUPS.items() for one in names.split() if name == one)
    begins = (title for title, names in GROUPS.items() for one in names.split() if name.startswith(one))
    return next(fits, None) or next(begins)


def help_text(description: str, path: Path | None) -> str:
    """All keys of a recipe, grouped, with the values of the file `path` or, where it has none, the defaults."""
    defaults = {key: value for key, value in DEFAULTS.items() if key not in HELP}
    values = {**defaults, **(read_yaml(path) if path else {})}
    parser = RecipeParser(description, values)
    parser.epilog = "\n".join(
        [
            *section_lines("rein", ReinConfig, values.get("rein") or {}, REFUSED_IN_REIN),
            "lora.KEY: those of peft's LoraConfig; " + ", ".join(f"{key} {value}" for key, value in LORA.items()),
            *section_lines("adaptformer", AdaptFormerConfig, values.get("adaptformer") or {}, REFUSED_IN_REIN),
            *section_lines("vpt", VPTConfig, values.get("vpt") or {}, REFUSED_IN_REIN),
            "soma.KEY: those of SomaConfig; r 16, first_block after a third of the blocks (9 of 24), bias lora_only",
            "head.KEY: those of transformers' Mask2FormerConfig; of UperNetConfig with --head.model_type upernet",
            "",
            "--data DIR: a folder of your own, images/, labels/ and classes.json, in the place of --train, --evaluate "
            "and --crop",
            "also: " + ", ".join(f"--{name} = --{key}" for name, key in ALIASES.items()),
        ]
    )
    return parser.format_help()


class RecipeParser(CommandParser):
    """The keys of a recipe, for `--help`. Of transformers' keys those that a recipe may have, each with the first
    sentence of its help."""

    def __init__(self, description: str, values: Mapping[str, Any]) -> None:
        self.values = values
        kinds = (RecipeArguments, TrainingArguments)
        super().__init__("train", kinds, description, group_of, GROUPS, "rein-hf train RECIPE [--KEY VALUE ...]")

    def _parse_dataclass_field(self, parser, field: dataclasses.Field) -> None:
        of_recipe = field.name in RecipeArguments.__dataclass_fields__
        if field.name not in USABLE and not of_recipe:
            return
        super()._parse_dataclass_field(parser, field)
        if f"--no_{field.name}" in self._option_string_actions:  # no key of recipes
            self._option_string_actions[f"--no_{field.name}"].help = argparse.SUPPRESS
        action = self._option_string_actions[f"--{field.name}"]
        action.help = re.split(r"(?<=[.])\s", " ".join((action.help or "").split()))[0]
        if field.name in HELP:
            action.help, action.default = HELP[field.name]
        if field.name in self.values:
            action.required, action.default = False, self.values[field.name]


def section_lines(name: str, kind: type, values: Mapping[str, Any], refused: Mapping[str, str]) -> list[str]:
    """A line for each key of a dictionary in a recipe."""
    of_peft = {field.name for field in dataclasses.fields(PeftConfig)}
    lines = [f"{name}.KEY:"]
    # what the method has for itself before what it shares with others
    shared = {field.name for field in dataclasses.fields(BackboneTunerConfig)}
    for field in sorted(dataclasses.fields(kind), key=lambda field: field.name in shared):
        if field.name in of_peft or field.name in refused or field.name in REFUSED_IN_ADAPTER:
            continue
        value = values.get(field.name, field.default)
        lines.append(f"  --{name}.{field.name:<20} {field.metadata.get('help', '')} (default: {shown(value)})")
    return lines


def list_text() -> str:
    """The recipes and the launchers that come with the package, each with its first line."""
    lines = ["Recipes: rein-hf train RECIPE"]
    lines += [f"  {name}\n      {_title(path)}" for name, path in shipped_files("configs").items()]
    lines += ["", f"Launchers: {LAUNCH}"]
    lines += [f"  {path}\n      {_title(path)}" for path in shipped_files("accelerate").values()]
    return "\n".join(lines)


def _title(path: Path) -> str:
    return path.read_text(encoding="utf-8").splitlines()[0].lstrip("# ")
