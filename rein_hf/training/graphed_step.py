"""CUDA graphs of a training step up to its loss, and of the backward pass through it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.utils._pytree import tree_leaves, tree_unflatten

from ..inference.cuda_graphs import Graph, GraphedCalls, Recorder


class TrainingGraph(Graph):
    """
    A recorded call with its backward pass.

    What it returns, and what its backward pass needs, is in memory that the next call writes over: there is one
    backward pass for a call, before the next one.

    Args:
        recorder ([`Recorder`]), call, inputs: as of [`Graph`].
        weights: what gradients are computed of.
        leaves: what the call uses in their place, see [`separate_leaves`].
        buffers: what the call may write into.
    """

    def __init__(
        self,
        recorder: Recorder,
        call: Callable[..., object],
        inputs: list[torch.Tensor],
        weights: list[nn.Parameter],
        leaves: list[nn.Parameter],
        buffers: list[torch.Tensor],
    ) -> None:
        self._weights, self._leaves, self._buffers = weights, leaves, buffers
        super().__init__(recorder, call, inputs)

    def _compute(self, call: Callable[[], object]) -> None:
        # this step does not count: neither for random numbers nor for the statistics of norms
        device = self.recorder.device
        buffers = [buffer.clone() for buffer in self._buffers]
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            outputs = [output for output in tree_leaves(call()) if output.requires_grad]
            self._gradients(outputs, [torch.zeros_like(output) for output in outputs])
        with torch.no_grad():
            for buffer, before in zip(self._buffers, buffers, strict=True):
                buffer.copy_(before)

    def _gradients(self, outputs: list[torch.Tensor], gradients: list[torch.Tensor]) -> tuple:
        with torch.autocast(self.recorder.device.type, enabled=False):  # on in the call alone, as torch advises
            return torch.autograd.grad(outputs, self._leaves, gradients, allow_unused=True)

    def _record(self, call: Callable[[], object]) -> None:
        super()._record(call)
        self._differentiable = [output.requires_grad for output in self._outputs]
        outputs = [output for output in self._outputs if output.requires_grad]
        self._of_results = [torch.zeros_like(output) for output in outputs]
        self._written: set[int] = set()
        self._of_weights, self._replay_backward = self.recorder.record(
            lambda: self._gradients(outputs, self._of_results)
        )
        self._outputs = [output.detach() for output in self._outputs]

    def __call__(self, inputs: list[torch.Tensor]) -> object:
        with self.recorder.using_memory():
            self._compute_for(inputs)
        return tree_unflatten(_Step.apply(self, *self._weights), self._structure)

    def results(self) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """The tensors of the last call, and those of them that have no gradient."""
        results = [output.detach() for output in self._outputs]
        pairs = zip(results, self._differentiable, strict=True)
        return results, [result for result, differentiable in pairs if not differentiable]

    def backward(self, call: int, gradients: tuple[torch.Tensor | None, ...]) -> list[torch.Tensor | None]:
        """The gradients of the weights, in memory of their own.

        Args:
            call (`int`): number of the call, see [`Recorder`].
            gradients: of the results; `None` for those that nothing was computed from.
        """
        if call != self.recorder.calls:
            raise RuntimeError(
                "backward() of a step whose memory others have written to: with CUDA graphs (backend 'cudagraphs') "
                "call it once for each forward pass, and before the next one. Without them there is no such order."
            )
        self.recorder.calls += 1
        pairs = zip(gradients, self._differentiable, strict=True)
        given = [gradient for gradient, differentiable in pairs if differentiable]
        for place, (memory, gradient) in enumerate(zip(self._of_results, given, strict=True)):
            if gradient is not None:
                memory.copy_(gradient)
                self._written.add(place)
            elif place in self._written:
                memory.zero_()
                self._written.remove(place)
        self._replay_backward()
        found = [gradient for gradient in self._of_weights if gradient is not None]
        copies = [torch.empty_like(gradient) for gradient in found]
        torch._foreach_copy_(copies, found)
        left = iter(copies)
        return [None if gradient is None else next(left) for gradient in self._of_weights]


class _Step(torch.autograd.Function):
    """The last call of a graph, as autograd sees it."""

    @staticmethod
    def forward(ctx, graph: TrainingGraph, *weights: nn.Parameter) -> tuple[torch.Tensor, ...]:
        ctx.graph, ctx.call = graph, graph.recorder.calls
        ctx.set_materialize_grads(False)
        results, without_gradient = graph.results()
        ctx.mark_non_differentiable(*without_gradient)
        return tuple(results)

    @staticmethod
    @once_differentiable
    def backward(ctx, *gradients: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        return None, *ctx.graph.backward(ctx.call, gradients)


class GraphedSteps(GraphedCalls):
    """Calls with gradients of the weights of a model in training mode; all others are computed as always."""

    def applies(self, inputs: list[torch.Tensor]) -> bool:
        of_inputs = any(tensor.requires_grad for tensor in inputs)
        return torch.is_grad_enabled() and self.model.training and not of_inputs

    def depends_on(self) -> tuple:
        return *super().depends_on(), *self.state.trained()

    def graph(self, call: Callable[..., object], inputs: list[torch.Tensor]) -> Graph:
        with separate_leaves(self.model) as leaves:
            weights, buffers = list(leaves), list(self.model.buffers())
            return TrainingGraph(self.recorder, call, inputs, weights, list(leaves.values()), buffers)


@contextmanager
def separate_leaves(model: nn.Module) -> Iterator[dict[nn.Parameter, nn.Parameter]]:
    """Other parameters, of the same memory, in the place of those that require gradients.

    Where a weight's gradient is added, autograd remembers on which stream it was used first, for as long as a former
    step's loss or `DistributedDataParallel` refers to that: it would make this stream wait for one that is recorded.
    """
    leaves = {weight: nn.Parameter(weight.detach()) for weight in model.parameters() if weight.requires_grad}
    entries = [
        (module._parameters, name, weight)
        for module in model.modules()
        for name, weight in module._parameters.items()
        if weight in leaves
    ]
    try:
        for parameters, name, weight in entries:
            parameters[name] = leaves[weight]
        yield leaves
    finally:
        for parameters, name, weight in entries:
            parameters[name] = weight
