"""Losses and weights that are not finite, found before they do harm."""

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
    Watches the losses of a step. Whether all are finite is computed on the device and copied without waiting; it is
    asked for when the backward pass is on its way, so a device is never left idle for it. One number is reduced per
    step, and all processes get the same answer.

    Args:
        accelerator: of the run.
    """

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self.losses: list[tuple[torch.Tensor, list[str], dict[str, Any]]] = []
        self._count, self._copied = None, None

    def watch(self, loss: torch.Tensor, names: list[str], batch: dict[str, Any]) -> None:
        """To be called with the loss of each micro-batch, before its backward pass."""
        if self._count is not None:  # of the step before
            self.losses, self._count, self._copied = [], None, None
        self.losses.append((loss.detach(), names, batch))
        if self.accelerator.sync_gradients:
            bad = sum((~loss.isfinite()).float() for loss, _, _ in self.losses)
            self._count = self.accelerator.reduce(bad, reduction="sum").to("cpu", non_blocking=True)
            if loss.is_cuda:
                self._copied = torch.cuda.Event()
                self._copied.record()

    def found(self) -> bool:
        """Whether any process has a loss in this step that is not finite; to be asked before the optimizer's step."""
        if self._copied is not None:
            self._copied.synchronize()
        return bool(self._count)

    def save(self, folder: Path, step: int) -> str:
        """Writes the batches of such losses as safetensors (lists of tensors as `name.0`, `name.1`, ...), and says in
        a sentence what they are. All processes call it."""
        rank, mine = self.accelerator.process_index, []
        for index, (loss, names, batch) in enumerate(self.losses):
            if loss.isfinite():
                continue
            tensors = {}
            for key, value in batch.items():
                values = {key: value} if torch.is_tensor(value) else {f"{key}.{i}": v for i, v in enumerate(value)}
                tensors |= {name: tensor.cpu().contiguous() for name, tensor in values.items()}
            file = f"batch-{rank}-{index}.safetensors"
            save_file(tensors, folder / file, metadata={"samples": "\n".join(names), "loss": str(loss.item())})
            mine.append(f"{loss.item()} for {', '.join(names) or 'unnamed images'} ({file})")
        return f"The loss of step {step} is {'; '.join(gather_object(mine))}."


def non_finite_parameters(model: nn.Module, accelerator: Accelerator) -> list[str]:
    """Names of the trainable parameters that hold a value that is not finite, in any process."""
    names, finite = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            values = parameter.detach()
            names.append(name)
            finite.append((values.to_local() if isinstance(values, DTensor) else values).isfinite().all())
    bad = accelerator.reduce((~torch.stack(finite)).float(), reduction="sum")
    return [name for name, count in zip(names, bad.tolist(), strict=True) if count]
