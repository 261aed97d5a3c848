"""Blocks that attend within windows, where a graph for images of all sizes needs other code than transformers'
(traced_sizes.py): same parameters, same names, same results.
"""

from __future__ import annotations

import torch
from transformers.models.sam.modeling_sam import SamVisionLayer
from transformers.models.sam2.modeling_sam2 import Sam2MultiScaleBlock, do_pool

from .traced_sizes import crop_to, pad_to_multiple


class TraceableHieraBlock(Sam2MultiScaleBlock):
    """Hiera's block; a subclass because the stock one calls functions of its module to make windows."""

    def forward(self, hidden_states: torch.Tensor, **kwargs) -> torch.Tensor:
        """Features (B, H, W, c) -> (B, H, W, c), or (B, H // 2, W // 2, 2c) in the first block of a stage."""
        if not torch.compiler.is_exporting() or not self.window_size:
            return super().forward(hidden_states, **kwargs)
        residual, normed = hidden_states, self.layer_norm1(hidden_states)
        if self.dim != self.dim_out:
            residual = do_pool(self.proj(normed), self.query_stride)
        windows, counts = partition(normed, self.window_size)
        # within the windows a query may be the maximum of several positions
        hidden_states = residual + unpartition(self.attn(windows, **kwargs), counts, residual.shape)
        return hidden_states + self.mlp(self.layer_norm2(hidden_states))


class TraceableSamLayer(SamVisionLayer):
    """SAM's block; a subclass because of its windows."""

    def window_partition(self, hidden_states: torch.Tensor, window_size: int) -> tuple[torch.Tensor, tuple[int, int]]:
        """Windows as [`partition`] makes them; and how many there are, where transformers has the padded size."""
        if not torch.compiler.is_exporting():
            return super().window_partition(hidden_states, window_size)
        return partition(hidden_states, window_size)

    def window_unpartition(
        self,
        windows: torch.Tensor,
        window_size: int,
        padding_shape: tuple[int, int],
        original_shape: tuple[int, int],
    ) -> torch.Tensor:
        """Features (B, H, W, c) of windows. `padding_shape` is what `window_partition` gave."""
        if not torch.compiler.is_exporting():
            return super().window_unpartition(windows, window_size, padding_shape, original_shape)
        batch = windows.shape[0] // (padding_shape[0] * padding_shape[1])
        return unpartition(windows, padding_shape, (batch, *original_shape))


def partition(features: torch.Tensor, window_size: int) -> tuple[torch.Tensor, tuple[int, int]]:
    """Windows (B * rows * columns, s, s, c) of features (B, H, W, c), with zeros where windows go beyond them.

    Returns:
        The windows; how many rows and columns of windows each image has.
    """
    features, rows = pad_to_multiple(features, 1, window_size)
    features, columns = pad_to_multiple(features, 2, window_size)
    batch, channels = features.shape[0], features.shape[3]
    windows = features.view(batch, rows, window_size, columns, window_size, channels).permute(0, 1, 3, 2, 4, 5)
    return windows.contiguous().view(batch * rows * columns, window_size, window_size, channels), (rows, columns)


def unpartition(windows: torch.Tensor, counts: tuple[int, int], shape: tuple[int, ...]) -> torch.Tensor:
    """Features (B, H, W, c) of windows (B * rows * columns, s, s, c).

    Args:
        windows: the windows.
        counts: how many rows and columns of windows each image has.
        shape: begins with B, H and W.
    """
    (rows, columns), (side, channels), (batch, height, width) = counts, windows.shape[2:], shape[:3]
    features = windows.view(batch, rows, columns, side, side, channels).permute(0, 1, 3, 2, 4, 5).contiguous()
    features = features.view(batch, rows * side, columns * side, channels)
    return crop_to(crop_to(features, 1, height), 2, width)
