"""What Rein's layers share, as peft sees them."""

from __future__ import annotations

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn


NOT_MERGEABLE = (
    "Rein cannot be merged into the backbone: its refinement depends on the features (a softmax over tokens), so no "
    "weight of the backbone can stand for it. Use unload() to get the backbone back."
)


class ReinTunerLayer(BaseTunerLayer):
    """A [`ReinLayer`] or [`ReinQueries`]: one active adapter at a time, and no way to merge."""

    # adapter name -> its ReinConfig; listed here so that peft deletes it with the adapter
    other_param_names = ("configs",)

    @property
    def adapter(self) -> str | None:
        """Name of the adapter at work in this layer; `None` if it is disabled or has no part here."""
        if self._disable_adapters or not self.active_adapters:
            return None
        return self.active_adapters[0] if self.active_adapters[0] in self.configs else None

    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        if not isinstance(adapter_names, str) and len(adapter_names) > 1:
            raise ValueError(
                f"Rein works with one active adapter at a time; found {list(adapter_names)}. Two sets of tokens have "
                "no sum: activate one of them with set_adapter."
            )
        super().set_adapter(adapter_names, inference_mode=inference_mode)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        raise ValueError(NOT_MERGEABLE)

    def unmerge(self) -> None:
        raise ValueError(NOT_MERGEABLE)

    def _get_base_layer_device_and_dtype(self, base_layer: nn.Module) -> tuple[torch.device, torch.dtype]:
        """Where peft puts the weights of an adapter, and their type: the base's, be it blocks or an embedding."""
        reference = next(base_layer.parameters())
        return reference.device, reference.dtype

    def unload_and_optionally_merge_module(
        self, merge: bool, safe_merge: bool, adapter_names: list[str] | None
    ) -> nn.Module:
        """Called by peft's `unload` and `merge_and_unload`: the module that stood here before."""
        if merge:
            self.merge(safe_merge, adapter_names)
        return self.base_layer
