"""Trains a recipe: a segmentation head on a pretrained vision transformer, tuned with Rein (or LoRA, SoMA, ...).

    rein-hf train RECIPE [--max_steps 100] [--rein.r 8] [--KEY VALUE ...]
    accelerate launch -m rein_hf.commands.train RECIPE ...    # on several GPUs

RECIPE is a file, or the name of one that comes with the package: `rein-hf train --list`. It is YAML of
rein_hf.training.RecipeArguments and transformers.TrainingArguments; what it leaves out is as in the paper. Values on
the command line replace the file's. The same command continues an interrupted run, whenever it was interrupted, and
with the same number of threads to bit-equal weights. `recipe.json` in the run's folder holds what may not change in
between.
"""

from __future__ import annotations

import os
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from transformers import TrainingArguments, set_seed
from transformers.modeling_outputs import BackboneOutput

from .. import ReinConfig, add_adapter, add_rein, build_image_processor, build_segmenter
from ..backbone import backbone_of
from ..data import Augmentation, Collator, Domain, TrainingSamples, label_warnings, load_domains
from ..head import head_of
from ..labels import palette_of
from ..training import (
    FINAL_WEIGHTS,
    RecipeArguments,
    SegmentationTrainer,
    check_trackers,
    checkpoints,
    config_fixed_on_resume,
    draw_curves,
    explain_lost_connection,
    read_recipe,
    scores_decide,
    tuning_config,
)
from . import train_help
from .cli import run
from .shipped import find_shipped
from .train_keys import to_overrides
from .train_report import best_metric, closing_lines, opening_lines


def main(recipe: RecipeArguments, args: TrainingArguments) -> SegmentationTrainer | None:
    """Trains, and returns the trainer; None if an earlier run of the recipe has finished."""
    set_seed(args.seed)
    if len(Path(recipe.backbone).parts) > 2 and not Path(recipe.backbone).is_dir():
        raise ValueError(
            f"backbone is {recipe.backbone}: no such folder here, and no Hub id. Give another --backbone or, where it "
            "is a folder of the repository, run this in a clone."
        )
    check_trackers(args)
    sources, targets = load_domains(recipe.train, "train"), load_domains(recipe.evaluate, "evaluate")
    args.metric_for_best_model = best_metric(recipe, args, sources, targets)
    check_domains(sources, targets, args)
    finished, checkpoint = find_resume_point(recipe, args, sources, targets)
    if finished:
        print(f"{args.output_dir} holds the finished run of this recipe, {args.max_steps} steps; nothing to do.")
        return None
    say(args, opening_lines(recipe, args, sources, targets))
    trainer = build_trainer(recipe, args, sources, targets)
    say(args, [f"Worker processes that read samples (dataloader_num_workers): {args.dataloader_num_workers}"])
    begun = time.monotonic()
    with explain_lost_connection(args.process_index, args.world_size):
        trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_state()
    trainer.save_model()
    draw_curves(trainer)
    resumed_at = int(checkpoint.rpartition("-")[2]) if checkpoint else 0
    say(args, closing_lines(trainer, recipe, time.monotonic() - begun, resumed_at))
    return trainer


def say(args: TrainingArguments, lines: list[str]) -> None:
    """Lines for people, once for all processes."""
    if args.process_index == 0:
        print("\n".join(lines))


def build_trainer(
    recipe: RecipeArguments, args: TrainingArguments, sources: list[Domain], targets: list[Domain]
) -> SegmentationTrainer:
    """The recipe's model, its training samples, and what trains the one on the other."""
    classes, colours = common_classes(sources), sources[0].palette
    model = build_model(
        recipe, id2label=dict(enumerate(classes)), palette=None if colours == palette_of(classes) else colours
    )
    if any(source.is_streamed for source in sources):
        args.dataloader_num_workers = min(args.dataloader_num_workers, 1)
    masks = head_of(model.config.model_type).classifies_masks
    processor = build_image_processor(recipe.patch_size, recipe.backbone)
    samples = TrainingSamples(
        [source.dataset for source in sources],
        length=args.max_steps * recipe.total_batch_size,
        augment=Augmentation(recipe.crop),
        seed=args.seed,
        weights=mixture_weights(sources, recipe.weights),
    )
    trainer = SegmentationTrainer(
        model=model,
        args=args,
        train_dataset=samples,
        data_collator=Collator(processor, recipe.crop, masks=masks, defer_masks=masks),
        processing_class=processor,
        domains=targets,
        eval_limit=recipe.eval_limit,
        optimization=recipe,
        eval_pictures=recipe.eval_pictures,
    )
    if os.environ.get("ACCELERATE_USE_FSDP") == "true" and trainer.accelerator.distributed_type != "FSDP":
        raise ValueError(f"accelerate does not shard on {args.device}: FSDP was asked for, this would be plain DDP.")
    return trainer


def build_model(
    recipe: RecipeArguments, id2label: dict[int, str], palette: list[tuple[int, int, int]] | None = None
) -> torch.nn.Module:
    """The recipe's segmenter; the parameters that it trains require gradients. `palette`: see [`build_segmenter`]."""
    kind = head_of((recipe.head or {}).get("model_type", "mask2former"))
    model = build_segmenter(
        recipe.backbone,
        id2label,
        image_size=recipe.crop,
        patch_size=recipe.patch_size,
        out_indices=recipe.out_indices,
        num_queries=recipe.num_queries if kind.classifies_masks else None,
        head=recipe.head,
        palette=palette,
    )
    if recipe.backbone_dtype == "bfloat16":
        cast_backbone(backbone_of(model))
    return apply_tuning(model, recipe)


def apply_tuning(model: torch.nn.Module, recipe: RecipeArguments) -> torch.nn.Module:
    """The segmenter with the recipe's tuning of its backbone, and a trainable head."""
    config = tuning_config(recipe.tuning, recipe.num_queries, getattr(recipe, recipe.tuning, None))
    if config is None:
        backbone_of(model).requires_grad_(recipe.tuning == "full")
        return model
    return add_rein(model, config) if isinstance(config, ReinConfig) else add_adapter(model, config)


def cast_backbone(backbone: torch.nn.Module) -> None:
    """Casts a frozen backbone to bfloat16. Rein, which is added later, and the head stay in float32."""
    backbone.to(torch.bfloat16)
    backbone.register_forward_hook(_cast_maps_to_float32)


def _cast_maps_to_float32(backbone: torch.nn.Module, args: tuple, output: BackboneOutput) -> BackboneOutput:
    return BackboneOutput(feature_maps=tuple(features.float() for features in output.feature_maps))


def check_domains(sources: list[Domain], targets: list[Domain], args: TrainingArguments) -> None:
    """Says what was assumed about the domains and what is odd about them.

    Raises:
        ValueError: the sources have different classes; a target has others than a model of the sources can be
            evaluated on, or no public labels.
    """
    classes = common_classes(sources)
    for target in targets:  # not after hours, at the first evaluation
        target.predictions(np.arange(len(classes), dtype=np.uint8), classes)
        if not target.is_streamed and len(target.dataset) and target.dataset.with_format(None)[0]["label"] is None:
            raise ValueError(f"evaluate has {target.name}, whose labels are not public; see rein-hf submit.")
    if args.process_index == 0:
        # a source may be a target too
        for note in dict.fromkeys(note for domain in (*sources, *targets) for note in label_warnings(domain)):
            print(f"Note: {note}")
        if len(classes) == 1:
            warnings.warn(
                f"There is one class, {classes[0]!r}: every pixel is taken for it, so the mIoU says nothing. Make a "
                "second class of the background.",
                stacklevel=2,
            )


def common_classes(sources: list[Domain]) -> tuple[str, ...]:
    """The classes that all sources share."""
    classes = {source.name: source.classes for source in sources}
    if len(set(classes.values())) > 1:
        raise ValueError(f"The sources have different classes: {classes}; expected one label set.")
    return sources[0].classes


def dataset_sizes(domains: list[Domain]) -> dict[str, int | None]:
    """The number of images of each domain; None for a stream."""
    return {domain.name: None if domain.is_streamed else len(domain.dataset) for domain in domains}


def mixture_weights(sources: list[Domain], weights: dict[str, float] | None) -> list[float] | None:
    """The recipe's weights in the order of the sources."""
    names = [source.name for source in sources]
    if weights is not None and sorted(weights) != sorted(names):
        raise ValueError(f"weights names {sorted(weights)}; expected the sources {sorted(names)}.")
    return None if weights is None else [float(weights[name]) for name in names]


def find_resume_point(
    recipe: RecipeArguments, args: TrainingArguments, sources: list[Domain], targets: list[Domain]
) -> tuple[bool, str | None]:
    """Whether the run in `output_dir` has finished, and the checkpoint to continue from, see
    [`checkpoints.resume_point`]. The main process finds out and tells the others."""
    found = [None]
    if args.process_index == 0:
        fixed = config_fixed_on_resume(recipe, args)
        fixed |= {"images": dataset_sizes(sources), "classes": list(common_classes(sources))}
        if scores_decide(args):
            fixed["images_evaluated"] = dataset_sizes(targets)
        finished, checkpoint = checkpoints.resume_point(Path(args.output_dir), fixed, FINAL_WEIGHTS)
        found = [(finished, checkpoint and str(checkpoint))]
        processes = len(list(checkpoint.glob("rng_state*.pth"))) if checkpoint else args.world_size
        if processes != args.world_size:
            warnings.warn(
                f"{checkpoint} was saved by {processes} process(es); {args.world_size} go on, at the same sample, but "
                "with other random points of the loss: the weights will not be equal bit by bit.",
                stacklevel=2,
            )
    return broadcast_object_list(found)[0]


def parse(argv: list[str]) -> tuple[RecipeArguments, TrainingArguments]:
    """The command line: a recipe's name or file, and values that replace its own.

    Raises:
        OSError: there is no such recipe.
        ValueError: as [`read_recipe`], or the command line is none.
    """
    if not argv or argv[0].startswith("-"):
        raise ValueError("expected a recipe first, a file or one of those that --list shows; --help lists the keys.")
    path = find_shipped("configs", argv[0])
    try:
        overrides = to_overrides(argv[1:], path)
    except ValueError as error:
        message = " ".join(str(error).split())  # of YAML it has several lines
        raise ValueError(message if str(path) in message else f"{path}: {message}") from error
    try:
        return read_recipe(path, overrides)
    except ValueError as error:  # of YAML and of huggingface_hub they have several lines
        raise ValueError(" ".join(str(error).split())) from error


def help_text(argv: list[str]) -> str:
    """The keys of a recipe, with the values of the one that `argv` begins with."""
    path = find_shipped("configs", argv[0]) if argv and not argv[0].startswith("-") else None
    return train_help.help_text(__doc__, path)


def list_text() -> str:
    """The recipes and launchers that come with the package."""
    return train_help.list_text()


if __name__ == "__main__":
    sys.exit(run("train"))
