"""The forward hook by which a block's output is refined."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch._C._functorch import peek_interpreter_stack

from .base import LayerHook


if TYPE_CHECKING:
    from .layer import ReinLayer


class RefinementHook(LayerHook):
    """
    Forward hook of one block of a [`ReinLayer`]: gives the block's output to the layer, which refines it.

    Args:
        layer ([`ReinLayer`]): see [`LayerHook`].
        index (`int`): number of the block in it, counted from 0.
    """

    def __init__(self, layer: ReinLayer, index: int) -> None:
        super().__init__(layer)
        self.index = index

    def forward(self, block: nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor | None:
        return self.layer().refine_output(self.index, block, output, self._may_write(block, args, output))

    def _may_write(self, block: nn.Module, args: tuple, output: torch.Tensor) -> bool:
        """Whether nobody else has the block's output or will differentiate through it."""
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or peek_interpreter_stack() is not None:
            return False
        # by a hook that runs before
        seen = next(iter(block._forward_hooks.values())) is not self or torch.nn.modules.module._global_forward_hooks
        return not (seen or not args or output is args[0] or output._is_view())
