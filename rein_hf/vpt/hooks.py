"""The forward hooks by which blocks see prompts, and nobody else does."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers.utils import ModelOutput

from ..tuner import NO_DATA_PARALLEL
from ..tuner.base import LayerHook


if TYPE_CHECKING:
    from .layer import VPTLayer


class BlockHook(LayerHook):
    """
    Hook of one block of a [`VPTLayer`].

    Args:
        layer ([`VPTLayer`]): see [`LayerHook`].
        index (`int`): number of the block in it, counted from 0.
    """

    def __init__(self, layer: VPTLayer, index: int = 0) -> None:
        super().__init__(layer)
        self.index = index


class InsertPrompts(BlockHook):
    """Forward pre-hook: puts the prompts among the block's tokens."""

    def forward(self, block: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        layer = self.layer()
        if not layer.number_of_prompts(self.index):
            return None
        if getattr(block, "_is_replica", False):
            raise ValueError(NO_DATA_PARALLEL)
        if not args or not isinstance(args[0], torch.Tensor) or args[0].dim() != 3:
            found = tuple(args[0].shape) if args and isinstance(args[0], torch.Tensor) else "none"
            raise ValueError(
                f"Block {self.index} is called with tokens of the shape {found}; VPT expects (batch, tokens, hidden "
                "size) as the first argument. Use Rein, AdaptFormer or LoRA on this backbone."
            )
        tokens, others = args[0], args[1:]
        extend = partial(layer.extend_mask, self.index, tokens.shape[1])
        if others and isinstance(others[0], torch.Tensor):
            others = (extend(others[0]), *others[1:])
        if isinstance(kwargs.get("attention_mask"), torch.Tensor):
            kwargs = {**kwargs, "attention_mask": extend(kwargs["attention_mask"])}
        return (layer.insert(self.index, tokens), *others), kwargs


class RemovePrompts(BlockHook):
    """Forward hook: takes the prompts out of the block's output."""

    def forward(self, block: nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor | None:
        layer = self.layer()
        number = layer.number_of_prompts(self.index)
        return layer.remove(number, output) if number else None


class CleanStem(BlockHook):
    """Forward hook of the vision transformer, see [`VPTLayer.watch_stem`]."""

    def forward(self, encoder: nn.Module, args: tuple, output: Any) -> Any:
        layer = self.layer()
        number = layer.number_of_prompts(0)
        if not number or not isinstance(output, (ModelOutput, tuple)):
            return None
        if isinstance(output, ModelOutput):
            states = output.get("hidden_states")
            if not self._has_prompts(states, output[0], number):
                return None
            output["hidden_states"] = (layer.remove(number, states[0]), *states[1:])
            return output
        return tuple(
            (layer.remove(number, item[0]), *item[1:]) if self._has_prompts(item, output[0], number) else item
            for item in output
        )

    @staticmethod
    def _has_prompts(states: Any, last: Any, number: int) -> bool:
        """Whether these are hidden states, the first of which is longer than the last by the prompts."""
        if not isinstance(states, tuple) or not states or not isinstance(states[0], torch.Tensor):
            return False
        others = [other for other in (last, *states[1:]) if isinstance(other, torch.Tensor) and other.dim() == 3]
        return states[0].dim() == 3 and bool(others) and states[0].shape[1] == others[-1].shape[1] + number
