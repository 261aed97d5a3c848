"""Position embeddings for images of any size, where transformers' module differs from the paper's code, accepts only
images of the trained size, or cannot be traced for all sizes.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.nn import functional as F
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.beit.modeling_beit import BeitEmbeddings, BeitRelativePositionBias
from transformers.models.clip.modeling_clip import CLIPVisionEmbeddings
from transformers.models.dinov2.modeling_dinov2 import Dinov2Embeddings
from transformers.models.dinov2_with_registers.modeling_dinov2_with_registers import Dinov2WithRegistersEmbeddings
from transformers.models.sam.modeling_sam import (
    SamVisionAttention,
    SamVisionEncoder,
    SamVisionLayer,
    SamVisionSdpaAttention,
)
from transformers.models.sam2.modeling_sam2 import Sam2MultiScaleBlock
from transformers.models.siglip.modeling_siglip import SiglipVisionEmbeddings
from transformers.models.vit.modeling_vit import ViTEmbeddings

from ..tuner import without_autocast
from .relative_positions import TraceableBeitBias, TraceableSamAttention, TraceableSamSdpaAttention
from .windows import TraceableHieraBlock, TraceableSamLayer


class ScaleFactorPositions:
    """Interpolates learned positions as DINOv2's own code does: by a scale factor, with 0.1 added to the size."""

    def interpolate_pos_encoding(self, embeddings: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """Position embeddings (1, 1 + N, c) for an image of `height` x `width` pixels."""
        side = math.isqrt(self.position_embeddings.shape[1] - 1)
        rows, columns = height // self.patch_embeddings.patch_size[0], width // self.patch_embeddings.patch_size[1]
        if torch.compiler.is_compiling():
            return self._traced_pos_encoding(side, rows, columns)
        if rows == columns == side:
            return self.position_embeddings
        class_position, grid = self.position_embeddings[:, :1], self.position_embeddings[:, 1:]
        grid = grid.reshape(1, side, side, -1).permute(0, 3, 1, 2).float()
        scale = ((rows + 0.1) / side, (columns + 0.1) / side)
        grid = F.interpolate(grid, scale_factor=scale, mode="bicubic", align_corners=False)
        grid = grid.flatten(2).transpose(1, 2).to(class_position.dtype)
        return torch.cat([class_position, grid], dim=1)

    def _traced_pos_encoding(self, side: int, rows: int, columns: int) -> torch.Tensor:
        """The same up to rounding, as two matrix products. In a graph for images of all sizes the code above cannot be
        used: tracing would fix the result of its `if`, and its scale factors."""
        sizes = [torch.scalar_tensor(size, device=self.position_embeddings.device) for size in (rows, columns)]
        is_trained_size = (sizes[0] == side) & (sizes[1] == side)
        down, across = (
            _bicubic_weights(count, side, (size + torch.where(is_trained_size, 0.0, 0.1)) / side)
            for count, size in zip((rows, columns), sizes, strict=True)
        )
        class_position, grid = self.position_embeddings[:, :1], self.position_embeddings[:, 1:]
        grid = grid.reshape(side, -1).float()
        with without_autocast(grid.device.type):  # under autocast interpolation is in float32 too
            grid = (down @ grid).unflatten(1, (side, -1))
            # `bmm`, because `matmul` would ask whether sizes are 1
            grid = torch.bmm(across.expand(rows, -1, -1), grid)
        grid = grid.flatten(0, 1)[None].to(class_position.dtype)
        return torch.cat([class_position, grid], dim=1)


class ScaleFactorDinov2Embeddings(ScaleFactorPositions, Dinov2Embeddings):
    """DINOv2's embeddings; a subclass because transformers interpolates positions without adding 0.1."""


class ScaleFactorDinov2WithRegistersEmbeddings(ScaleFactorPositions, Dinov2WithRegistersEmbeddings):
    """The same for DINOv2 with registers."""


class TraceablePositions:
    """Learned positions, interpolated by transformers, whose code asks whether an image is of the trained size."""

    def interpolate_pos_encoding(self, embeddings: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """Position embeddings (1, N, c) or, with a class token, (1, 1 + N, c), for `height` x `width` pixels."""
        if not torch.compiler.is_exporting():
            return super().interpolate_pos_encoding(embeddings, height, width)
        table = (
            self.position_embedding.weight[None] if hasattr(self, "position_embedding") else self.position_embeddings
        )
        rows, columns, side = height // self.patch_size, width // self.patch_size, math.isqrt(table.shape[1])
        if statically_known_true(rows == side) and statically_known_true(columns == side):
            return table
        class_position, grid = table.split([table.shape[1] - side * side, side * side], dim=1)
        grid = grid.unflatten(1, (side, side)).permute(0, 3, 1, 2)
        grid = F.interpolate(grid, size=(rows, columns), mode="bicubic", align_corners=False)
        return torch.cat([class_position, grid.flatten(2).transpose(1, 2)], dim=1)


class TraceableBeitEmbeddings(TraceablePositions, BeitEmbeddings):
    """BEiT's embeddings."""


class TraceableCLIPVisionEmbeddings(TraceablePositions, CLIPVisionEmbeddings):
    """CLIP's embeddings."""


class TraceableSiglipVisionEmbeddings(TraceablePositions, SiglipVisionEmbeddings):
    """SigLIP's embeddings."""


class TraceableViTEmbeddings(TraceablePositions, ViTEmbeddings):
    """The embeddings of ViT, and of models pre-trained as MAE."""


class AnySizeSamVisionEncoder(SamVisionEncoder):
    """SAM's image encoder without its neck; a subclass because transformers' one refuses images of other sizes."""

    def forward(
        self, pixel_values: torch.Tensor, output_hidden_states: bool | list[int] | None = None
    ) -> BaseModelOutput:
        """
        Args:
            pixel_values (`torch.Tensor` of shape `(B, 3, H, W)`): H and W are multiples of the patch size p.
            output_hidden_states (`bool` or `list[int]`, *optional*): whether to return the outputs of all blocks, or
                the numbers of the blocks whose outputs to return, counted from 1; 0 is the input of the first block.

        Returns:
            `BaseModelOutput` with `last_hidden_state` (B, H/p, W/p, c) and, if asked for, `hidden_states`: one entry
            for the input of the first block and one per block, `None` where it was not asked for.
        """
        wanted = range(len(self.layers) + 1) if output_hidden_states is True else output_hidden_states or ()
        hidden_state = self.patch_embed.projection(pixel_values).permute(0, 2, 3, 1)
        if self.pos_embed is not None:
            hidden_state = hidden_state + self._positions(hidden_state.shape[1:3])
        hidden_states = [hidden_state if 0 in wanted else None]
        for index, layer in enumerate(self.layers, start=1):
            hidden_state = layer(hidden_state)
            hidden_states.append(hidden_state if index in wanted else None)
        return BaseModelOutput(last_hidden_state=hidden_state, hidden_states=tuple(hidden_states) if wanted else None)

    def _positions(self, size: tuple[int, int]) -> torch.Tensor:
        """Absolute positions (1, rows, columns, c), interpolated (bicubic) if the image is not of the trained size."""
        if all(
            statically_known_true(side == trained)
            for side, trained in zip(size, self.pos_embed.shape[1:3], strict=True)
        ):
            return self.pos_embed  # which interpolation to this size gives as well, in a graph for many sizes
        positions = self.pos_embed.permute(0, 3, 1, 2).float()
        positions = F.interpolate(positions, size=size, mode="bicubic", align_corners=False)
        return positions.permute(0, 2, 3, 1).to(self.pos_embed.dtype)


ANY_SIZE_MODULES = {
    Dinov2Embeddings: ScaleFactorDinov2Embeddings,
    Dinov2WithRegistersEmbeddings: ScaleFactorDinov2WithRegistersEmbeddings,
    BeitEmbeddings: TraceableBeitEmbeddings,
    BeitRelativePositionBias: TraceableBeitBias,
    CLIPVisionEmbeddings: TraceableCLIPVisionEmbeddings,
    SiglipVisionEmbeddings: TraceableSiglipVisionEmbeddings,
    ViTEmbeddings: TraceableViTEmbeddings,
    SamVisionEncoder: AnySizeSamVisionEncoder,
    SamVisionAttention: TraceableSamAttention,
    SamVisionSdpaAttention: TraceableSamSdpaAttention,
    SamVisionLayer: TraceableSamLayer,
    Sam2MultiScaleBlock: TraceableHieraBlock,
}


def use_any_size_modules(vit: nn.Module) -> None:
    """Turns stock modules into those of this file, in place: only their classes change, parameters, names and hooks
    stay."""
    for module in vit.modules():
        module.__class__ = ANY_SIZE_MODULES.get(type(module), type(module))


def _bicubic_weights(count: int, side: int, scale: torch.Tensor) -> torch.Tensor:
    """The matrix (count, side) that resizes `side` samples to `count` samples by the factor `scale`, as
    `F.interpolate` does with mode="bicubic" and align_corners=False."""
    source = (torch.arange(count, device=scale.device) + 0.5) / scale - 0.5
    first = source.floor()
    taps = torch.arange(-1, 3, device=scale.device)
    distance = ((source - first)[:, None] - taps).abs()
    a = -0.75  # torch's coefficient of cubic convolution
    near = ((a + 2) * distance - (a + 3)) * distance * distance + 1
    far = ((distance - 5) * distance + 8) * distance * a - 4 * a
    weights = torch.where(distance <= 1, near, far)
    index = (first[:, None] + taps).clamp(0, side - 1)
    one_hot = index[:, :, None] == torch.arange(side, device=scale.device)
    return (weights[:, :, None] * one_hot).sum(dim=1)
