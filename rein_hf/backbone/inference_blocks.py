"""A backbone's blocks at inference, in fewer operations: what linear layers read is cast once, and residual sums with
their scales and norms are computed together where that saves time."""

from __future__ import annotations

import torch
from torch import nn
from transformers.models.dinov2.modeling_dinov2 import Dinov2Layer, Dinov2LayerScale
from transformers.models.dinov2_with_registers.modeling_dinov2_with_registers import (
    Dinov2WithRegistersLayer,
    Dinov2WithRegistersLayerScale,
)
from transformers.models.dinov3_vit.modeling_dinov3_vit import DINOv3ViTLayer, DINOv3ViTLayerScale

from .pyramid import ViTPyramidBackbone
from .residual_norms import NormForLinears, add_scaled, add_scaled_and_norm, is_unchanged


def use_inference_blocks(model: nn.Module) -> None:
    """Changes the blocks of backbones in place, for inference alone: gradients would be rounded. Features stay equal
    bit for bit on a CPU, and up to the order in which norms are added up on a GPU.

    Where a backbone's weights were cast, the norms of its blocks give their output in that type, instead of each of
    the layers that read it, queries, keys and values, casting it.

    Args:
        model: a [`ViTPyramidBackbone`] or a segmenter, with or without adapter.
    """
    for backbone in model.modules():
        if not isinstance(backbone, ViTPyramidBackbone):
            continue
        for block in backbone.vit.get_submodule(backbone.config.architecture.blocks):
            block.__class__ = SCALED_BLOCKS.get(type(block), type(block))
            if backbone.autocast_dtype is None:
                continue
            for module in block.children():  # of every known architecture linear layers alone read their norms
                if type(module) is nn.LayerNorm:
                    module.__class__, module.output_dtype = NormForLinears, backbone.autocast_dtype
    for module in model.modules():  # accelerate knows by their names which classes it must not split
        kept = getattr(module, "_no_split_modules", None) or ()
        changed = {new.__name__ for stock, new in SCALED_BLOCKS.items() if stock.__name__ in kept}
        if not changed <= set(kept):
            module._no_split_modules = type(kept)([*kept, *sorted(changed - set(kept))])


class _ScaledBlock(nn.Module):
    """A block that scales what it adds to its residual stream, as DINOv2's do."""

    def forward(self, hidden_states: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        """Arguments and result as of the stock block, (B, N, c)."""
        scales = self.layer_scale1, self.layer_scale2
        unchanged = is_unchanged(self.drop_path, (nn.Identity,))
        if not unchanged or not all(is_unchanged(scale, LAYER_SCALES) for scale in scales):
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


LAYER_SCALES = (Dinov2LayerScale, Dinov2WithRegistersLayerScale, DINOv3ViTLayerScale)
SCALED_BLOCKS = {
    Dinov2Layer: Dinov2InferenceLayer,
    Dinov2WithRegistersLayer: Dinov2WithRegistersInferenceLayer,
    DINOv3ViTLayer: DINOv3ViTInferenceLayer,
}
