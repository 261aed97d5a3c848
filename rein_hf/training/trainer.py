"""The stock Trainer with the recipe's optimizer, the protocol's evaluation, and checkpoints that are never half."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DynamoBackend
from peft import PeftModel
from torch import nn
from transformers import TrainingArguments

from ..backbone import backbone_of, cast_frozen_weights
from ..data import Domain, check_different_names, class_masks
from ..evaluation import evaluate_domain
from ..head import ReinCriterion, pixel_loss
from ..inference.compiled import GRAPH_ONLY
from ..labels import IGNORE
from .compiling import compile_before_loss
from .divergence import LossGuard
from .moving_average import MovingAverage
from .optim import param_groups, use_fused_optimizer
from .optimizer_keys import OptimizerArguments, ema_start_step
from .progress import draw_validation, report_evaluation
from .saving import CheckpointingTrainer
from .weight_decay import WeightDecayAnnealing


def use_one_device(args: TrainingArguments) -> None:
    """Keeps the stock Trainer from wrapping the model in `DataParallel`, which would multiply the batch by the number
    of visible GPUs."""
    if args.n_gpu > 1:
        warnings.warn(
            f"{args.n_gpu} GPUs are visible, and one process trains on one of them. To train on all with the same "
            f"batch: accelerate launch --config_file gpus.yaml --num_processes {args.n_gpu} -m rein_hf.commands.train "
            "RECIPE (rein-hf train --list says where the file lies).",
            stacklevel=3,
        )
        args._n_gpu = 1


class SegmentationTrainer(CheckpointingTrainer):
    """
    The stock Trainer with these differences:

    - The optimizer is AdamW with the recipe's parameter groups.
    - Evaluation runs windows over whole images and sums confusion matrices over processes. The stock one would gather
      label maps, which have unequal sizes.
    - A checkpoint is complete or absent, see [`CheckpointingTrainer`]; the best one is that of the highest mean mIoU.
    - A loss that is not finite stops the run before it changes a weight.
    - The losses of a step are divided by the number of masks (or pixels) of the whole step, so they do not depend on
      how the step is split between processes and micro-batches.
    - Images without a labelled pixel are counted.
    - A moving average of the trained weights, if there is one, is what is evaluated, saved and left in the model.
    - `activation_checkpointing` covers the backbone and Rein, not the head.
    - `torch_compile` compiles the model up to its outputs, in place and as one graph. The loss stays as it is: its
      matching is on the host, and with the number of masks it changes from batch to batch. With
      `torch_compile_backend="cudagraphs"` nothing is compiled, see [`compile_before_loss`].
    - Each evaluation leaves pictures and curves in the run's folder, see [`rein_hf.training.progress`].
    - One process trains on one device: the stock Trainer would multiply the batch by the number of visible GPUs.

    Args:
        model: from [`build_segmenter`], with or without adapter.
        args (`TrainingArguments`): of the stock Trainer.
        domains (`list[Domain]`): what to evaluate on.
        eval_limit (`int`, *optional*): number of images to evaluate per domain.
        optimization ([`OptimizerArguments`], *optional*): learning rates by part, weight decay, moving average.
        eval_pictures (`int`): number of images, of all domains, that each evaluation draws.
        kwargs: further arguments of the stock Trainer. Batches may hold `samples`, the names of their images.

    Raises:
        FloatingPointError: in training, when a loss is not finite.
        ValueError: two domains have the same name; in evaluation, without domains; a moving average is asked for with
            DeepSpeed; CUDA graphs are asked for on a CPU, with a sharded model or with checkpointing of activations.
    """

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments,
        *,
        domains: list[Domain],
        eval_limit: int | None = None,
        optimization: OptimizerArguments | None = None,
        eval_pictures: int = 0,
        **kwargs,
    ):
        check_different_names(domains, "domains")
        use_one_device(args)
        # the stock Trainer requires an eval_dataset as soon as there is an evaluation strategy
        datasets = {domain.name: domain.dataset for domain in domains} or None
        super().__init__(model, args, eval_dataset=datasets, **kwargs)
        self.domains, self.eval_limit, self.eval_pictures = domains, eval_limit, eval_pictures
        # a head that classifies pixels has no ReinCriterion: the stock Trainer passes `pixel_loss` its divisor
        self.criterion = next((module for module in self.model.modules() if isinstance(module, ReinCriterion)), None)
        if self.criterion is None:
            self.compute_loss_func = pixel_loss
        # the stock head refuses checkpointing of the whole model; most activations are the backbone's
        self.model.activation_checkpointing_enable = backbone_of(self.model).activation_checkpointing_enable
        is_sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        if self.args.bf16 and isinstance(self.model, PeftModel) and not is_sharded:
            # autocast would cast them at every step; of a model without adapter they are saved, in float32
            cast_frozen_weights(backbone_of(self.model), torch.bfloat16)
        if args.torch_compile:
            self._compile(is_sharded)
        if self.is_fsdp_enabled:
            # FSDP2 asks for the word embeddings, of which the stock model says by an exception that it has none
            self.model.get_input_embeddings = lambda: None
        self.optimization = optimization or OptimizerArguments()
        if self.optimization.ema_decay is not None:
            start = ema_start_step(self.optimization.ema_start, self.args.max_steps)
            self.moving_average = MovingAverage(self.optimization.ema_decay, start)
            self.add_callback(self.moving_average)
            if self.is_deepspeed_enabled:
                raise ValueError("ema_decay is given, but DeepSpeed keeps the weights to itself; use FSDP2 or DDP.")
        if self.optimization.weight_decay_end is not None:
            self.add_callback(WeightDecayAnnealing(self.args.weight_decay, self.optimization.weight_decay_end))
        self._loss_guard = LossGuard(self.accelerator)
        self._num_unlabelled = torch.zeros((), device=self.args.device)

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            groups = param_groups(
                self.model, self.args.learning_rate, self.args.weight_decay, **self.optimization.factors()
            )
            betas = (self.args.adam_beta1, self.args.adam_beta2)
            self.optimizer = torch.optim.AdamW(
                groups,
                lr=self.args.learning_rate,
                betas=betas,
                eps=self.args.adam_epsilon,
                fused=use_fused_optimizer(groups),
            )
        return self.optimizer

    def _compile(self, is_sharded: bool) -> None:
        """Compiles what comes before the loss, where accelerate would compile the whole model."""
        self.accelerator.state.dynamo_plugin.backend = DynamoBackend.NO
        for name in ("ACCELERATE_DYNAMO_BACKEND", "ACCELERATE_DYNAMO_MODE"):  # set by the arguments, for any later run
            os.environ.pop(name, None)
        backend, mode = self.args.torch_compile_backend, self.args.torch_compile_mode
        if backend == GRAPH_ONLY and (is_sharded or self.args.activation_checkpointing):
            found = "the model is sharded" if is_sharded else "activation_checkpointing is on"
            raise ValueError(
                f"torch_compile_backend is {backend!r} and {found}: neither weights that come and go nor a forward "
                "pass that is repeated can be recorded as a CUDA graph. Leave one of the two out."
            )
        compile_before_loss(self.model, backend, mode, fullgraph=not is_sharded)

    # ---- a step ----

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device):
        """The micro-batches of a step. Counts images without a labelled pixel, and sets what the criterion divides its
        losses by to the average over all micro-batches and processes of the step."""
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self.criterion is None:
            unlabelled = sum((label == IGNORE).all() for batch in batches for label in batch["labels"])
            self._num_unlabelled += self.accelerator.reduce(
                torch.as_tensor(unlabelled, device=device), reduction="sum"
            )
            return batches, num_items
        labels = [batch["class_labels"] for batch in batches]
        divisors = [sum(column) for column in zip(*map(self.criterion.totals, labels), strict=True)]
        unlabelled = sum(len(classes) == 0 for batch in labels for classes in batch)
        # filled there: a copy from here would wait for the step before
        counts = torch.stack([torch.full((), float(count), device=device) for count in (*divisors, unlabelled)])
        sums = self.accelerator.reduce(counts, reduction="sum")
        num_micro_batches = len(batches) * self.accelerator.num_processes
        self.criterion.averages = sums[:2] / num_micro_batches if num_micro_batches > 1 else None
        self._num_unlabelled += sums[2]
        return batches, num_items

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """A micro-batch on the device, where the masks of its classes are made."""
        inputs = super()._prepare_inputs(inputs)
        if "label_maps" in inputs:
            inputs["mask_labels"] = class_masks(inputs.pop("label_maps"), inputs["class_labels"])
        return inputs

    def compute_loss(self, model, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch=None):
        inputs = dict(inputs)
        names = inputs.pop("samples", [])
        result = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        self._loss_guard.watch(result[0] if return_outputs else result, names, inputs)
        return result

    def training_step(self, model, inputs, num_items_in_batch=None) -> torch.Tensor:
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self.accelerator.sync_gradients:
            if self.criterion is not None:
                self.criterion.averages = None
            if self._loss_guard.found():
                self._stop_at_bad_loss()
        return loss

    def _stop_at_bad_loss(self) -> None:
        """Saves the weights, which the step has not changed, and its batches, and ends the run."""
        step = self.state.global_step + 1
        folder = Path(self.args.output_dir) / f"non-finite-loss-{step}"
        with self._write_then_rename(folder) as partial:
            self.save_model(str(partial))
            report = self._loss_guard.save(partial, step)
        raise FloatingPointError(
            f"{report} No weight was changed by the step. {folder} holds the weights before it and the batches; the "
            "last checkpoint is complete, and the same command comes to the same step again."
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As the stock one, with the number of images without a labelled pixel since the last entry if there were any;
        the final entry has that of the whole run."""
        count = int(self._num_unlabelled.item())
        self._num_unlabelled.zero_()
        if "train_loss" in logs:  # the final entry
            count += sum(entry.get("unlabelled_images", 0) for entry in self.state.log_history)
        if count:
            logs["unlabelled_images"] = count
        super().log(logs, start_time)

    # ---- evaluation ----

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """mIoU in percent of each domain, and their unweighted mean.

        Raises:
            ValueError: the trainer has no domains.
        """
        if not self.domains:
            raise ValueError("There is no domain to evaluate on; give some to the trainer, in a recipe by `evaluate`.")
        was_training = self.model.training
        self.model.eval()
        results = {}
        with self._averaged_weights():
            for domain in self.domains:
                metric = evaluate_domain(
                    self.model, self.processing_class, domain, self.accelerator, limit=self.eval_limit
                )[domain.name]
                results[domain.name] = metric.compute()
            sheet = draw_validation(self, self.domains, self.eval_pictures)
        self.model.train(was_training)
        scores = {name: 100 * result["mean_iou"] for name, result in results.items()}
        metrics = {f"{metric_key_prefix}_{name}_miou": value for name, value in scores.items()}
        metrics[f"{metric_key_prefix}_miou"] = sum(scores.values()) / len(scores)
        self.log(metrics)
        if self.is_world_process_zero():
            report_evaluation(self, results, sheet)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _save_checkpoint(self, model, trial) -> None:
        if self._num_unlabelled.item():
            self.log({})  # the count goes into the state that is saved
        super()._save_checkpoint(model, trial)
