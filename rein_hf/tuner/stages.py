"""Rein for vision transformers whose blocks are in stages of different widths."""

from __future__ import annotations

import copy
from itertools import accumulate

from torch import nn

from .config import ReinConfig
from .layer import ReinLayer


class ReinStages(nn.Module):
    """
    A list of blocks in stages, each stage a [`ReinLayer`] of its own width. The object queries are the sum over the
    stages, as [`ReinQueries`] sums over all stacks that it is linked to. It takes the place of the one list of blocks
    and is iterated over like that list.

    Args:
        base_layer (`nn.ModuleList`): the blocks of all stages.
        adapter_name, config, query_dim: as for [`ReinLayer`]. `config.hidden_size` and `config.num_hidden_layers` are
            lists, a number for each stage; `config.layers_to_transform` counts on from stage to stage.

    Raises:
        ValueError: the stages have more or fewer blocks than there are; `layers_to_transform` leaves out a stage.
    """

    def __init__(
        self, base_layer: nn.ModuleList, adapter_name: str, config: ReinConfig, query_dim: int | None = None
    ) -> None:
        super().__init__()
        depths = config.num_hidden_layers
        if sum(depths) != len(base_layer):
            raise ValueError(f"ReinConfig.num_hidden_layers is {depths}; the backbone has {len(base_layer)} blocks.")
        self._starts = [0, *accumulate(depths)]
        self.stages = nn.ModuleList(
            ReinLayer(
                base_layer[start : start + depth],
                adapter_name,
                self._of_stage(stage, config),
                hidden_size=width,
                num_prefix_tokens=config.num_prefix_tokens,
                query_dim=query_dim,
            )
            for stage, (start, depth, width) in enumerate(
                zip(self._starts[:-1], depths, config.hidden_size, strict=True)
            )
        )

    def update_layer(self, adapter_name: str, config: ReinConfig, query_dim: int | None = None) -> None:
        """Add the weights of one more adapter; see [`ReinLayer.update_layer`]."""
        for stage, layer in enumerate(self.stages):
            layer.update_layer(adapter_name, self._of_stage(stage, config), query_dim)

    def unload_and_optionally_merge_module(
        self, merge: bool, safe_merge: bool, adapter_names: list[str] | None
    ) -> nn.ModuleList:
        """Called by peft's `unload` and `merge_and_unload`: the list of blocks that stood here before."""
        return nn.ModuleList(
            block
            for layer in self.stages
            for block in layer.unload_and_optionally_merge_module(merge, safe_merge, adapter_names)
        )

    def _of_stage(self, stage: int, config: ReinConfig) -> ReinConfig:
        """The configuration with the blocks of one stage, counted from its first."""
        layers = config.layers_to_transform
        if layers is None:
            return config
        start, end = self._starts[stage : stage + 2]
        config = copy.copy(config)
        config.layers_to_transform = [layer - start for layer in layers if start <= layer < end]
        if not config.layers_to_transform or not set(layers) <= set(range(self._starts[-1])):
            raise ValueError(
                f"ReinConfig.layers_to_transform is {list(layers)}; expected blocks 0 to {self._starts[-1] - 1}, one "
                f"at least of each stage: stage {stage} has {start} to {end - 1}."
            )
        return config

    def forward(self, *args, **kwargs):
        raise NotImplementedError("A list of blocks is iterated over, not called.")

    def __len__(self) -> int:
        return sum(map(len, self.stages))

    def __iter__(self):
        return (block for layer in self.stages for block in layer)

    def __getitem__(self, index):
        return nn.ModuleList(self)[index]
