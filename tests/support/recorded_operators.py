"""What a CUDA graph does, on a CPU: operators are recorded with the memory that they read and write, and run again."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from rein_hf.inference import cuda_graphs


# Operators whose result depends on values that the host has to ask for.
WAITING = {"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::bincount", "aten::_unique2"}


class RecordedOperators(TorchDispatchMode):
    """The operators of a call, with their arguments and what they returned.

    As with a CUDA graph, nothing is left of the call afterwards but what it returned.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operators: list[tuple] = []
        self._made: set[int] = set()
        self._before: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function.name().partition(".")[0] in WAITING:
            raise RuntimeError(f"{function} would wait for the GPU, which no CUDA graph can record")
        for argument, value in zip(function._schema.arguments, args, strict=False):
            writes = argument.alias_info is not None and argument.alias_info.is_write
            # which the declaration of `native_batch_norm` does not say
            if writes or argument.name in ("running_mean", "running_var"):
                for tensor in tensors_of(value):
                    if storage_of(tensor) not in self._made:
                        self._before.setdefault(storage_of(tensor), (tensor, tensor.clone()))
        result = function(*args, **kwargs)
        self._made |= {storage_of(one) for one in tensors_of(result)} - {storage_of(one) for one in tensors_of(args)}
        self.operators.append((function, args, kwargs, result))
        return result

    def undo(self) -> None:
        """Gives memory that others had before what was there."""
        for tensor, before in self._before.values():
            tensor.data.copy_(before)  # autograd is not to see it

    def replay(self) -> None:
        """Computes all again, into the memory of the first results."""
        # whoever counts what is launched sees nothing of it
        with torch.no_grad(), torch.autocast("cpu", enabled=False), _disable_current_modes():
            for function, args, kwargs, result in self.operators:
                read = {storage_of(one) for one in tensors_of((args, kwargs))}
                again = function(*args, **kwargs)
                for one, other in zip(tree_leaves(result), tree_leaves(again), strict=True):
                    if isinstance(one, torch.Tensor) and storage_of(other) not in read:
                        one.copy_(other)


class OperatorRecorder:
    """Stands for [`rein_hf.inference.cuda_graphs.Recorder`] on a CPU."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.calls = device, 0

    def using_memory(self):
        return nullcontext()

    def run(self, call):
        return call()

    def record(self, call):
        with torch.random.fork_rng([]), RecordedOperators() as operators:
            result = call()
        operators.undo()
        return result, operators.replay


# Where recorded calls are tested.
GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, GPU])]


def recording_on(device: str, monkeypatch: pytest.MonkeyPatch) -> tuple[str, list]:
    """Lets calls be recorded on a device; returns it, and a list that grows with each of them."""
    recorder = OperatorRecorder if device == "cpu" else cuda_graphs.Recorder
    recorded = []

    class Counting(recorder):
        def record(self, call):
            recorded.append(call)
            return super().record(call)

    monkeypatch.setattr(cuda_graphs, "Recorder", Counting)
    return device, recorded


def tensors_of(tree: object) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def storage_of(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata
