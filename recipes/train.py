"""Trains a recipe: a Mask2Former on a pretrained DINOv2, tuned with Rein (or frozen, or in full).

    python recipes/train.py recipes/configs/RECIPE.yaml [--max_steps 100] [--rein.r 8] [--KEY VALUE ...]

A recipe is a YAML file of the arguments below and of transformers.TrainingArguments; what it leaves out is as in the
paper. Values on the command line replace the file's. The same command resumes an interrupted run, at any moment and to
the same weights; `recipe.json` in its folder holds what may not change between the two.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any, TypedDict, get_type_hints

import torch
from accelerate.utils import broadcast_object_list
from huggingface_hub.dataclasses import validate_typed_dict
from huggingface_hub.errors import StrictDataclassFieldValidationError
from peft import LoraConfig
from transformers import HfArgumentParser, TrainingArguments, set_seed
from transformers.modeling_outputs import BackboneOutput

from rein_hf import ReinConfig, add_adapter, add_rein, build_image_processor, build_segmenter, checkpoints
from rein_hf.backbone import backbone_of
from rein_hf.data import Domain, load_domain
from rein_hf.heads import head_of
from rein_hf.hub_data import Stream
from rein_hf.samples import Collator, TrainingSamples
from rein_hf.trainer import WEIGHTS, SegmentationTrainer
from rein_hf.transforms import Augmentation
from rein_hf.yaml_file import plain, read_yaml


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

# The paper's LoRA, 0.79M parameters in a DINOv2-L: the queries and values of every attention; with its keys
# where a checkpoint has the three in one.
LORA = {"r": 8, "lora_alpha": 8, "target_modules": r".*\.vit\..*\.(query|value|q_proj|v_proj|qkv)"}

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
FIXED = (
    "max_steps seed learning_rate weight_decay lr_scheduler_type lr_scheduler_kwargs warmup_steps max_grad_norm "
    "adam_beta1 adam_beta2 adam_epsilon load_best_model_at_end"
).split()


def main(recipe: RecipeArguments, args: TrainingArguments) -> SegmentationTrainer | None:
    """Trains, and returns the trainer; None if the run has finished before."""
    set_seed(args.seed)
    sources, targets = [load_domain(spec) for spec in recipe.train], [load_domain(spec) for spec in recipe.evaluate]
    finished, checkpoint = begin(fixed_values(recipe, args, sources), args)
    if finished:
        print(f"{args.output_dir} holds the finished run of this recipe, {args.max_steps} steps; nothing to do.")
        return None
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
        data_collator=Collator(processor, recipe.crop, masks=head_of(model.config.model_type).classifies_masks),
        processing_class=processor,
        domains=targets,
        eval_limit=recipe.eval_limit,
    )
    if os.environ.get("ACCELERATE_USE_FSDP") == "true" and trainer.accelerator.distributed_type != "FSDP":
        raise SystemExit(f"accelerate does not shard on {args.device}: FSDP was asked for, this would be plain DDP.")
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_state()
    trainer.save_model()
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
    if recipe.backbone_dtype != "float32":
        narrow(backbone_of(model), recipe)
    return tune(model, recipe)


def tune(model: torch.nn.Module, recipe: RecipeArguments) -> torch.nn.Module:
    """The segmenter with the recipe's tuning of its backbone, and the head trainable."""
    if recipe.tuning == "rein":
        return add_rein(model, ReinConfig(**{"num_tokens": recipe.num_queries, **(recipe.rein or {})}))
    if recipe.tuning == "lora":
        return add_adapter(model, LoraConfig(**{**LORA, **(recipe.lora or {})}))
    backbone_of(model).requires_grad_(recipe.tuning == "full")
    return model


def narrow(encoder: torch.nn.Module, recipe: RecipeArguments) -> None:
    """Puts a frozen backbone into `backbone_dtype`; Rein, which is added later, and the head stay in float32."""
    if recipe.backbone_dtype != "bfloat16" or recipe.tuning == "full":
        raise ValueError(
            f"backbone_dtype is {recipe.backbone_dtype!r} with tuning {recipe.tuning!r}; expected float32, or, for a "
            "backbone that does not train, bfloat16."
        )
    encoder.to(torch.bfloat16)
    encoder.register_forward_hook(_as_the_head)


def _as_the_head(encoder: torch.nn.Module, args: tuple, output: BackboneOutput) -> BackboneOutput:
    """The maps in float32: the head's own type."""
    return BackboneOutput(feature_maps=tuple(features.float() for features in output.feature_maps))


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
    try:
        return read_arguments(path, overrides)
    except (OSError, TypeError, ValueError, StrictDataclassFieldValidationError) as error:
        raise SystemExit(str(error) if str(path) in str(error) else f"{path}: {error}") from error


def read_arguments(path: Path, overrides: list[str]) -> tuple[RecipeArguments, TrainingArguments]:
    values = {**DEFAULTS, "output_dir": f"outputs/{path.stem}", **read_yaml(path)}
    if len(overrides) % 2 or not all(key.startswith("--") for key in overrides[::2]):
        raise SystemExit(f"Expected pairs of --KEY VALUE after {path}; found {overrides}.")
    for key, value in zip(overrides[::2], overrides[1::2], strict=True):
        *outer, inner = key.removeprefix("--").split(".")
        place = values
        for name in outer:
            place[name] = place.get(name) or {}
            place = place[name]
            if not isinstance(place, dict):
                raise SystemExit(f"{path}: {key} is given, but {name} is {place!r}; expected keys with values there.")
        place[inner] = plain(value, f"{path}: {key} {value}")
    known = {**get_type_hints(RecipeArguments), **get_type_hints(TrainingArguments)}
    for key in values.keys() - known.keys():
        close = difflib.get_close_matches(str(key), known, n=1)
        raise SystemExit(f"{path}: unknown key {key!r}{f', did you mean {close[0]!r}?' if close else '.'}")
    if values.get("hub_token"):
        raise SystemExit(
            f"{path}: a hub_token does not belong in a recipe or on a command line; log in with `hf auth login`."
        )
    for key, value in values.items():
        kind = str(known[key])
        if "float" in kind and ("str" not in kind and isinstance(value, str) or type(value) is int):
            values[key] = float(value)  # YAML reads 1e-4 as text, and 1 as a whole number
        if value is False and "bool" not in kind:
            values[key] = "no"  # and no as false
    lacking = {"backbone", "train"} - values.keys()
    if lacking:
        raise SystemExit(f"{path}: {sorted(lacking)} missing.")
    validate_typed_dict(TypedDict("Recipe", known, total=False), values)
    for key in ("crop", "patch_size", "num_queries", "max_steps", "eval_limit"):
        if values.get(key) is not None and values[key] < 1:
            raise SystemExit(f"{path}: {key} is {values[key]}; expected 1 at least.")
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    total = values.get("total_batch_size", RecipeArguments.total_batch_size)
    per_device = values.setdefault("per_device_train_batch_size", max(total // world_size, 1))
    if total < 1 or per_device < 1 or total % (per_device * world_size):
        raise SystemExit(
            f"{path}: total_batch_size {total} is not a multiple of {per_device} images on each of {world_size} "
            "process(es)."
        )
    values["gradient_accumulation_steps"] = total // (per_device * world_size)
    values.setdefault(
        "use_cpu", not torch.accelerator.is_available()
    )  # said nowhere, processes would not find another
    # all that trains is used in every step, but for what full fine-tuning trains along
    values.setdefault("ddp_find_unused_parameters", values.get("tuning") == "full")
    recipe, args = HfArgumentParser((RecipeArguments, TrainingArguments)).parse_dict(values)
    if args.world_size != world_size:
        raise SystemExit(f"{args.world_size} process(es) found each other; expected {world_size}, as were launched.")
    return recipe, args


def fixed_values(recipe: RecipeArguments, args: TrainingArguments, sources: list[Domain]) -> dict[str, Any]:
    """What may not change when a run goes on, as JSON: the recipe but for its evaluation, the number of images of each
    source, and `FIXED`."""
    values = {key: value for key, value in dataclasses.asdict(recipe).items() if not key.startswith("eval")}
    values["images"] = {s.name: None if isinstance(s.dataset, Stream) else len(s.dataset) for s in sources}
    values["mixed_precision"] = args.mixed_precision  # of the recipe or, where it says nothing, of the launcher
    stock = args.to_dict()
    return json.loads(json.dumps(values | {key: stock[key] for key in FIXED}))


def begin(values: dict[str, Any], args: TrainingArguments) -> tuple[bool, str | None]:
    """What [`checkpoints.begin`] finds in `output_dir`; the main process finds it out for all."""
    found = [None]
    if args.process_index == 0:
        finished, checkpoint = checkpoints.begin(Path(args.output_dir), values, WEIGHTS)
        found = [(finished, checkpoint and str(checkpoint))]
        processes = len(list(checkpoint.glob("rng_state*.pth"))) if checkpoint else args.world_size
        if processes != args.world_size:
            warnings.warn(
                f"{checkpoint} was saved by {processes} process(es); {args.world_size} go on, at the same sample, but "
                "with other random points of the loss: the weights will not be equal bit by bit.",
                stacklevel=2,
            )
    return broadcast_object_list(found)[0]


if __name__ == "__main__":
    main(*parse(sys.argv[1:]))
