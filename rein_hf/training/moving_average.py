"""An exponential moving average of the trained weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn
from transformers import TrainerCallback


# In a checkpoint beside the averaged weights: those that training goes on with.
UNAVERAGED_WEIGHTS = "unaveraged_weights.safetensors"


class MovingAverage(TrainerCallback):
    """
    An exponential moving average of the trained weights, as torch's `AveragedModel` computes it, but of these alone:
    the frozen backbone is not copied. After `start` steps it is a copy of the weights; after each further step,
    `average = decay * average + (1 - decay) * weights`. Of a sharded model, each process averages its shards. Buffers
    are not averaged: running statistics are averages already.

    Args:
        decay (`float`): of the average, between 0 and 1.
        start (`int`): number of steps before it.

    Raises:
        TypeError: in training, when a trained weight is not in float32, in which an average would stand still.
    """

    def __init__(self, decay: float, start: int = 0):
        self.decay, self.start = decay, start
        self._update = get_ema_multi_avg_fn(decay)
        self._model: nn.Module | None = None
        self._parameters: dict[str, nn.Parameter] = {}
        self._averages: list[torch.Tensor] | None = None

    def on_train_begin(self, args, state, control, model=None, **kwargs) -> None:
        if self._averages is None:
            self._follow(model, state.global_step)
        if state.is_world_process_zero:
            share = self.decay ** (state.max_steps - self.start)
            print(
                f"Note: after step {self.start}, what is evaluated and saved is the moving average of the trained "
                f"weights, with ema_decay {self.decay}. At the end, those of step {self.start} make up "
                f"{100 * share:.2g} % of it."
            )

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if self._averages is not None:
            self._update(self._averages, self._weights(), None)
        elif state.global_step == self.start:
            self._averages = _copies(self._weights())

    def on_train_end(self, args, state, control, **kwargs) -> None:
        self.keep()

    def resume(self, model: nn.Module, step: int, checkpoint: Path) -> None:
        """Continues at a checkpoint that `save` has written, whose averaged weights the model has by now.

        Args:
            model: as it is trained: sharded, if it will be.
            step (`int`): of the checkpoint.
            checkpoint: its folder.

        Raises:
            ValueError: its file holds other weights than those that the model trains.
            OSError: it has no such file.
        """
        self._follow(model, step)
        if step <= self.start:
            return
        path = checkpoint / UNAVERAGED_WEIGHTS
        tensors = load_file(path)
        shapes = {name: parameter.shape for name, parameter in self._parameters.items()}
        if {name: tensor.shape for name, tensor in tensors.items()} != shapes:
            differ = sorted(name for name in shapes.keys() ^ tensors.keys()) or "of other shapes"
            raise ValueError(f"{path} holds other weights than those that are trained: {differ}.")
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                if isinstance(parameter, DTensor):
                    mesh, placements = parameter.device_mesh, parameter.placements
                    tensor = distribute_tensor(tensors[name].to(mesh.device_type), mesh, placements)
                    parameter.to_local().copy_(tensor.to_local())
                else:
                    parameter.copy_(tensors[name])

    def save(self, checkpoint: Path, is_main_process: bool) -> None:
        """Writes the weights that training goes on with, beside their average. All processes have to call it."""
        if self._averages is None or not self._parameters:
            return
        tensors = {}
        for name, parameter in self._parameters.items():
            tensor = parameter.detach()
            tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
            if is_main_process:
                tensors[name] = tensor.cpu().contiguous()
        if is_main_process:
            save_file(tensors, checkpoint / UNAVERAGED_WEIGHTS)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model has the averaged weights in this block, where there is an average yet."""
        if self._averages is None:
            yield
            return
        kept = _copies(self._weights())
        self._set(self._averages)
        try:
            yield
        finally:
            self._set(kept)

    def keep(self) -> None:
        """The model has the averaged weights from now on, and they are averaged no more."""
        if self._averages is not None:
            self._set(self._averages)
        self._averages, self._parameters, self._model = None, {}, None

    def _follow(self, model: nn.Module, step: int) -> None:
        self._model = model
        self._parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        kinds = {str(parameter.dtype) for parameter in self._parameters.values()} - {"torch.float32"}
        if kinds:
            raise TypeError(f"weights of {', '.join(kinds)} are trained; a moving average needs float32.")
        if step >= self.start:
            self._averages = _copies(self._weights())

    def _weights(self) -> list[torch.Tensor]:
        """The trained weights themselves, of a sharded model the shards of this process."""
        weights = (parameter.detach() for parameter in self._parameters.values())
        return [weight.to_local() if isinstance(weight, DTensor) else weight for weight in weights]

    @torch.no_grad()
    def _set(self, values: list[torch.Tensor]) -> None:
        for module in self._model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()  # after a forward pass without a backward one it would go on with what it gathered
        torch._foreach_copy_(self._weights(), values)


def _copies(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    return [tensor.clone() for tensor in tensors]
