"""Trains a recipe: a Mask2Former on a pretrained DINOv2, tuned with Rein (or frozen, or in full).

    python recipes/train.py recipes/configs/RECIPE.yaml [--max_steps 100] [--rein.r 8] [--KEY VALUE ...]

A recipe is a YAML file of rein_hf.training.RecipeArguments and transformers.TrainingArguments; what it leaves out is
as in the paper. Values on the command line replace the file's. The same command resumes an interrupted run, at any
moment and, on the same number of threads, to the same weights; `recipe.json` in its folder holds what may not change
between the two.
"""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from peft import LoraConfig
from transformers import TrainingArguments, set_seed
from transformers.modeling_outputs import BackboneOutput

from rein_hf import ReinConfig, add_adapter, add_rein, build_image_processor, build_segmenter
from rein_hf.backbone import backbone_of
from rein_hf.data import Augmentation, Collator, Domain, TrainingSamples, load_domain
from rein_hf.head import head_of
from rein_hf.training import (
    FINAL_WEIGHTS,
    RecipeArguments,
    SegmentationTrainer,
    checkpoints,
    config_fixed_on_resume,
    read_recipe,
)


# The paper's LoRA, 0.79M parameters in a DINOv2-L: the queries and values of every attention; with its keys
# where a checkpoint has the three in one.
LORA = {"r": 8, "lora_alpha": 8, "target_modules": r".*\.vit\..*\.(query|value|q_proj|v_proj|qkv)"}


def main(recipe: RecipeArguments, args: TrainingArguments) -> SegmentationTrainer | None:
    """Trains, and returns the trainer; None if the run has finished before."""
    set_seed(args.seed)
    sources, targets = [load_domain(spec) for spec in recipe.train], [load_domain(spec) for spec in recipe.evaluate]
    finished, checkpoint = find_resume_point(
        {**config_fixed_on_resume(recipe, args), "images": dataset_sizes(sources)}, args
    )
    if finished:
        print(f"{args.output_dir} holds the finished run of this recipe, {args.max_steps} steps; nothing to do.")
        return None
    model = build_model(recipe, id2label=dict(enumerate(common_classes(sources))))
    processor = build_image_processor(recipe.patch_size)
    trainer = SegmentationTrainer(
        model=model,
        args=args,
        train_dataset=TrainingSamples(
            [source.dataset for source in sources],
            length=args.max_steps * recipe.total_batch_size,
            augment=Augmentation(recipe.crop),
            seed=args.seed,
            weights=mixture_weights(sources, recipe.weights),
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
        cast_backbone(backbone_of(model), recipe)
    return apply_tuning(model, recipe)


def apply_tuning(model: torch.nn.Module, recipe: RecipeArguments) -> torch.nn.Module:
    """The segmenter with the recipe's tuning of its backbone, and the head trainable."""
    if recipe.tuning == "rein":
        return add_rein(model, ReinConfig(**{"num_tokens": recipe.num_queries, **(recipe.rein or {})}))
    if recipe.tuning == "lora":
        return add_adapter(model, LoraConfig(**{**LORA, **(recipe.lora or {})}))
    backbone_of(model).requires_grad_(recipe.tuning == "full")
    return model


def cast_backbone(encoder: torch.nn.Module, recipe: RecipeArguments) -> None:
    """Puts a frozen backbone into `backbone_dtype`; Rein, which is added later, and the head stay in float32."""
    if recipe.backbone_dtype != "bfloat16" or recipe.tuning == "full":
        raise ValueError(
            f"backbone_dtype is {recipe.backbone_dtype!r} with tuning {recipe.tuning!r}; expected float32, or, for a "
            "backbone that does not train, bfloat16."
        )
    encoder.to(torch.bfloat16)
    encoder.register_forward_hook(_cast_maps_to_float32)


def _cast_maps_to_float32(encoder: torch.nn.Module, args: tuple, output: BackboneOutput) -> BackboneOutput:
    """The maps in float32: the head's own type."""
    return BackboneOutput(feature_maps=tuple(features.float() for features in output.feature_maps))


def common_classes(sources: list[Domain]) -> tuple[str, ...]:
    """The classes that all sources share."""
    classes = {source.name: source.classes for source in sources}
    if len(set(classes.values())) > 1:
        raise ValueError(f"The sources have different classes: {classes}; expected one label set.")
    return sources[0].classes


def dataset_sizes(sources: list[Domain]) -> dict[str, int | None]:
    """How many images each source has; `None` of a stream."""
    return {source.name: None if source.is_streamed else len(source.dataset) for source in sources}


def mixture_weights(sources: list[Domain], weights: dict[str, float] | None) -> list[float] | None:
    """The weights in the order of the sources."""
    names = [source.name for source in sources]
    if weights is not None and sorted(weights) != sorted(names):
        raise ValueError(f"weights names {sorted(weights)}; expected the sources {sorted(names)}.")
    return None if weights is None else [float(weights[name]) for name in names]


def parse(argv: list[str]) -> tuple[RecipeArguments, TrainingArguments]:
    """The command line: a recipe file, and values that replace its own."""
    if not argv or argv[0].startswith("-"):
        raise SystemExit(__doc__)
    try:
        return read_recipe(argv[0], argv[1:])
    except (OSError, ValueError) as error:
        raise SystemExit(str(error)) from error


def find_resume_point(values: dict[str, Any], args: TrainingArguments) -> tuple[bool, str | None]:
    """What [`checkpoints.resume_point`] finds in `output_dir`; the main process finds it out for all."""
    found = [None]
    if args.process_index == 0:
        finished, checkpoint = checkpoints.resume_point(Path(args.output_dir), values, FINAL_WEIGHTS)
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
