"""Object queries made from Rein's tokens.

Notation as in the paper: m tokens, q width of the object queries.
"""

from __future__ import annotations

import torch
from torch import nn

from .base import ReinTunerLayer
from .config import ReinConfig
from .layer import ReinLayer


class ReinQueries(nn.Module, ReinTunerLayer):
    """
    An embedding of object queries (m, q) whose `weight` is computed from Rein's tokens (paper section 3.3): Q for the
    query positions, `W_F Q + b_F` for the query contents. The embedding that stood here is not used, but kept for
    `disable_adapter` and `unload`. Mask2Former asks its embeddings of queries for nothing but `weight`.

    Args:
        base_layer (`nn.Embedding`): the learned embedding, (m, q).
        adapter_name, config: as for [`ReinLayer`].
        content (`bool`): whether these are the query contents.

    Example:

    ```py
    >>> from torch import nn
    >>> from rein_hf import ReinConfig, ReinLayer, ReinQueries

    >>> config, blocks = ReinConfig(num_tokens=10), nn.ModuleList([nn.Linear(32, 32), nn.Linear(32, 32)])
    >>> layer = ReinLayer(blocks, "default", config, hidden_size=32, num_prefix_tokens=1, query_dim=8)
    >>> queries = ReinQueries(nn.Embedding(10, 8), "default", config, content=False)
    >>> queries.link((layer,))
    >>> bool((queries.weight == layer.object_queries("default")).all())
    True

    ```
    """

    adapter_layer_names = ("rein_query_content",)

    def __init__(self, base_layer: nn.Embedding, adapter_name: str, config: ReinConfig, content: bool) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.content = content
        self.configs: dict[str, ReinConfig] = {}
        self.rein_query_content = nn.ModuleDict()
        # in a tuple, so that the tokens stay registered in one place only
        self._stacks: tuple[ReinLayer, ...] = ()
        self._active_adapter = adapter_name
        self._disable_adapters = False
        self.update_layer(adapter_name, config)

    def update_layer(self, adapter_name: str, config: ReinConfig) -> None:
        """Add the weights of one more adapter: W_F, b_F if these are the query contents."""
        q = self.base_layer.weight.shape[1]
        self.configs[adapter_name] = config
        if self.content:
            self.rein_query_content[adapter_name] = nn.Linear(q, q)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def link(self, stacks: tuple[ReinLayer, ...]) -> None:
        """Name the stacks of blocks whose tokens are the queries."""
        self._stacks = stacks

    @property
    def weight(self) -> torch.Tensor:
        """The object queries (m, q): from the tokens, or the learned ones where no adapter is at work."""
        adapter = self.adapter
        if adapter is None:
            return self.base_layer.weight
        queries = sum(stack.object_queries(adapter) for stack in self._stacks)
        if self.content:
            queries = self.rein_query_content[adapter](queries)
        return queries.to(self.base_layer.weight.dtype)

    def forward(self, indices: torch.Tensor) -> torch.Tensor:
        return nn.functional.embedding(indices, self.weight)
