"""Modules of transformers that take images of other sizes than the trained one in another way, or not at all.

What is not here takes them as it is: rotary and relative positions, and learned ones that transformers interpolates,
bicubic, when `forward` is told to.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.dinov2.modeling_dinov2 import Dinov2Embeddings
from transformers.models.dinov2_with_registers.modeling_dinov2_with_registers import Dinov2WithRegistersEmbeddings
from transformers.models.sam.modeling_sam import SamVisionEncoder


class ScaleFactorPositions:
    """Positions for images of other sizes interpolated as in DINOv2's own code."""

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
        """The same, to rounding, of two products with the weights of rows and columns: in a graph that is to hold for
        all sizes neither the test for the trained size nor a scale factor may be one number."""
        sizes = [torch.scalar_tensor(size, device=self.position_embeddings.device) for size in (rows, columns)]
        trained = (sizes[0] == side) & (sizes[1] == side)
        down, across = (
            _bicubic_weights(count, side, (size + torch.where(trained, 0.0, 0.1)) / side)
            for count, size in zip((rows, columns), sizes, strict=True)
        )
        class_position, grid = self.position_embeddings[:, :1], self.position_embeddings[:, 1:]
        grid = grid.reshape(side, -1).float()
        with torch.autocast(grid.device.type, enabled=False):  # as interpolation is in float32 under autocast
            grid = (down @ grid).unflatten(1, (side, -1))
            # `bmm`, because `matmul` would ask whether sizes are 1
            grid = torch.bmm(across.expand(rows, -1, -1), grid)
        grid = grid.flatten(0, 1)[None].to(class_position.dtype)
        return torch.cat([class_position, grid], dim=1)


class ScaleFactorDinov2Embeddings(ScaleFactorPositions, Dinov2Embeddings):
    """Dinov2's embeddings; a subclass because transformers interpolates to the exact size."""


class ScaleFactorDinov2WithRegistersEmbeddings(ScaleFactorPositions, Dinov2WithRegistersEmbeddings):
    """The same with registers."""


class AnySizeSamVisionEncoder(SamVisionEncoder):
    """SAM's image encoder without its neck; a subclass because transformers' refuses images of other sizes."""

    def forward(
        self, pixel_values: torch.Tensor, output_hidden_states: bool | list[int] | None = None
    ) -> BaseModelOutput:
        """
        Args:
            pixel_values (`torch.Tensor` of shape `(B, 3, H, W)`): H and W are multiples of the patch size p.
            output_hidden_states (`bool` or `list[int]`, *optional*): the outputs of all blocks, or of these, counted
                from 1; 0 is what goes into the first.

        Returns:
            `BaseModelOutput` with `last_hidden_state` (B, H/p, W/p, c) and, if asked for, `hidden_states`, `None` for
            those that are not.
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
        """Absolute positions (1, rows, columns, c), interpolated as those of other vision transformers are."""
        if self.pos_embed.shape[1:3] == size:
            return self.pos_embed
        positions = self.pos_embed.permute(0, 3, 1, 2).float()
        positions = F.interpolate(positions, size=size, mode="bicubic", align_corners=False)
        return positions.permute(0, 2, 3, 1).to(self.pos_embed.dtype)


ANY_SIZE_MODULES = {
    Dinov2Embeddings: ScaleFactorDinov2Embeddings,
    Dinov2WithRegistersEmbeddings: ScaleFactorDinov2WithRegistersEmbeddings,
    SamVisionEncoder: AnySizeSamVisionEncoder,
}


def use_any_size_modules(vit: nn.Module) -> None:
    """Gives stock modules the classes of this file; parameters, names and hooks are as before."""
    for module in vit.modules():
        module.__class__ = ANY_SIZE_MODULES.get(type(module), type(module))


def _bicubic_weights(count: int, side: int, scale: torch.Tensor) -> torch.Tensor:
    """Weight of each of `side` samples in each of `count`, (count, side), `scale` to one, as in `F.interpolate` with
    mode="bicubic" and align_corners=False."""
    source = (torch.arange(count, device=scale.device) + 0.5) / scale - 0.5
    first = source.floor()
    taps = torch.arange(-1, 3, device=scale.device)
    distance = ((source - first)[:, None] - taps).abs()
    a = -0.75  # of the cubic convolution
    near = ((a + 2) * distance - (a + 3)) * distance * distance + 1
    far = ((distance - 5) * distance + 8) * distance * a - 4 * a
    weights = torch.where(distance <= 1, near, far)
    index = (first[:, None] + taps).clamp(0, side - 1)
    hit = index[:, :, None] == torch.arange(side, device=scale.device)
    return (weights[:, :, None] * hit).sum(dim=1)
