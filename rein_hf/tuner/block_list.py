"""A layer of an adapter in the place of a list of blocks."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from .base import BackboneTunerLayer


class BlockListLayer(nn.Module, BackboneTunerLayer):
    """A layer that is iterated over and indexed like the list of blocks that it replaces, `base_layer`."""

    base_layer: nn.ModuleList

    def forward(self, *args, **kwargs):
        raise NotImplementedError("A list of blocks is iterated over, not called.")

    def __len__(self) -> int:
        return len(self.base_layer)

    def __iter__(self) -> Iterator[nn.Module]:
        return iter(self.base_layer)

    def __getitem__(self, index: int | slice) -> nn.Module:
        return self.base_layer[index]
