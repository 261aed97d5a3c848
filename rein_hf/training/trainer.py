"""The stock Trainer, with the recipe's optimizer, the protocol's evaluation, and nothing lost on the way."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer

from ..backbone import backbone_of
from ..data import Domain
from ..evaluation import evaluate_domain
from ..head import ReinCriterion, pixel_loss
from ..labels import IGNORE
from . import checkpoints
from .divergence import LossGuard, non_finite_parameters
from .optim import param_groups


# The file that is written last: where it is, a run has finished.
FINAL_WEIGHTS = ("adapter_model.safetensors", "model.safetensors")


class SegmentationTrainer(Trainer):
    """
    The stock Trainer but for this: the optimizer has the recipe's parameter groups; evaluation runs windows over whole
    images and reduces confusion matrices, where the stock one would gather label maps of unequal sizes; checkpoints
    are whole or not there, the best one by mean mIoU stays beside the newest `save_total_limit`, and is saved at its
    evaluation if it would not be otherwise; a loss that is not finite stops the run before it changes a weight; images
    without a labelled pixel are counted; the losses of a step are divided by what is in all of it, however it is split
    between processes and micro-batches; `activation_checkpointing` is the backbone's and Rein's.

    Args:
        model: from [`build_segmenter`], with or without adapter.
        domains (`list[Domain]`): to evaluate on.
        eval_limit (`int`, *optional*): images per domain.
        args, kwargs: of the stock Trainer. Batches may hold `samples`, the names of their images.

    Raises:
        FloatingPointError: in training, where the loss or a weight is not finite.
        ValueError: in training, where a checkpoint to go on from holds pickled code.
        OSError: in training, where a checkpoint cannot be written.
    """

    def __init__(self, *args, domains: list[Domain], eval_limit: int | None = None, **kwargs):
        # the stock Trainer wants an eval_dataset as soon as there is an evaluation strategy
        super().__init__(*args, eval_dataset={domain.name: domain.dataset for domain in domains} or None, **kwargs)
        self.domains, self.eval_limit = domains, eval_limit
        # none in a head that classifies pixels: the stock Trainer hands out what their loss is divided by
        self.criterion = next((module for module in self.model.modules() if isinstance(module, ReinCriterion)), None)
        if self.criterion is None:
            self.compute_loss_func = pixel_loss
        # the stock head refuses checkpointing for the whole model; the backbone is where activations pile up
        self.model.activation_checkpointing_enable = backbone_of(self.model).activation_checkpointing_enable
        if self.is_fsdp_enabled:
            # FSDP2 asks for embeddings of words, and takes the stock model's refusal for an error
            self.model.get_input_embeddings = lambda: None
        self._guard = LossGuard(self.accelerator)
        self._unlabelled = torch.zeros((), device=self.args.device)
        self._partial_dir: Path | None = None

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            groups = param_groups(self.model, self.args.learning_rate, self.args.weight_decay)
            betas = (self.args.adam_beta1, self.args.adam_beta2)
            self.optimizer = torch.optim.AdamW(
                groups, lr=self.args.learning_rate, betas=betas, eps=self.args.adam_epsilon
            )
        return self.optimizer

    def train(self, resume_from_checkpoint: str | None = None, **kwargs):
        try:
            return super().train(resume_from_checkpoint, **kwargs)
        except pickle.UnpicklingError as error:
            raise ValueError(
                f"{resume_from_checkpoint} holds more than tensors and numbers in its optimizer.pt, scheduler.pt or "
                f"rng_state.pth, which nothing here has written; none of it was run. {error}"
            ) from error

    # ---- a step ----

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device):
        """Counts images without a labelled pixel, and tells the criterion what the losses of the step are divided by,
        over all its micro-batches and processes."""
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self.criterion is None:
            unlabelled = sum((label == IGNORE).all() for batch in batches for label in batch["labels"])
            self._unlabelled += self.accelerator.reduce(torch.as_tensor(unlabelled, device=device), reduction="sum")
            return batches, num_items
        labels = [batch["class_labels"] for batch in batches]
        totals = [sum(column) for column in zip(*map(self.criterion.totals, labels), strict=True)]
        unlabelled = sum(len(classes) == 0 for batch in labels for classes in batch)
        numbers = self.accelerator.reduce(torch.tensor([*totals, unlabelled], device=device), reduction="sum")
        count = len(batches) * self.accelerator.num_processes
        self.criterion.averages = numbers[:2] / count if count > 1 else None
        self._unlabelled += numbers[2]
        return batches, num_items

    def compute_loss(self, model, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch=None):
        inputs = dict(inputs)
        names = inputs.pop("samples", [])
        result = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        self._guard.watch(result[0] if return_outputs else result, names, inputs)
        return result

    def training_step(self, model, inputs, num_items_in_batch=None) -> torch.Tensor:
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self.accelerator.sync_gradients:
            if self.criterion is not None:
                self.criterion.averages = None
            if self._guard.found():
                self._stop()
        return loss

    def _stop(self) -> None:
        """Saves weights, which the step has not changed, and batches, and says so."""
        step = self.state.global_step + 1
        folder = Path(self.args.output_dir) / f"non-finite-loss-{step}"
        with self._written_beside(folder) as partial:
            self.save_model(str(partial))
            report = self._guard.save(partial, step)
        raise FloatingPointError(
            f"{report} No weight was changed by the step. {folder} holds the weights before it and the batches; the "
            "last checkpoint is whole, and the same command comes to the same step again."
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As the stock one, with the number of images without a labelled pixel since the last time, if there are any;
        at the end, of the run."""
        found = int(self._unlabelled.item())
        self._unlabelled.zero_()
        if "train_loss" in logs:
            found += sum(entry.get("unlabelled_images", 0) for entry in self.state.log_history)
        if found:
            logs["unlabelled_images"] = found
        super().log(logs, start_time)

    # ---- evaluation ----

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """mIoU in percent of each domain, and their unweighted mean."""
        was_training = self.model.training
        self.model.eval()
        scores = {}
        for domain in self.domains:
            metric = evaluate_domain(
                self.model, self.processing_class, domain, self.accelerator, limit=self.eval_limit
            )[domain.name]
            scores[domain.name] = 100 * metric.compute()["mean_iou"]
        self.model.train(was_training)
        metrics = {f"{metric_key_prefix}_{name}_miou": value for name, value in scores.items()}
        metrics[f"{metric_key_prefix}_miou"] = sum(scores.values()) / len(scores)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _determine_best_metric(self, metrics: dict[str, float], trial) -> bool:
        is_best = super()._determine_best_metric(metrics, trial)
        if is_best and self.args.save_strategy != "no":
            self.control.should_save = True  # at other steps than the evaluation's, other weights would be saved
        return is_best

    # ---- what is saved ----

    def _save_checkpoint(self, model, trial) -> None:
        if self._unlabelled.item():
            self.log({})  # into the state that is saved
        wrong = non_finite_parameters(self.model, self.accelerator)
        if wrong:
            raise FloatingPointError(
                f"After step {self.state.global_step} the weights {wrong[:3]} ({len(wrong)} in all) are not finite; "
                "no checkpoint is written. The last one is whole."
            )
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        best = folder.with_name(f"checkpoint-{self.state.best_global_step}")
        with self._written_beside(folder) as partial:
            self._partial_dir = partial.parent
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self._partial_dir = None
            # the stock method has looked for the best one beside the partial one
            self.state.best_model_checkpoint = str(best) if best == folder or best.is_dir() else None
            if self.args.should_save:
                self.state.save_to_json(str(partial / "trainer_state.json"))
        if self.args.should_save:
            checkpoints.delete_old(folder.parent, self.args.save_total_limit, best)

    def _get_output_dir(self, trial) -> str:
        return str(self._partial_dir or super()._get_output_dir(trial))

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As the stock one; the model of a finished run is written beside and gets its place last."""
        if output_dir is not None:
            return super().save_model(output_dir, _internal_call)
        output_dir = Path(self.args.output_dir)
        partial = checkpoints.partial_folder(output_dir / "model")
        with checkpoints.explain_disk_errors(output_dir, "The final model"):
            super().save_model(str(partial), _internal_call=True)  # pushes nothing yet
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                checkpoints.publish_files(partial, output_dir, last=FINAL_WEIGHTS)
        self.accelerator.wait_for_everyone()
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save")

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, state_dict)
        # the stock arguments are pickled; nothing reads them, and nobody should
        (Path(output_dir or self.args.output_dir) / "training_args.bin").unlink(missing_ok=True)

    @contextmanager
    def _written_beside(self, folder: Path) -> Iterator[Path]:
        """A folder for all processes to write in, which becomes `folder` when they are done."""
        partial = checkpoints.partial_folder(folder)
        with checkpoints.explain_disk_errors(folder.parent, folder.name):
            if self.args.should_save:
                checkpoints.discard_partial(folder.parent)
                partial.mkdir(parents=True)
            self.accelerator.wait_for_everyone()
            yield partial
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                checkpoints.publish(partial, folder)
        self.accelerator.wait_for_everyone()
