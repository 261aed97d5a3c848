"""A layer of an adapter in the place of a list of blocks."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from .base import BackboneTunerLayer


class BlockListLayer(nn.Module, BackboneTunerLayer):
    """A layer that is iterated over and indexed like the list of blocks that it replaces, `base_layer`."""

    base_layer: nn.ModuleList
    num_prefix_tokens: int

    def forward(self, *args, **kwargs):
        raise NotImplementedError("A list of blocks is iterated over, not called.")

    def __len__(self) -> int:
        return len(self.base_layer)

    def __iter__(self) -> Iterator[nn.Module]:
        return iter(self.base_layer)

    def __getitem__(self, index: int | slice) -> nn.Module:
        return self.base_layer[index]

    def check_prefix(self, tokens: torch.Tensor) -> None:
        """Refuses tokens (B, P + N, c) or (B, H, W, c) with nothing behind `num_prefix_tokens`, which an architecture
        that is not known does not tell. Compiled graphs are not asked, whose sizes may be symbols."""
        if torch.compiler.is_compiling() or torch.jit.is_tracing() or tokens.shape[1] > self.num_prefix_tokens:
            return
        raise ValueError(
            f"num_prefix_tokens of {self.method} is {self.num_prefix_tokens}, a block has {tokens.shape[1]} tokens; "
            "expected the number of class and register tokens, and patches behind them."
        )
