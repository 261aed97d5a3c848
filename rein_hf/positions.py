"""Position embeddings of a vision transformer for images of other sizes than it was trained with."""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F
from transformers.models.dinov2.modeling_dinov2 import Dinov2Embeddings


class ScaleFactorDinov2Embeddings(Dinov2Embeddings):
    """Dinov2's embeddings; a subclass because positions are interpolated by DINOv2's scale factor."""

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
        grid = grid.reshape(side, side, -1).permute(2, 0, 1).float()
        with torch.autocast(grid.device.type, enabled=False):  # as interpolation is in float32 under autocast
            grid = down @ grid @ across.T
        grid = grid.flatten(1).T[None].to(class_position.dtype)
        return torch.cat([class_position, grid], dim=1)


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
