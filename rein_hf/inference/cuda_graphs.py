"""CUDA graphs of what a model computes: the kernels of a call are launched at once, and not one by one from Python.

Nothing is compiled. The kernels are those of the model as it is, and so are its numbers. A graph computes with the
memory that it was recorded with: what is written there is seen by the next call, and where anything else has changed
(other tensors, parts or adapters, another size of images or type of autocast) another graph is needed.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from ..tuner import BackboneTunerLayer


# Graphs of a model that are kept. They share the memory of what is computed on the way.
MAX_GRAPHS = 16


class Recorder:
    """
    Records what is launched on a GPU. What it records shares memory.

    Args:
        device (`torch.device`): the GPU.

    Attributes:
        calls (`int`): how often what was recorded has been computed again: with each time, memory that others have
            written to is written over.

    Raises:
        ValueError: it is no GPU that CUDA graphs run on.
    """

    def __init__(self, device: torch.device) -> None:
        if device.type != "cuda":
            raise ValueError(
                f"CUDA graphs were asked for (backend='cudagraphs', --cuda_graphs) and the model is on {device}; they "
                "need a GPU. Move the model there first, or do without."
            )
        self.device, self.calls = device, 0
        self._stream = torch.cuda.Stream(device)
        self._memory = torch.cuda.graph_pool_handle()
        self._used = torch.cuda.Event()

    @contextmanager
    def using_memory(self) -> Iterator[None]:
        """For what reads or writes the shared memory: it waits for what others, on other streams, do with it."""
        current = torch.cuda.current_stream(self.device)
        current.wait_event(self._used)
        yield
        self._used.record(current)

    def run(self, call: Callable[[], object]) -> object:
        """Runs a call on the stream that it will be recorded on."""
        current = torch.cuda.current_stream(self.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            result = call()
        current.wait_stream(self._stream)
        return result

    def record(self, call: Callable[[], object]) -> tuple[object, Callable[[], None]]:
        """What a call returns, and how to compute it again, into the same memory. The call itself computes nothing."""
        graph = torch.cuda.CUDAGraph()
        # other threads prepare images meanwhile, and may allocate memory
        recording = torch.cuda.graph(graph, self._memory, self._stream, capture_error_mode="thread_local")
        with torch.cuda.device(self.device), recording:
            result = call()
        return result, graph.replay


class ModelState:
    """What a graph of a model depends on besides its inputs: the model's parts, tensors, adapters, modes (training or
    not) and settings. What is written into a tensor changes nothing of it, except where a layer may have kept what it
    computed of that."""

    def __init__(self, model: nn.Module) -> None:
        modules = list(model.modules())
        entries = [part for module in modules for part in (module._modules, module._parameters, module._buffers)]
        self._found = [(entry, name, value) for entry in entries for name, value in entry.items()]
        self._tensors = [(value, value.data_ptr()) for *_, value in self._found if isinstance(value, torch.Tensor)]
        self._adapted = [one for one in modules if isinstance(one, (BaseTunerLayer, AuxiliaryTrainingWrapper))]
        self._loaded = [(one, one.times_loaded) for one in modules if isinstance(one, BackboneTunerLayer)]
        self._modes = [(module, module.training) for module in modules]
        configs = {id(config): config for module in modules if (config := getattr(module, "config", None)) is not None}
        self._configs = [(config, self._settings(config)) for config in configs.values()]

    def holds(self) -> bool:
        """Whether all parts and tensors are still there, at the same place in memory, and all modes and settings as
        they were."""
        return (
            all(entry.get(name) is value for entry, name, value in self._found)
            and all(tensor.data_ptr() == pointer for tensor, pointer in self._tensors)
            and all(layer.times_loaded == times for layer, times in self._loaded)
            and all(module.training is mode for module, mode in self._modes)
            and all(self._settings(config) == settings for config, settings in self._configs)
        )

    @staticmethod
    def _settings(config: object) -> tuple:
        """What may be changed of a configuration once a model is made of it."""
        return tuple(getattr(config, "out_indices", None) or ()), getattr(config, "_attn_implementation", None)

    def adapters(self) -> tuple:
        """Which adapters are active, which of them are merged, and whether they are disabled."""
        return tuple(
            (tuple(one.active_adapters), one.disable_adapters, tuple(getattr(one, "merged_adapters", ())))
            for one in self._adapted
        )

    def trained(self) -> tuple[bool, ...]:
        """Which tensors require gradients."""
        return tuple(tensor.requires_grad for tensor, _ in self._tensors)


class ReadTensors(TorchDispatchMode):
    """Collects the tensors that operators read and none of them has made: parameters, and what a model has kept."""

    def __init__(self) -> None:
        super().__init__()
        self.tensors: dict[int, torch.Tensor] = {}
        self._made: set[int] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        for tensor in _tensors((args, kwargs)):
            if (storage := tensor.untyped_storage()._cdata) not in self._made:
                self.tensors[storage] = tensor
        result = function(*args, **kwargs)
        self._made |= {tensor.untyped_storage()._cdata for tensor in _tensors(result)} - self.tensors.keys()
        return result


class Graph:
    """A recorded call.

    Args:
        recorder ([`Recorder`]): of all graphs of a model.
        call: function of the inputs; returns tensors, in any structure.
        inputs: tensors like those of later calls.
    """

    def __init__(self, recorder: Recorder, call: Callable[..., object], inputs: list[torch.Tensor]) -> None:
        self.recorder = recorder
        self._inputs = [torch.empty_like(one).copy_(one) for one in inputs]
        call = partial(call, *self._inputs)
        with ReadTensors() as read:
            recorder.run(partial(self._compute, call))
        self._read = list(read.tensors.values())  # their memory must not go to others while there is the graph
        self._record(call)

    def _compute(self, call: Callable[[], object]) -> None:
        """All that is to be recorded, as it is computed without a graph."""
        call()

    def _record(self, call: Callable[[], object]) -> None:
        result, self._replay = self.recorder.record(call)
        self._outputs, self._structure = tree_flatten(result)

    def __call__(self, inputs: list[torch.Tensor]) -> object:
        """The same for other inputs, in memory of its own."""
        with self.recorder.using_memory():
            self._compute_for(inputs)
            return tree_unflatten([output.clone() for output in self._outputs], self._structure)

    def _compute_for(self, inputs: list[torch.Tensor]) -> None:
        for memory, one in zip(self._inputs, inputs, strict=True):
            memory.copy_(one)
        self.recorder.calls += 1
        self._replay()


class OfOneModel:
    """Belongs to one model: a copy of the model has none."""

    def __deepcopy__(self, memo: dict) -> None:
        return None


class GraphedCalls(OfOneModel, ABC):
    """
    A function that calls a model, recorded and replayed.

    The first call of a kind is computed as always, which chooses kernels and computes what is kept; the second one is
    recorded, and later ones are replayed. Hooks of the model's parts run when a call is recorded, not when it is
    replayed.

    Args:
        model: the model.
        call: the function, which is given tensors and other values by position or name.

    Raises:
        ValueError: the model is not on a GPU.
        RuntimeError: when a call cannot be recorded.
    """

    def __init__(self, model: nn.Module, call: Callable[..., object]) -> None:
        self.model, self.call = model, call
        self._lock = threading.Lock()
        self._forget()

    def _forget(self) -> None:
        self.recorder = Recorder(next(self.model.parameters()).device)
        self.state = ModelState(self.model)
        self._graphs: dict[tuple, Graph | None] = {}

    def __call__(self, *args, **kwargs) -> object:
        values = (*args, *kwargs.values())
        if not self.applies(_tensors(values)):
            return self.call(*args, **kwargs)
        with self._lock:
            if not self.state.holds():
                self._forget()
            key = (len(args), *kwargs, *map(_kind, values), *self.depends_on())
            if key in self._graphs:
                if self._graphs[key] is None:
                    self._graphs[key] = self._recorded(args, kwargs)
                return self._graphs[key](_tensors(values))
            if len(self._graphs) == MAX_GRAPHS:
                del self._graphs[next(iter(self._graphs))]
            self._graphs[key] = None
        return self.call(*args, **kwargs)

    def _recorded(self, args: tuple, kwargs: dict) -> Graph:
        values, structure = tree_flatten((args, kwargs))
        device, (enabled, dtype) = self.recorder.device.type, self._autocast()

        def call(*inputs: torch.Tensor) -> object:
            given = iter(inputs)
            found = [next(given) if isinstance(value, torch.Tensor) else value for value in values]
            args, kwargs = tree_unflatten(found, structure)
            # what autocast keeps lives as long as its context, and a graph longer
            with torch.autocast(device, dtype, enabled=enabled, cache_enabled=False):
                return self.call(*args, **kwargs)

        self.state = ModelState(self.model)  # with adapters that are new
        try:
            with torch.inference_mode(False):
                return self.graph(call, _tensors(values))
        except RuntimeError as error:
            raise RuntimeError(
                f"No CUDA graph of this {type(self.model).__name__} could be recorded: {error} A part or a hook of it "
                "waits for the GPU or copies from the host, or memory is short. Do without CUDA graphs."
            ) from error

    def depends_on(self) -> tuple:
        """What a graph depends on besides its inputs and the state of the model."""
        return *self._autocast(), self.state.adapters()

    def _autocast(self) -> tuple[bool, torch.dtype]:
        """Whether autocast is on, and its type."""
        device = self.recorder.device.type
        return torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)

    @abstractmethod
    def applies(self, inputs: list[torch.Tensor]) -> bool:
        """Whether a call that is made now is one of those that are recorded."""

    @abstractmethod
    def graph(self, call: Callable[..., object], inputs: list[torch.Tensor]) -> Graph:
        """Records a call, a function of tensors."""


class GraphedInference(GraphedCalls):
    """Calls without gradients of a model in eval mode; all others are computed as always."""

    def applies(self, inputs: list[torch.Tensor]) -> bool:
        return not (torch.is_grad_enabled() or self.model.training)

    def graph(self, call: Callable[..., object], inputs: list[torch.Tensor]) -> Graph:
        with torch.no_grad():
            return Graph(self.recorder, call, inputs)


def _tensors(tree: object) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def _kind(value: object) -> object:
    """What a graph depends on of an argument: the value itself if it is no tensor."""
    return (value.shape, value.dtype, value.device) if isinstance(value, torch.Tensor) else value
