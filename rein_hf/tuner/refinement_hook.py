"""The forward hook by which a block's output is refined."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch._C._functorch import peek_interpreter_stack


if TYPE_CHECKING:
    from .layer import ReinLayer


class RefinementHook(nn.Module):
    """
    Forward hook of one block of a [`ReinLayer`]: gives the block's output to the layer, which refines it.

    It is a module, though no submodule of any other, because torch.compile keeps the attributes of a module constant.
    An integer that a function closes over or that `functools.partial` binds becomes symbolic as soon as the hook of a
    second block is traced, and a symbolic integer cannot say which block it is.

    Args:
        layer ([`ReinLayer`]): the layer; it is not registered as a submodule.
        index (`int`): number of the block in it, counted from 0.
    """

    def __init__(self, layer: ReinLayer, index: int) -> None:
        super().__init__()
        self.index = index
        self._layer = (layer,)  # a tuple registers no submodule

    def forward(self, block: nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor | None:
        return self._layer[0].refine_output(self.index, block, output, self._may_write(block, args, output))

    def _may_write(self, block: nn.Module, args: tuple, output: torch.Tensor) -> bool:
        """Whether nobody else has the block's output or will differentiate through it."""
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or peek_interpreter_stack() is not None:
            return False
        seen = next(iter(block._forward_hooks.values())) is not self  # by a hook that runs before
        return not (seen or not args or output is args[0] or output._is_view())
