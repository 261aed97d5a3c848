"""AdaptFormer's layer: an MLP with a bottleneck beside it."""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import nn

from ..tuner import NO_DATA_PARALLEL, BackboneTunerLayer
from ..tuner.base import prepend_forward_hook
from .config import AdaptFormerConfig


class AdaptFormerLayer(nn.Module, BackboneTunerLayer):
    """
    The MLP of a block, and beside it, from the MLP's own (normalised) input x (B, ..., c),

        delta = s * Up(ReLU(Down(x)))        Down (c -> d), Up (d -> c)

    which is added to the residual stream: neither LayerScale nor stochastic depth, through which the MLP's output goes
    in some architectures, changes it. All tokens have it, prefix tokens too.

    Args:
        base_layer (`nn.Module`): the MLP, (B, ..., c) -> (B, ..., c).
        adapter_name, config: as of [`AdaptFormerLayer.update_layer`].
        hidden_size (`int`): hidden size c of the block.
        block (`nn.Module`, *optional*): the block, if other modules of it come between the MLP and the residual
            stream.
        end (`str`, *optional*): name of the last of these, see `Architecture.mlp_end`.

    Raises:
        ValueError: in the forward pass: a replica of `torch.nn.DataParallel`; weights never loaded.

    Adapter tensors, by name: linear layers `adaptformer_down` (c -> d) and `adaptformer_up` (d -> c).

    Example:

    ```py
    >>> import torch
    >>> from rein_hf import AdaptFormerConfig, AdaptFormerLayer

    >>> mlp, x = torch.nn.Linear(32, 32), torch.ones(1, 7, 32)
    >>> layer = AdaptFormerLayer(mlp, "default", AdaptFormerConfig(bottleneck_size=4), hidden_size=32)
    >>> bool((layer(x) == mlp(x)).all())  # Up begins at zero
    True

    ```
    """

    adapter_layer_names = ("adaptformer_down", "adaptformer_up")
    method = "AdaptFormer"
    not_mergeable = (
        "AdaptFormer cannot be merged into the backbone: there is a ReLU in its bottleneck, so no weight of the "
        "backbone can stand for it. Use unload() to get the backbone back."
    )

    def __init__(
        self,
        base_layer: nn.Module,
        adapter_name: str,
        config: AdaptFormerConfig,
        hidden_size: int,
        block: nn.Module | None = None,
        end: str | None = None,
    ) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.hidden_size = hidden_size
        self.adaptformer_down = nn.ModuleDict()
        self.adaptformer_up = nn.ModuleDict()
        self._set_up(adapter_name)
        self.update_layer(adapter_name, config)
        self._hooks, self._pending = [], None
        if end is not None:
            # The MLP's output has further to go than the delta: the last module on its way adds the delta. That
            # module is called for the attention's output, too, before which no delta may be waiting. One could be: of
            # a forward pass that an error, or the end of a recomputation in the backward pass, has cut short.
            self._pending = PendingDelta()
            self._hooks = [
                block.attention.register_forward_pre_hook(ForgetDelta(self._pending)),
                prepend_forward_hook(getattr(block, end), AddDelta(self._pending)),
            ]

    def update_layer(self, adapter_name: str, config: AdaptFormerConfig) -> None:
        """Add one more adapter, with new weights: Down Kaiming uniform with a = sqrt(5), Up and all biases zero, so
        that it begins as the backbone. One of this name is replaced.

        Args:
            adapter_name (`str`): name of the adapter.
            config ([`AdaptFormerConfig`]): its configuration.
        """
        # a new nn.Linear has that weight
        down = nn.Linear(self.hidden_size, config.bottleneck_size)
        up = nn.Linear(config.bottleneck_size, self.hidden_size)
        for tensor in (down.bias, up.weight, up.bias):
            nn.init.zeros_(tensor)
        self.adaptformer_down[adapter_name], self.adaptformer_up[adapter_name] = down, up
        self.configs[adapter_name] = config
        self._finish_update(adapter_name)

    def delta(self, adapter_name: str, hidden_states: torch.Tensor) -> torch.Tensor:
        """What an adapter adds to the residual stream (B, ..., c), for the MLP's input (B, ..., c), in the type of the
        adapter's weights or of autocast."""
        down, up = self.adaptformer_down[adapter_name], self.adaptformer_up[adapter_name]
        hidden_states = self._cast_input_dtype(hidden_states, down.weight.dtype)
        return self.configs[adapter_name].scale * up(down(hidden_states).relu())

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        output = self.base_layer(hidden_states, *args, **kwargs)
        adapter = self.adapter
        if adapter is None:
            return output
        if getattr(self, "_is_replica", False):
            raise ValueError(NO_DATA_PARALLEL)
        delta = self.delta(adapter, hidden_states)
        if self._pending is None:
            return output + delta.to(output.dtype)
        self._pending.put(delta)
        return output

    def extra_repr(self) -> str:
        return "; ".join(
            f"{name}: bottleneck of {config.bottleneck_size}, scale {config.scale}"
            for name, config in self.configs.items()
        )


class PendingDelta:
    """The delta of a block on its way from the MLP to the residual stream, for each thread that runs the model."""

    def __init__(self) -> None:
        self._deltas: dict[int, torch.Tensor] = {}

    def __getstate__(self) -> dict:
        # copies of a model share nothing with a forward pass that did not end
        return {"_deltas": {}}

    def put(self, delta: torch.Tensor) -> None:
        self._deltas[_thread()] = delta

    def take(self) -> torch.Tensor | None:
        return self._deltas.pop(_thread(), None)


class ForgetDelta(nn.Module):
    """Forward pre-hook of a block's attention: no delta is waiting. A module for the reason of `LayerHook`."""

    def __init__(self, pending: PendingDelta) -> None:
        super().__init__()
        self.pending = pending

    def forward(self, attention: nn.Module, args: tuple) -> None:
        self.pending.take()


class AddDelta(nn.Module):
    """Forward hook of the last module between a block's MLP and the residual stream: adds the delta to its output."""

    def __init__(self, pending: PendingDelta) -> None:
        super().__init__()
        self.pending = pending

    def forward(self, end: nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor | None:
        delta = self.pending.take()
        return None if delta is None else output + delta.to(output.dtype)


def _thread() -> int:
    # torch.compile cannot trace the question; a compiled graph is run by one thread from its MLP to its residual
    return 0 if torch.compiler.is_compiling() else threading.get_ident()
