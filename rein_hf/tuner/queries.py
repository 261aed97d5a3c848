"""Object queries made from Rein's tokens.

Notation as in the paper: m tokens, q width of the object queries.
"""

from __future__ import annotations

import torch
from torch import nn

from .base import NO_DATA_PARALLEL, ReinTunerLayer, execution_device, is_autocast_enabled, with_weights
from .config import ReinConfig
from .layer import ReinLayer


# names of Mask2Former's embeddings of object queries, of which only the `weight` is read
QUERY_POSITION, QUERY_CONTENT = "queries_embedder", "queries_features"


def find_query_positions(model: nn.Module) -> nn.Module | None:
    """The embedding of a model's query positions, `weight` (m, q); `None` if it has no object queries."""
    for name, module in model.named_modules():
        if name.rpartition(".")[-1] == QUERY_POSITION:
            return module
    return None


class ReinQueries(nn.Module, ReinTunerLayer):
    """
    An embedding of object queries (m, q) whose `weight` is computed from Rein's tokens (paper section 3.3): Q for the
    query positions, `W_F Q + b_F` for the query contents. The embedding that stood here is not used, but kept for
    `disable_adapter` and `unload`. Mask2Former reads nothing but the `weight` of these embeddings.

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
        self.rein_query_content = nn.ModuleDict()
        # a tuple, which registers no submodules: the tokens are those of the ReinLayer alone
        self._rein_layers: tuple[ReinLayer, ...] = ()
        self._kept: dict[tuple, torch.Tensor] = {}  # made of fixed weights, by adapter, device and type
        self._set_up(adapter_name)
        self.update_layer(adapter_name, config)

    def update_layer(self, adapter_name: str, config: ReinConfig) -> None:
        """Add the weights of one more adapter: W_F, b_F if these are the query contents."""
        q = self.base_layer.weight.shape[1]
        if self.content:
            self.rein_query_content[adapter_name] = nn.Linear(q, q)
        self.configs[adapter_name] = config
        self._finish_update(adapter_name)

    def _forget_computed(self) -> None:
        super()._forget_computed()
        self._kept.clear()

    def link(self, rein_layers: tuple[ReinLayer, ...]) -> None:
        """Say of which layers the tokens are the queries; their queries are added."""
        self._rein_layers = rein_layers

    @property
    def weight(self) -> torch.Tensor:
        """The object queries (m, q): from the tokens, or the learned ones where no adapter is active.

        Raises:
            ValueError: on a replica of `torch.nn.DataParallel`; weights of the adapter were never loaded.
        """
        return self._weight({})

    def _weight(self, shared: dict[tuple, torch.Tensor]) -> torch.Tensor:
        """The object queries. `shared` has what the tokens were projected to, for others in the same pass."""
        adapter = self.adapter
        if adapter is None:
            with with_weights(self.base_layer):
                return self.base_layer.weight
        if getattr(self, "_is_replica", False):
            raise ValueError(NO_DATA_PARALLEL)
        device = execution_device(self.base_layer)
        autocast = torch.get_autocast_dtype(device.type) if is_autocast_enabled(device.type) else None
        key = (adapter, device, autocast, self.base_layer.weight.dtype)
        is_fixed = self.weights_are_fixed and not torch.is_grad_enabled() and not torch.compiler.is_compiling()
        if is_fixed and key in self._kept:
            return self._kept[key]
        if key not in shared:
            shared[key] = sum(layer.object_queries(adapter).to(device) for layer in self._rein_layers)
        queries = self.rein_query_content[adapter](shared[key]) if self.content else shared[key]
        queries = queries.to(self.base_layer.weight.dtype)
        if is_fixed:
            self._kept[key] = queries
        return queries

    def forward(self, indices: torch.Tensor) -> torch.Tensor:
        return nn.functional.embedding(indices, self.weight)


def query_weights(contents: nn.Module, positions: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """The weights (m, q) of a head's embeddings of query contents and query positions. If both are made of Rein's
    tokens, these are projected once."""
    if not (isinstance(contents, ReinQueries) and isinstance(positions, ReinQueries)):
        return contents.weight, positions.weight
    shared: dict[tuple, torch.Tensor] = {}
    return contents._weight(shared), positions._weight(shared)
