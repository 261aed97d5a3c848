"""Rein for vision transformers whose blocks are in stages of different widths."""

from __future__ import annotations

import copy
from itertools import accumulate

from torch import nn

from .base import ReinTunerLayer
from .block_list import BlockListLayer
from .config import ReinConfig
from .layer import ReinLayer


class ReinStages(ReinTunerLayer, BlockListLayer):
    """
    A list of blocks in stages, refined by one [`ReinLayer`] of its own width for each stage. The object queries are
    the sum over the stages, as [`ReinQueries`] adds those of all layers that it is linked to. It takes the place of
    the one list of blocks, whose names in the base model's state dict stay the same.

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
        self.base_layer = base_layer
        # the weights are those of the stages; peft asks this layer too which adapter is active
        self._set_up(adapter_name)
        self.configs[adapter_name] = config
        self._starts = [0, *accumulate(depths)]
        self.stages = nn.ModuleList(
            ReinLayer(
                base_layer[start : start + depth],
                adapter_name,
                self._stage_config(stage, config),
                hidden_size=width,
                num_prefix_tokens=config.num_prefix_tokens,
                query_dim=query_dim,
                register_blocks=False,
            )
            for stage, (start, depth, width) in enumerate(
                zip(self._starts[:-1], depths, config.hidden_size, strict=True)
            )
        )

    def update_layer(self, adapter_name: str, config: ReinConfig, query_dim: int | None = None) -> None:
        """Add the weights of one more adapter; see [`ReinLayer.update_layer`]."""
        self.configs[adapter_name] = config
        for stage, layer in enumerate(self.stages):
            layer.update_layer(adapter_name, self._stage_config(stage, config), query_dim)

    def unload_and_optionally_merge_module(
        self, merge: bool, safe_merge: bool, adapter_names: list[str] | None
    ) -> nn.ModuleList:
        for layer in self.stages:
            layer.unload_and_optionally_merge_module(merge, safe_merge, adapter_names)
        return super().unload_and_optionally_merge_module(merge, safe_merge, adapter_names)

    def _stage_config(self, stage: int, config: ReinConfig) -> ReinConfig:
        """The configuration for one stage: `layers_to_transform` counted from its first block."""
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
