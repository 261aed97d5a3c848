"""A linear layer with SoMA."""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora import Linear, LoraConfig
from peft.tuners.lora.layer import LoraVariant
from peft.tuners.lora.variants import _register_frozen_peft_weight
from torch import nn
from torch.nn.functional import linear


# The factors at the start of training, frozen.
START_A, START_B = "lora_start_A", "lora_start_B"


def minor_components(weight: torch.Tensor, r: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The `r` smallest singular components of a matrix, as two factors.

    Args:
        weight: (n, m).
        r (`int`): number of components.

    Returns:
        B0 = U_r sqrt(S_r) (n, r) and A0 = sqrt(S_r) V_r^T (r, m) in float32. The signs of both depend on the machine,
        their product does not.

    Raises:
        ValueError: the matrix has fewer than `r` singular values.
    """
    if r > min(weight.shape):
        raise ValueError(f"r is {r}; expected at most {min(weight.shape)} for a weight of {tuple(weight.shape)}.")
    u, s, vh = torch.linalg.svd(weight.detach().float(), full_matrices=False)
    root = s[-r:].sqrt()
    # contiguous, as FSDP and safetensors need them
    return (u[:, -r:] * root).contiguous(), (root[:, None] * vh[-r:]).contiguous()


class SomaLinear(Linear):
    """peft's LoRA on a linear layer, whose B and A start as the smallest singular components of the weight. The weight
    stays as it is, and the layer computes `W x + [B, -B0] [A; A0] x`, as the LoRA of rank 2r does that is saved: both
    give the same outputs bit for bit. A weight from which B0 A0 was subtracted, as peft's PiSSA has it, would be
    rounded once more where it is stored in half precision."""

    adapter_layer_names = (*Linear.adapter_layer_names, START_A, START_B)

    def resolve_lora_variant(self, *, config: LoraConfig, **kwargs: Any) -> LoraVariant:
        return SomaVariant()

    def plain_factors(self, adapter_name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """`[A; A0]` (2r, m) and `[B, -B0]` (n, 2r)."""
        start_a, start_b = getattr(self, START_A)[adapter_name], getattr(self, START_B)[adapter_name]
        a, b = self.lora_A[adapter_name].weight, self.lora_B[adapter_name].weight
        return torch.cat([a, start_a]), torch.cat([b, -start_b], dim=1)

    def get_delta_weight(self, adapter: str) -> torch.Tensor:
        a, b = self.plain_factors(adapter)
        return b @ a


class SomaVariant(LoraVariant):
    """Where peft's LoRA layer asks how it differs from a plain one."""

    @staticmethod
    def init(module: SomaLinear, adapter_name: str, **kwargs: Any) -> None:
        for name in (START_A, START_B):
            if not hasattr(module, name):
                setattr(module, name, nn.ParameterDict())
        a, b = module.lora_A[adapter_name], module.lora_B[adapter_name]
        start_a, start_b = a.weight.detach().clone(), b.weight.detach().clone()
        weight = module.get_base_layer().weight
        if weight.device.type != "meta" and start_a.device.type != "meta":  # else they are loaded later
            start_b, start_a = minor_components(weight, module.r[adapter_name])
            a.weight.data, b.weight.data = start_a.clone(), start_b.clone()
        getattr(module, START_A)[adapter_name] = nn.Parameter(start_a)
        getattr(module, START_B)[adapter_name] = nn.Parameter(start_b)
        for name in (START_A, START_B):
            _register_frozen_peft_weight(module, adapter_name, name)

    @staticmethod
    def forward(
        module: SomaLinear, active_adapter: str, x: torch.Tensor, result: torch.Tensor, **kwargs: Any
    ) -> torch.Tensor:
        a, b = module.plain_factors(active_adapter)
        return result + linear(linear(x, a), b)

    @staticmethod
    def merge_safe(module: SomaLinear, active_adapter: str, orig_weight: torch.Tensor) -> torch.Tensor:
        return orig_weight + module.get_delta_weight(active_adapter).to(orig_weight.dtype)

    @staticmethod
    def merge_unsafe(module: SomaLinear, active_adapter: str, orig_weight: torch.Tensor) -> None:
        orig_weight.data += module.get_delta_weight(active_adapter).to(orig_weight.dtype)

    @staticmethod
    def unmerge(module: SomaLinear, active_adapter: str, orig_weight: torch.Tensor) -> torch.Tensor:
        return orig_weight - module.get_delta_weight(active_adapter).to(orig_weight.dtype)
