"""Factors of all blocks, computed once per forward pass without gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from .factors import Factors


class SharedFactors:
    """
    What the blocks of a [`ReinLayer`] share during one forward pass without gradients: the first refined block
    computes the factors of all blocks, each later one takes its own, and the last one drops them. Nothing is kept
    between two forward passes, so new weights are seen at once.

    With gradients, and while torch.compile traces, each block computes its own factors: gradient checkpointing may
    repeat a block.
    """

    def __init__(self) -> None:
        # adapter, block that comes next, type; and the factors of all blocks
        self.pending: tuple[tuple[str, int, torch.dtype], Factors] | None = None

    def of_block(
        self,
        compute: Callable[[str, int | slice], Factors],
        adapter_name: str,
        blocks: Sequence[int],
        index: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> Factors:
        """The factors of one block, on the device and in the type of its features.

        Args:
            compute: [`ReinLayer.factors`].
            adapter_name (`str`): name of the adapter.
            blocks: the refined blocks, in the order of their tokens.
            index (`int`): the block, one of `blocks`.
            device, dtype: where the block's features are, and the type to compute in.
        """
        row = blocks.index(index)
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return compute(adapter_name, row).to(device, dtype)
        pending, self.pending = self.pending, None
        expected = pending is not None and pending[0] == (adapter_name, index, dtype)
        if expected and pending[1].weight.device == device:
            factors = pending[1]
        elif expected or index == min(blocks):
            # the first block, or the first one on another device
            factors = compute(adapter_name, slice(None)).to(device, dtype)
        else:  # this block was called out of order, or from another thread
            return compute(adapter_name, row).to(device, dtype)
        later = [block for block in blocks if block > index]
        if later:
            self.pending = (adapter_name, min(later), dtype), factors
        return factors.of_block(row)
