"""A backbone's blocks at inference, in fewer operations: what linear layers read is cast once, and residual sums with
their scales and norms are computed together where that saves time."""

from __future__ import annotations

import torch
from torch import nn
from transformers.models.dinov2.modeling_dinov2 import Dinov2Layer
from transformers.models.dinov2_with_registers.modeling_dinov2_with_registers import Dinov2WithRegistersLayer
from transformers.models.dinov3_vit.modeling_dinov3_vit import DINOv3ViTLayer

from .residual_norms import add_scaled, add_scaled_and_norm, norm_and_cast


def use_inference_blocks(backbone: nn.Module, dtype: torch.dtype | None) -> None:
    """Changes the blocks of a backbone in place, for inference alone: gradients would be rounded. Features stay equal
    bit for bit on a CPU, and up to the order in which norms are added up on a GPU.

    Args:
        backbone: a [`ViTPyramidBackbone`], with or without adapter.
        dtype (`torch.dtype`, *optional*): what its weights were cast to. Norms give their output in this type, instead
            of each of the layers that read it, queries, keys and values, casting it.
    """
    for block in backbone.vit.get_submodule(backbone.config.architecture.blocks):
        if type(block) in SCALED_BLOCKS:
            block.__class__ = SCALED_BLOCKS[type(block)]
        if dtype is None:
            continue
        for module in block.children():  # of every known architecture linear layers alone read their norms
            if type(module) is nn.LayerNorm:
                module.__class__, module.output_dtype = NormForLinears, dtype


class NormForLinears(nn.LayerNorm):
    """A norm whose output only linear layers read; a subclass because its output is in their type."""

    output_dtype: torch.dtype

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return norm_and_cast(inputs, self, self.output_dtype)


class _ScaledBlock(nn.Module):
    """A block that scales what it adds to its residual stream, as DINOv2's do."""

    def forward(self, hidden_states: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        """Arguments and result as of the stock block, (B, N, c)."""
        added_to = (self.layer_scale1, self.layer_scale2, self.drop_path)
        if any(_has_hooks(module) for module in added_to) or type(self.drop_path) is not nn.Identity:
            return super().forward(hidden_states, *args, **kwargs)
        attended, _ = self.attention(self.norm1(hidden_states), *args, **kwargs)
        hidden_states, normed = add_scaled_and_norm(hidden_states, attended, self.layer_scale1.lambda1, self.norm2)
        return add_scaled(hidden_states, self.mlp(normed), self.layer_scale2.lambda1)


class Dinov2InferenceLayer(_ScaledBlock, Dinov2Layer):
    """A block of DINOv2; a subclass because the stock one goes through its residual stream in one operation each."""


class Dinov2WithRegistersInferenceLayer(_ScaledBlock, Dinov2WithRegistersLayer):
    """A block of DINOv2 with registers; a subclass for the same reason."""


class DINOv3ViTInferenceLayer(_ScaledBlock, DINOv3ViTLayer):
    """A block of DINOv3; a subclass for the same reason."""


SCALED_BLOCKS = {
    Dinov2Layer: Dinov2InferenceLayer,
    Dinov2WithRegistersLayer: Dinov2WithRegistersInferenceLayer,
    DINOv3ViTLayer: DINOv3ViTInferenceLayer,
}


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))
