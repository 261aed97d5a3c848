"""Trains a recipe: a Mask2Former on a pretrained DINOv2, tuned with Rein (or frozen, or in full).

    python recipes/train.py recipes/configs/RECIPE.yaml [--max_steps 100] [--rein.r 8] [--KEY VALUE ...]

A recipe is a YAML file of the arguments below and of transformers.TrainingArguments; what it leaves out is as in the
paper. Values on the command line replace the file's. The same command resumes an interrupted run.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import sys
from pathlib import Path
from typing import get_type_hints

import torch
import yaml
from peft import LoraConfig
from transformers import HfArgumentParser, TrainingArguments, set_seed
from transformers.trainer_utils import get_last_checkpoint

from rein_hf import ReinConfig, add_adapter, add_rein, build_image_processor, build_segmenter
from rein_hf.data import Domain, load_domain
from rein_hf.samples import Collator, TrainingSamples
from rein_hf.trainer import SegmentationTrainer
from rein_hf.transforms import Augmentation


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
    head: dict | None = dataclasses.field(default=None, metadata={"help": "Arguments of Mask2FormerConfig."})
    num_queries: int = dataclasses.field(default=100, metadata={"help": "Object queries, and Rein's tokens."})
    crop: int = dataclasses.field(default=512, metadata={"help": "Side of the training crops in pixels."})
    patch_size: int = dataclasses.field(default=16, metadata={"help": "The backbone is resampled to it."})
    out_indices: list[int] | None = dataclasses.field(
        default=None, metadata={"help": "Blocks of the pyramid, from 1."}
    )
    total_batch_size: int = dataclasses.field(default=4, metadata={"help": "Images per step, over all processes."})
    eval_limit: int | None = dataclasses.field(default=None, metadata={"help": "Images per domain while training."})


# Ways to tune the backbone; the head trains alike in all.
TUNINGS = ("rein", "lora", "frozen", "full")

# The paper's LoRA, 0.79M parameters in a DINOv2-L: the queries and values of every attention.
LORA = {"r": 8, "lora_alpha": 8, "target_modules": r".*\.encoder\.vit\..*\.(query|value|q_proj|v_proj)"}

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
    "report_to": "none",
}


def main(recipe: RecipeArguments, args: TrainingArguments) -> SegmentationTrainer:
    set_seed(args.seed)
    sources, targets = [load_domain(spec) for spec in recipe.train], [load_domain(spec) for spec in recipe.evaluate]
    model = build_model(recipe, id2label=dict(enumerate(one_label_set(sources))))
    processor = build_image_processor(recipe.patch_size)
    trainer = SegmentationTrainer(
        model=model,
        args=args,
        train_dataset=TrainingSamples(
            [source.dataset for source in sources],
            length=args.max_steps * recipe.total_batch_size,
            augment=Augmentation(recipe.crop),
            seed=args.seed,
            weights=shares(sources, recipe.weights),
        ),
        data_collator=Collator(processor, recipe.crop),
        processing_class=processor,
        domains=targets,
        eval_limit=recipe.eval_limit,
    )
    trainer.train(resume_from_checkpoint=last_checkpoint(args.output_dir))
    trainer.save_model()
    trainer.save_state()
    return trainer


def build_model(recipe: RecipeArguments, id2label: dict[int, str]) -> torch.nn.Module:
    """The segmenter with whatever the recipe trains requiring gradients."""
    if recipe.tuning not in TUNINGS:
        raise ValueError(f"tuning is {recipe.tuning!r}; expected one of {', '.join(TUNINGS)}.")
    model = build_segmenter(
        recipe.backbone,
        id2label,
        image_size=recipe.crop,
        patch_size=recipe.patch_size,
        out_indices=recipe.out_indices,
        num_queries=recipe.num_queries,
        head=recipe.head,
    )
    if recipe.tuning == "rein":
        return add_rein(model, ReinConfig(**{"num_tokens": recipe.num_queries, **(recipe.rein or {})}))
    if recipe.tuning == "lora":
        return add_adapter(model, LoraConfig(**{**LORA, **(recipe.lora or {})}))
    model.model.pixel_level_module.encoder.requires_grad_(recipe.tuning == "full")
    return model


def one_label_set(sources: list[Domain]) -> tuple[str, ...]:
    """The classes that all sources share."""
    classes = {source.name: source.classes for source in sources}
    if len(set(classes.values())) > 1:
        raise ValueError(f"The sources have different classes: {classes}; expected one label set.")
    return sources[0].classes


def shares(sources: list[Domain], weights: dict[str, float] | None) -> list[float] | None:
    """The weights in the order of the sources."""
    names = [source.name for source in sources]
    if weights is not None and sorted(weights) != sorted(names):
        raise ValueError(f"weights names {sorted(weights)}; expected the sources {sorted(names)}.")
    return None if weights is None else [float(weights[name]) for name in names]


def parse(argv: list[str]) -> tuple[RecipeArguments, TrainingArguments]:
    """A recipe file and the values on the command line that replace its own; unknown keys are refused."""
    if not argv or argv[0].startswith("-"):
        raise SystemExit(__doc__)
    path, overrides = Path(argv[0]), argv[1:]
    values = {**DEFAULTS, "output_dir": f"outputs/{path.stem}", **(yaml.safe_load(path.read_text()) or {})}
    if len(overrides) % 2 or not all(key.startswith("--") for key in overrides[::2]):
        raise SystemExit(f"Expected pairs of --KEY VALUE after {path}; found {overrides}.")
    for key, value in zip(overrides[::2], overrides[1::2], strict=True):
        *outer, inner = key.removeprefix("--").split(".")
        place = values
        for name in outer:
            place[name] = place.get(name) or {}
            place = place[name]
        place[inner] = yaml.safe_load(value)
    known = {**get_type_hints(RecipeArguments), **get_type_hints(TrainingArguments)}
    for key in values.keys() - known.keys():
        close = difflib.get_close_matches(key, known, n=1)
        raise SystemExit(f"{path}: unknown key {key!r}{f', did you mean {close[0]!r}?' if close else '.'}")
    if values.get("hub_token"):
        raise SystemExit(
            f"{path}: hub_token would be pickled into training_args.bin and uploaded; log in with `hf auth login`."
        )
    for key, value in values.items():
        kind = str(known[key])
        if isinstance(value, str) and "float" in kind and "str" not in kind:
            values[key] = float(value)  # YAML reads 1e-4 as text
        if value is False and "bool" not in kind:
            values[key] = "no"  # and no as false
    lacking = {"backbone", "train"} - values.keys()
    if lacking:
        raise SystemExit(f"{path}: {sorted(lacking)} missing.")
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    total = values.get("total_batch_size", RecipeArguments.total_batch_size)
    per_device = values.setdefault("per_device_train_batch_size", max(total // world_size, 1))
    steps, rest = divmod(total, per_device * world_size)
    if rest or not steps:
        raise SystemExit(
            f"{path}: total_batch_size {total} is not a multiple of {per_device} images on each of {world_size} "
            "process(es)."
        )
    values["gradient_accumulation_steps"] = steps
    recipe, args = HfArgumentParser((RecipeArguments, TrainingArguments)).parse_dict(values)
    return recipe, args


def last_checkpoint(output_dir: str) -> str | None:
    return get_last_checkpoint(output_dir) if Path(output_dir).is_dir() else None


if __name__ == "__main__":
    main(*parse(sys.argv[1:]))
