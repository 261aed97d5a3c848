"""What `rein-hf train` says: at the beginning what it will do, at the end what it has done and what to run next."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from pathlib import Path

from transformers import TrainingArguments

from ..data import Domain
from ..data.spec import parse_spec
from ..training import (
    CURVES,
    FINAL_WEIGHTS,
    FOLLOW_A_SCORE,
    PICTURES,
    VALIDATION,
    RecipeArguments,
    SegmentationTrainer,
)


def best_metric(
    recipe: RecipeArguments, args: TrainingArguments, sources: Sequence[Domain], targets: Sequence[Domain]
) -> str | None:
    """The score by which the best checkpoint is chosen: the one that the recipe names; else the mIoU of the first
    target that is a split of a source. A target of another kind is never chosen by itself, since its score would no
    longer be that of a domain that was not seen.

    Returns:
        A key of an evaluation without "eval_"; `None` where the last checkpoint counts.

    Raises:
        ValueError: the recipe names no such score, or needs one and there is none.
    """
    if args.eval_strategy == "no":
        return None
    scores = ["miou", *(f"{target.name}_miou" for target in targets)]
    if args.metric_for_best_model not in (None, VALIDATION):
        if args.metric_for_best_model.removeprefix("eval_") not in scores:
            raise ValueError(
                f"metric_for_best_model is {args.metric_for_best_model!r}; expected one of {', '.join(scores)}."
            )
        return args.metric_for_best_model
    held_out = [
        target.name
        for target, spec in zip(targets, recipe.evaluate, strict=True)
        if any(is_split_of(target, spec, *pair) for pair in zip(sources, recipe.train, strict=True))
    ]
    if held_out:
        return f"{held_out[0]}_miou"
    if args.load_best_model_at_end or args.save_strategy == "best":
        key = "load_best_model_at_end" if args.load_best_model_at_end else "save_strategy: best"
        raise ValueError(
            f"{key} needs a score: none of {', '.join(recipe.evaluate)} is a split of a source that it does not "
            f"train on. Name one by metric_for_best_model: {', '.join(scores)}."
        )
    return "miou" if args.lr_scheduler_type in FOLLOW_A_SCORE else None


def is_split_of(target: Domain, target_spec: str, source: Domain, source_spec: str) -> bool:
    """Whether two domains are of one data set and share no image."""
    if target.is_streamed or source.is_streamed:
        return False
    parts, others = parse_spec(target_spec), parse_spec(source_spec)
    if (parts.layout, Path(parts.path)) != (others.layout, Path(others.path)):
        return False
    names = (domain.dataset.with_format(None)["name"] for domain in (target, source))
    return set(next(names)).isdisjoint(next(names))


def opening_lines(
    recipe: RecipeArguments, args: TrainingArguments, sources: Sequence[Domain], targets: Sequence[Domain]
) -> list[str]:
    """What the run will do."""
    classes = sources[0].classes
    lines = [
        f"Trains {recipe.tuning} on {recipe.backbone}: {args.max_steps} steps of {recipe.total_batch_size} crops of "
        f"{recipe.crop}x{recipe.crop} pixels, {len(classes)} classes ({_some(classes)})."
    ]
    lines += [f"  on {_described(*pair)}" for pair in zip(sources, recipe.train, strict=True)]
    if args.eval_strategy == "no":
        return lines
    limit = f", {recipe.eval_limit} images of each at most" if recipe.eval_limit else ""
    lines.append(f"Evaluates {_when(args)}{limit}:")
    lines += [f"  on {_described(*pair)}" for pair in zip(targets, recipe.evaluate, strict=True)]
    metric = args.metric_for_best_model
    if metric is None:
        lines.append("No target is a split of a source: the last checkpoint counts, and no target chooses one.")
    else:
        lines.append(f"Keeps the checkpoint that is best by the mIoU {_of_what(metric)} beside the last ones.")
    return lines


def closing_lines(trainer: SegmentationTrainer, recipe: RecipeArguments, seconds: float, resumed_at: int) -> list[str]:
    """What the run has done, where it lies, and what to run next."""
    args, state, folder = trainer.args, trainer.state, Path(trainer.args.output_dir)
    trained = sum(parameter.numel() for parameter in trainer.model.parameters() if parameter.requires_grad)
    total = sum(parameter.numel() for parameter in trainer.model.parameters())
    steps = f"{state.global_step - resumed_at} steps" + (f" (from step {resumed_at} on)" if resumed_at else "")
    lines = [f"Trained {trained:,} of {total:,} parameters ({trained / total:.1%}) in {steps}, {_duration(seconds)}."]
    evaluations = [entry for entry in state.log_history if "eval_miou" in entry]
    if evaluations:
        last = evaluations[-1]
        scores = ", ".join(f"{domain.name} {last[f'eval_{domain.name}_miou']:.2f}" for domain in trainer.domains)
        some = f" ({recipe.eval_limit} images of each at most)" if recipe.eval_limit else ""
        lines.append(f"mIoU in percent at step {last['step']}{some}: {scores}.")
    if state.best_global_step and args.metric_for_best_model:
        best = folder / f"checkpoint-{state.best_global_step}"
        lines.append(
            f"Best step by the mIoU {_of_what(args.metric_for_best_model)}: {state.best_global_step} "
            f"({state.best_metric:.2f})" + (f", kept in {best}." if best.is_dir() else ".")
        )
    which = "the best step" if args.load_best_model_at_end and state.best_global_step else "the last step"
    size = sum((folder / name).stat().st_size for name in FINAL_WEIGHTS if (folder / name).is_file())
    lines.append(f"The weights of {which} lie in {folder} ({size / 1e6:.1f} MB).")
    found = [str(folder / name) for name in (CURVES, PICTURES) if (folder / name).exists()]
    if found:
        lines.append(f"Curves and pictures: {', '.join(found)}.")
    model = shlex.quote(str(folder))
    if recipe.evaluate:
        domains = " ".join(map(shlex.quote, recipe.evaluate))
        lines.append(
            f"Next: rein-hf evaluate --model {model} --domains {domains} "
            f"--output_dir {shlex.quote(str(folder / 'evaluation'))}"
        )
    sized = next((domain.size for domain in trainer.domains if domain.size), None)
    option = f" --size {sized[0]}x{sized[1]}" if sized else ""
    first = "Or" if recipe.evaluate else "Next"
    photos = f"--input PHOTOS{option} --output_dir {shlex.quote(str(folder / 'photos'))}"
    lines.append(f"{first}: rein-hf predict --model {model} {photos}")
    return lines


def _described(domain: Domain, spec: str) -> str:
    images = "a stream" if domain.is_streamed else f"{len(domain.dataset)} images"
    return f"{domain.name}: {images}, {spec}"


def _when(args: TrainingArguments) -> str:
    """The steps at which a run is evaluated, in words."""
    if args.eval_strategy != "steps":
        return "at the end"
    share = args.eval_steps < 1  # of the run, which the Trainer rounds up
    steps = math.ceil(args.eval_steps * args.max_steps) if share else int(args.eval_steps)
    first = math.ceil(args.eval_delay / steps) * steps
    begin = f" from step {first} on" if first > steps else ""
    return f"every {steps} steps{begin} and at the end" if max(first, steps) < args.max_steps else "at the end"


def _of_what(metric: str) -> str:
    """ "eval_val_miou" in words."""
    name = metric.removeprefix("eval_").removesuffix("miou").rstrip("_")
    return f"of {name}" if name else "of all targets"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")


def _duration(seconds: float) -> str:
    """
    Example:

    ```py
    >>> from rein_hf.commands.train_report import _duration
    >>> _duration(59.6), _duration(200), _duration(34_300)
    ('60 s', '3 min 20 s', '9 h 31 min')

    ```
    """
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if seconds >= 60 else f"{round(seconds)} s"
    return f"{minutes // 60} h {minutes % 60} min"
