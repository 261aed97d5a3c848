"""Finds losses and weights that are infinite or not a number before they damage a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from safetensors.torch import save_file
from torch import nn
from torch.distributed.tensor import DTensor


class LossGuard:
    """
    Checks that the losses of a step are finite, without making the device wait: the check is computed on the device,
    copied asynchronously, and read only after the backward pass has been queued. One number is reduced per step, so
    all processes get the same answer.

    Args:
        accelerator: the `Accelerator` of the run.
    """

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self.losses: list[tuple[torch.Tensor, list[str], dict[str, Any]]] = []
        # how many losses of the step are not finite, on the CPU once the event `_copied` has happened
        self._count, self._copied = None, None

    def watch(self, loss: torch.Tensor, names: list[str], batch: dict[str, Any]) -> None:
        """Takes the loss of a micro-batch; to be called before its backward pass."""
        self.losses.append((loss.detach(), names, batch))
        if self.accelerator.sync_gradients:
            bad = sum((~loss.isfinite()).float() for loss, _, _ in self.losses)
            self._count = self.accelerator.reduce(bad, reduction="sum").to("cpu", non_blocking=True)
            if loss.is_cuda:
                self._copied = torch.cuda.Event()
                self._copied.record()

    def found(self) -> bool:
        """Whether a loss of this step is not finite in any process; to be called before the optimizer's step."""
        if self._copied is not None:
            self._copied.synchronize()
        found = bool(self._count)
        if not found:  # nothing to save: the batches need not be there any longer
            self.losses, self._count, self._copied = [], None, None
        return found

    def save(self, folder: Path, step: int) -> str:
        """Writes the batches whose losses are not finite as safetensors (lists of tensors as `name.0`, `name.1`, ...).
        All processes have to call it.

        Returns:
            A sentence for people with the step, losses, images and files of all processes.
        """
        rank, descriptions = self.accelerator.process_index, []
        for index, (loss, names, batch) in enumerate(self.losses):
            if loss.isfinite():
                continue
            tensors = {}
            for key, value in batch.items():
                values = {key: value} if torch.is_tensor(value) else {f"{key}.{i}": v for i, v in enumerate(value)}
                tensors |= {name: tensor.cpu().contiguous() for name, tensor in values.items()}
            file = f"batch-{rank}-{index}.safetensors"
            save_file(tensors, folder / file, metadata={"samples": "\n".join(names), "loss": str(loss.item())})
            descriptions.append(f"{loss.item()} for {', '.join(names) or 'unnamed images'} ({file})")
        return f"The loss of step {step} is {'; '.join(gather_object(descriptions))}."


def non_finite_parameters(model: nn.Module, accelerator: Accelerator) -> list[str]:
    """Names of the trainable parameters that hold an infinite value or NaN in any process."""
    names, finite = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            values = parameter.detach()
            names.append(name)
            finite.append((values.to_local() if isinstance(values, DTensor) else values).isfinite().all())
    bad = accelerator.reduce((~torch.stack(finite)).float(), reduction="sum")
    return [name for name, count in zip(names, bad.tolist(), strict=True) if count]
