"""The program that tests/training/test_processes.py runs as two processes:
`torchrun --nproc_per_node 2 -m tests.support.processes KIND RECIPE FOLDER`. KIND is ddp or fsdp2."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

from rein_hf.data import samples
from rein_hf.evaluation import evaluate_domain
from rein_hf.head.criterion import Points
from rein_hf.training import SegmentationTrainer
from tests.support.runs import run_recipe


STEPS = ("--max_steps", "5", "--total_batch_size", "4", "--logging_steps", "1", "--save_steps", "5")


# what the interrupted runs do beside training
AVERAGED = ("--ema_decay", "0.75", "--ema_start", "1", "--weight_decay_end", "0.5")


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A copy of a tensor, without shards."""
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone().contiguous()


class Weights(TrainerCallback):
    """Keeps the trained weights after each step."""

    def __init__(self):
        self.found: dict[str, torch.Tensor] = {}

    def on_step_end(self, args, state, control, model=None, **kwargs):
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                self.found[f"{state.global_step}.{name}"] = whole(parameter)


class Gradients(TrainerCallback):
    """Keeps the gradients that the optimizer gets."""

    def __init__(self):
        self.found: dict[str, torch.Tensor] = {}

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                self.found[f"{state.global_step}.{name.removeprefix('module.')}"] = whole(parameter.grad)


@contextmanager
def same_points():
    """Gives all masks the same random points, so that the process and the order of drawing do not matter."""

    def same(outputs: int, rows: Sequence[int], numbers: Sequence[int], device: torch.device) -> Points:
        one = [torch.rand(1, 1, number, 2, generator=torch.Generator().manual_seed(number)) for number in numbers]
        return Points(*(x.repeat(outputs, row, 1, 1).to(device) for x, row in zip(one, rows, strict=True)))

    with patch.object(Points, "draw", same):
        yield


@contextmanager
def watching(callback: TrainerCallback):
    """Gives the trainer a callback."""
    make = SegmentationTrainer.__init__

    def make_with(self, *args, **kwargs):
        make(self, *args, callbacks=[callback], **kwargs)

    with patch.object(SegmentationTrainer, "__init__", make_with):
        yield


def trained(recipe: Path, out: Path, *overrides: str) -> SegmentationTrainer:
    """Trains five steps of four samples, and saves losses and gradients beside the weights."""
    gradients = Gradients()
    with same_points(), watching(gradients):
        trainer = run_recipe(recipe, *STEPS, "--output_dir", str(out), *overrides)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    if trainer.is_world_process_zero():
        save_file({**gradients.found, "losses": torch.tensor(losses, dtype=torch.float64)}, out / "seen.safetensors")
    return trainer


def confusion(trainer: SegmentationTrainer) -> torch.Tensor:
    """The confusion matrix of five images of the first domain; two processes get unequal numbers of them."""
    domain = trainer.domains[0]
    found = evaluate_domain(trainer.model.eval(), trainer.processing_class, domain, trainer.accelerator, limit=5)
    return torch.as_tensor(found[domain.name].confusion)


def non_finite(recipe: Path, out: Path) -> str:
    """The error of a run whose second process gets an image with an infinite pixel in the third step."""
    collate, calls = samples.Collator.__call__, []

    def poisoned(self, batch):
        calls.append(1)
        batch = collate(self, batch)
        if len(calls) == 3 and PartialState().process_index == 1:
            batch["pixel_values"][1] = float("inf")
        return batch

    with patch.object(samples.Collator, "__call__", poisoned):
        try:
            run_recipe(recipe, *STEPS, "--output_dir", str(out), "--save_steps", "1")
        except FloatingPointError as error:
            return str(error)
    return "went on"


def interrupted(recipe: Path, out: Path) -> None:
    """A run that is interrupted in its fourth step and continued, and beside it one that is not interrupted but
    evaluates after each step and saves at the end. Both have a moving average; the second one's weights after each
    step are saved."""
    step, calls = SegmentationTrainer.training_step, []

    def ends(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    often = (*STEPS, *AVERAGED, "--save_steps", "1", "--output_dir")
    with patch.object(SegmentationTrainer, "training_step", ends):
        try:
            run_recipe(recipe, *often, str(out))
        except KeyboardInterrupt:
            pass
    run_recipe(recipe, *often, str(out))
    weights = Weights()
    evaluated = ("--eval_strategy", "steps", "--eval_steps", "1", "--eval_limit", "2", "--save_steps", "5")
    with watching(weights):
        trainer = run_recipe(recipe, *often, f"{out}-straight", *evaluated)
    if trainer.is_world_process_zero():
        save_file(weights.found, f"{out}-straight/seen.safetensors")


@contextmanager
def fsdp2():
    """FSDP2 as `accelerate launch` requests it, but gathered weights are kept after a forward pass: those of an
    evaluation would still be there when the next step begins. accelerate 1.15 does not shard on a CPU although torch
    can, so it is told, while it decides, that the processes have XPUs."""
    environment = {
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_VERSION": "2",
        "FSDP_RESHARD_AFTER_FORWARD": "false",
        "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
        "FSDP_TRANSFORMER_CLS_TO_WRAP": "Dinov2Layer,TransformerDecoderLayer",
        "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
        "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
    }
    create = SegmentationTrainer.create_accelerator_and_postprocess

    def create_on_cpu(self):
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_XPU
        create(self)

    with (
        patch.dict(os.environ, environment),
        patch.object(SegmentationTrainer, "create_accelerator_and_postprocess", create_on_cpu),
    ):
        yield


def ddp(recipe: Path, folder: Path) -> None:
    trainer = trained(recipe, folder / "ddp")
    rank, found = trainer.args.process_index, {"confusion": confusion(trainer)}
    save_file(found, folder / f"found-{rank}.safetensors")
    interrupted(recipe, folder / "ddp-interrupted")
    (folder / f"said-{rank}.txt").write_text(non_finite(recipe, folder / "poisoned"))


def sharded(recipe: Path, folder: Path) -> None:
    with fsdp2():
        trainer = trained(recipe, folder / "fsdp2")
        assert trainer.is_fsdp_enabled and any(isinstance(p, DTensor) for p in trainer.model.parameters())
        interrupted(recipe, folder / "fsdp2-interrupted")


if __name__ == "__main__":
    {"ddp": ddp, "fsdp2": sharded}[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]))
