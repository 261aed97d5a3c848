"""What one sees of a run while it trains: pictures of validation images, the IoU of each class, curves."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from transformers import TrainerCallback, TrainingArguments
from transformers.integrations import (
    TensorBoardCallback,
    TrackioCallback,
    WandbCallback,
    is_tensorboard_available,
    is_trackio_available,
    is_wandb_available,
)

from ..data import Domain
from ..evaluation import evenly_spaced_samples, predict_sample
from ..views import colorize, contact_sheet, legend_of, merge_legends, save_picture


if TYPE_CHECKING:
    from .trainer import SegmentationTrainer

# Is a tracker of metrics installed?
TRACKERS = {
    "tensorboard": is_tensorboard_available,
    "wandb": is_wandb_available,
    "trackio": is_trackio_available,
}

# In the run's folder: the pictures of each evaluation, and the curves of the whole run.
PICTURES, CURVES = "validation", "curves.png"


def check_trackers(args: TrainingArguments) -> None:
    """Refuses a tracker that is not installed before anything is loaded.

    Raises:
        ValueError: names it, and how to get it.
    """
    for name in args.report_to:
        if name in TRACKERS and not TRACKERS[name]():
            raise ValueError(f"report_to is {name!r}, which is not installed: pip install {name}.")


def picture_counts(domains: int, pictures: int) -> list[int]:
    """How many of `pictures` images each of the domains has on the sheet: the first ones have one more if need be.

    Example:

    ```py
    >>> from rein_hf.training.progress import picture_counts
    >>> picture_counts(3, 4)
    [2, 1, 1]

    ```
    """
    return [pictures // domains + (index < pictures % domains) for index in range(domains)]


def draw_validation(trainer: SegmentationTrainer, domains: Sequence[Domain], pictures: int) -> Image.Image | None:
    """A sheet of the same validation images at each evaluation: image, truth, prediction, legend. Every process calls
    it, with the model in eval mode, since a model in shards computes in all of them together.

    Args:
        trainer: gives the model, the image processor and the precision.
        domains: what is evaluated.
        pictures (`int`): number of images in all; 0 for no sheet.

    Returns:
        The sheet, `None` if it has no images.
    """
    rows, legends = [], []
    for domain, count in zip(domains, picture_counts(len(domains), pictures), strict=True):
        for sample in evenly_spaced_samples(domain, count) if count else ():
            with trainer.accelerator.autocast():
                found = predict_sample(trainer.model, trainer.processing_class, domain, sample["image"])
            labels = [np.asarray(sample["label"]), found]
            rows.append(
                (
                    f"{sample['domain']} {sample['name']}",
                    [sample["image"], *(colorize(label, domain.palette) for label in labels)],
                )
            )
            legends.append(legend_of(labels, domain.classes, domain.palette))
    if not rows:
        return None
    titles = ["image", "truth", f"step {trainer.state.global_step}"]
    return contact_sheet(rows, titles, legend=merge_legends(legends))


def report_evaluation(trainer: SegmentationTrainer, results: Mapping[str, Mapping], sheet: Image.Image | None) -> None:
    """After an evaluation is logged, on the main process: writes the sheet and the curves into the run's folder, and
    gives trackers the IoU of each class in percent (`eval/DOMAIN_iou/CLASS`; none for a class that is absent) and
    tensorboard and wandb the sheet.

    Args:
        trainer: of the run.
        results: of each domain, as [`MeanIoU.compute`] gives them.
        sheet: of [`draw_validation`].
    """
    step, folder = trainer.state.global_step, Path(trainer.args.output_dir)
    scalars = {
        f"eval_{domain}_iou/{name}": 100 * value
        for domain, result in results.items()
        for name, value in result["per_class_iou"].items()
        if not math.isnan(value)
    }
    # not by trainer.log: they would fill the terminal and the state of the run
    for callback in trackers(trainer):
        callback.on_log(trainer.args, trainer.state, trainer.control, logs=dict(scalars), model=trainer.model)
    draw_curves(trainer)
    if sheet is not None:
        (folder / PICTURES).mkdir(parents=True, exist_ok=True)
        save_picture(sheet, folder / PICTURES / f"step_{step:06}.png")
        show_in_trackers(trainer, sheet, step)


def draw_curves(trainer: SegmentationTrainer) -> None:
    """Draws the losses and scores of the run so far, on the main process."""
    from ..views.plots import plot_curves  # needs matplotlib

    losses, scores = curves_of(trainer.state.log_history)
    if trainer.is_world_process_zero() and (losses or scores):
        folder = Path(trainer.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        plot_curves(losses, scores, folder / CURVES)


def trackers(trainer: SegmentationTrainer) -> Iterator[TrainerCallback]:
    """The callbacks of a trainer that report to tensorboard, wandb and trackio."""
    kinds = (TensorBoardCallback, WandbCallback, TrackioCallback)
    return (callback for callback in trainer.callback_handler.callbacks if isinstance(callback, kinds))


def show_in_trackers(trainer: SegmentationTrainer, sheet: Image.Image, step: int) -> None:
    """Gives the sheet to tensorboard and wandb."""
    for callback in trackers(trainer):
        if isinstance(callback, TensorBoardCallback) and callback.tb_writer is not None:
            callback.tb_writer.add_image("validation", np.asarray(sheet), step, dataformats="HWC")
        elif isinstance(callback, WandbCallback):
            wandb = callback._wandb
            wandb.log({"eval/validation": wandb.Image(sheet), "train/global_step": step})


def curves_of(
    log_history: Sequence[Mapping[str, Any]],
) -> tuple[list[tuple[int, float]], dict[str, list[tuple[int, float]]]]:
    """The losses of a run, and the mIoU in percent of each domain, as pairs of step and value."""
    losses = [(entry["step"], entry["loss"]) for entry in log_history if "loss" in entry]
    scores: dict[str, list[tuple[int, float]]] = {}
    for entry in log_history:
        for key, value in entry.items():
            if key.startswith("eval_") and key.endswith("_miou") and key != "eval_miou":  # which is their mean
                scores.setdefault(key.removeprefix("eval_").removesuffix("_miou"), []).append((entry["step"], value))
    return losses, scores
