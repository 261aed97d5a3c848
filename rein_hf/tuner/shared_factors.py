"""Factors of all blocks, computed once per forward pass."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import torch
from torch import nn

from .base import without_autocast
from .factors import Factors, RefinementWeights


class SharedFactors:
    """
    What the blocks of a [`ReinLayer`] share during one forward pass: the first refined block computes the factors of
    all blocks, each later one takes its own, and the last one drops them. Nothing is kept between two forward passes,
    so new weights are seen at once, unless the weights are said to be fixed. While torch.compile traces, each block
    computes its own factors.
    """

    def __init__(self) -> None:
        # what the next block has to be; and the factors of all blocks
        self.pending: tuple[tuple, dict[int, Factors]] | None = None
        # of fixed weights: by adapter, device and type
        self.kept: dict[tuple, dict[int, Factors]] = {}

    def forget(self) -> None:
        """To be called where weights are others now."""
        self.pending = None
        self.kept.clear()

    def __getstate__(self) -> dict:
        # copies of a model share nothing with a forward pass that did not end
        return {"pending": None, "kept": {}}

    def of_block(
        self,
        compute: Callable[[str, int | slice], Factors],
        adapter_name: str,
        blocks: Sequence[int],
        index: int,
        device: torch.device,
        dtype: torch.dtype,
        fixed: bool = False,
    ) -> Factors:
        """The factors of one block, on the device and in the type of its features.

        Args:
            compute: [`ReinLayer.factors`].
            adapter_name (`str`): name of the adapter.
            blocks: the refined blocks, in the order of their tokens.
            index (`int`): the block, one of `blocks`.
            device, dtype: where the block's features are, and the type to compute in.
            fixed (`bool`): whether the weights stay as they are, so that their factors are kept for further passes.
        """
        if torch.compiler.is_compiling():
            return compute(adapter_name, blocks.index(index)).to(device, dtype)

        def of_all_blocks() -> dict[int, Factors]:
            return dict(zip(blocks, compute(adapter_name, slice(None)).to(device, dtype).unbind(), strict=True))

        if fixed and not torch.is_grad_enabled():
            key = (adapter_name, device, dtype)
            if key not in self.kept:
                self.kept[key] = of_all_blocks()
            return self.kept[key][index]
        pass_of_block = (adapter_name, dtype, torch.is_grad_enabled(), threading.get_ident())
        pending, self.pending = self.pending, None
        expected = pending is not None and pending[0] == (index, *pass_of_block)
        if expected and pending[1][index].weight.device == device:
            factors = pending[1]
        elif expected or index == min(blocks):
            # the first block, or the first one on another device
            factors = of_all_blocks()
        else:  # this block was called out of order, or from another thread
            return compute(adapter_name, blocks.index(index)).to(device, dtype)
        later = [block for block in blocks if block > index]
        if later:
            self.pending = (min(later), *pass_of_block), factors
        return factors[index]


def compute_factors(weights: RefinementWeights, row: int | slice) -> Factors:
    """The factors of one refined block or of several, where the weights are and in their type.

    With gradients, autograd stores nothing for them: they are few, and are computed once more in the backward pass. So
    it makes no difference whether a block computes its factors or finds them computed: several forward passes may
    share factors and call `backward` one after the other, and checkpointing may repeat a block alone.
    """
    # other tensors stand for parameters under torch.func's transforms, which such a function would not follow
    if torch.compiler.is_compiling() or not (
        torch.is_grad_enabled() and all(isinstance(tensor, nn.Parameter) for tensor in weights.tensors())
    ):
        return Factors.of_weights(weights.of_blocks(row))
    weights = weights.of_blocks(row)
    template: list[Factors] = []
    tensors = _FactorsOfWeights.apply(template, weights, *weights.tensors())
    return template[0].with_tensors(tensors)


class _FactorsOfWeights(torch.autograd.Function):
    """[`Factors.of_weights`], of which autograd stores no more than the weights."""

    @staticmethod
    def forward(ctx, template: list[Factors], weights: RefinementWeights, *tensors: torch.Tensor):
        ctx.weights, ctx.versions = weights, [tensor._version for tensor in tensors]
        ctx.set_materialize_grads(False)
        factors = Factors.of_weights(weights)
        template.append(factors)
        return factors.tensors()

    @staticmethod
    def backward(ctx, *gradients: torch.Tensor | None):
        tensors, needed = ctx.weights.tensors(), ctx.needs_input_grad[2:]
        if [tensor._version for tensor in tensors] != ctx.versions:
            raise RuntimeError(
                "Weights of Rein, of which gradients are computed, have been modified by an inplace operation since "
                "the forward pass. Call backward() before the optimizer's step(), and run the model anew after it."
            )
        create_graph = torch.is_grad_enabled()
        with torch.enable_grad(), without_autocast(tensors[0].device.type):
            # views, since hooks of the parameters run when autograd reaches these, and only then
            aliases = [tensor.view_as(tensor) for tensor in tensors]
            outputs = Factors.of_weights(ctx.weights.with_tensors(aliases)).tensors()
        pairs = [
            pair for pair in zip(outputs, gradients, strict=True) if pair[0].requires_grad and pair[1] is not None
        ]
        inputs = [alias for alias, need in zip(aliases, needed, strict=True) if need]
        if not pairs:
            return (None,) * (2 + len(tensors))
        found = iter(
            torch.autograd.grad(
                [output for output, _ in pairs],
                inputs,
                [gradient for _, gradient in pairs],
                create_graph=create_graph,
                allow_unused=True,
            )
        )
        return None, None, *(next(found) if need else None for need in needed)
