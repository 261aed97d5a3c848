"""SoMA's tuner: which layers it tunes, and a plain LoRA in the place of its tensors where they are saved."""

from __future__ import annotations

import re
from typing import Any

import torch
from peft import LoraConfig, PeftConfig
from peft.tuners.lora import LoraModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from ..tuner.architectures import find_vision_encoder, unknown_architecture
from .config import SomaConfig
from .layer import START_A, START_B, SomaLinear


class SomaModel(LoraModel):
    """
    A model with SoMA, see [`SomaConfig`]. It is peft's `LoraModel` with [`SomaLinear`] layers: in training they hold
    B, A and, frozen, B0 and A0; whatever saves the adapter gets the tensors of a plain LoRA of rank 2r, and loading
    such tensors into this model splits them again.

    Raises:
        ValueError: the model has no vision transformer of a known architecture and no `target_modules` are given;
            first_block is beyond the last block; r exceeds a side of a weight.
        TypeError: a module to tune is no linear layer.
    """

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        config = self.peft_config[adapter_name]
        try:
            if config.target_modules is None:
                config.target_modules = target_pattern(model, config.first_block)
            super().inject_adapter(model, adapter_name, *args, **kwargs)
        except Exception:
            if not any(adapter_name in getattr(module, "lora_A", ()) for module in model.modules()):
                self.peft_config.pop(adapter_name, None)  # a refused adapter is not listed
            raise

    @staticmethod
    def _create_new_module(lora_config: LoraConfig, adapter_name: str, target: nn.Module, **kwargs: Any) -> nn.Module:
        base_layer = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
        if not isinstance(base_layer, nn.Linear):
            raise TypeError(f"target_modules of SoMA name a {type(base_layer).__name__}; expected linear layers.")
        kwargs.pop("device_map", None)
        return SomaLinear(target, adapter_name, config=lora_config, **kwargs)

    @classmethod
    def _get_adapter_state_dict(
        cls,
        model: nn.Module,
        config: PeftConfig,
        adapter_name: str,
        state_dict: dict[str, torch.Tensor],
        unwanted_adapter_names: list[str],
    ) -> dict[str, torch.Tensor]:
        """Called by peft for the tensors to save: those of the plain LoRA."""
        found = super()._get_adapter_state_dict(model, config, adapter_name, state_dict, unwanted_adapter_names)
        for name in [name for name in found if name.endswith(f".{START_A}.{adapter_name}")]:
            layer = name.removesuffix(f"{START_A}.{adapter_name}")
            a, b = f"{layer}lora_A.{adapter_name}.weight", f"{layer}lora_B.{adapter_name}.weight"
            found[a] = torch.cat([found[a], found.pop(name)])
            found[b] = torch.cat([found[b], -found.pop(f"{layer}{START_B}.{adapter_name}")], dim=1)
        return found

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: SomaConfig, adapter_name: str, state_dict: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Called by peft before tensors are loaded: the way back.

        Raises:
            ValueError: a tensor is not of the plain LoRA that is saved.
        """
        tensors = {}
        for name, tensor in state_dict.items():
            side = re.search(r"(.*\.)lora_([AB])\.weight$", name)
            if side is None:
                tensors[name] = tensor
                continue
            dim, sign, start = (0, 1, START_A) if side[2] == "A" else (1, -1, START_B)
            if tensor.shape[dim] != 2 * config.r:
                raise ValueError(
                    f"{name} has {tensor.shape[dim]} ranks; expected {2 * config.r}, since a SoMA with r {config.r} "
                    "is saved as a LoRA of twice the rank."
                )
            trained, started = tensor.split(config.r, dim)
            tensors[name], tensors[side[1] + start] = trained, sign * started
        return super()._remap_adapter_state_dict_for_load(model, config, adapter_name, tensors)


def default_first_block(num_blocks: int) -> int:
    """The first block that is tuned, counted from 1: a third is left alone, as the first 8 of 24."""
    return num_blocks // 3 + 1


def target_pattern(model: nn.Module, first_block: int | None) -> str:
    """A pattern of the names of the linear layers of attention and MLP in a model's blocks from `first_block` on.

    Raises:
        ValueError: the model has no vision transformer of a known architecture, or too few blocks.
    """
    encoder = find_vision_encoder(model)
    if encoder is None:
        model_type = getattr(getattr(model, "config", None), "model_type", None)
        raise ValueError(f"target_modules is None, and {unknown_architecture(model_type)}, or give target_modules.")
    blocks = model.get_submodule(encoder.blocks)
    first = default_first_block(len(blocks)) if first_block is None else first_block
    if first > len(blocks):
        raise ValueError(f"first_block is {first}, but the backbone has {len(blocks)} blocks; expected one of them.")
    layers = {
        name
        for block in blocks[first - 1 :]
        for name, module in block.named_modules()
        if isinstance(getattr(module, "base_layer", module), nn.Linear)
        and "." in name  # a layer of the block itself is neither of attention nor of the MLP: Hiera's between stages
        and not re.search(r"\.(base_layer|lora_[AB])\b", name)  # of an adapter that is there
    }
    numbers = "|".join(str(number) for number in range(first - 1, len(blocks)))
    return rf"{re.escape(encoder.blocks)}\.({numbers})\.({'|'.join(map(re.escape, sorted(layers)))})"
