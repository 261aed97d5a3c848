"""Relative positions, where transformers' code makes Python numbers of sizes, which a graph for images of all sizes
cannot have, or computes on the host what a GPU then waits for: same parameters, same names, same results.
"""

from __future__ import annotations

import torch
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.nn import functional as F
from transformers.models.beit.modeling_beit import BeitRelativePositionBias
from transformers.models.sam.modeling_sam import SamVisionAttention, SamVisionSdpaAttention

from .transforms import keeps_tensors


class SamRelativePositions:
    """SAM's relative positions along one side of an image."""

    def get_rel_pos(self, q_size: int, k_size: int, rel_pos: torch.Tensor) -> torch.Tensor:
        """Positions (q_size, k_size, c) from a table (2n - 1, c) of all distances."""
        if not statically_known_true(q_size == k_size):
            return super().get_rel_pos(q_size, k_size, rel_pos)
        table = F.interpolate(rel_pos.t()[None], size=2 * q_size - 1, mode="linear")[0].t()
        place = torch.arange(q_size, device=rel_pos.device)
        return table[place[:, None] - place + (q_size - 1)]


class TraceableSamAttention(SamRelativePositions, SamVisionAttention):
    """SAM's attention; a subclass because of its relative positions."""


class TraceableSamSdpaAttention(SamRelativePositions, SamVisionSdpaAttention):
    """The same for the implementation "sdpa"."""


class TraceableBeitBias(BeitRelativePositionBias):
    """BEiT's relative positions, in both directions."""

    def generate_relative_position_index(self, window_size: tuple[int, int]) -> torch.Tensor:
        """The rows of the table (N, N) for all pairs of tokens, on its device."""
        return _beit_index(tuple(window_size), self.relative_position_bias_table.device)

    def forward(
        self, window_size: tuple[int, int], interpolate_pos_encoding: bool = False, dim_size: int | None = None
    ) -> torch.Tensor:
        """The bias (1, heads, N, N) for the N = rows * columns + 1 tokens of an image of `window_size` patches."""
        if not torch.compiler.is_compiling() or interpolate_pos_encoding:
            return super().forward(window_size, interpolate_pos_encoding, dim_size)
        (rows, columns), (old_rows, old_columns) = window_size, (2 * side - 1 for side in self.window_size)
        # of the class token: to patches, from patches, to itself
        table, of_class = self.relative_position_bias_table.split([old_rows * old_columns, 3])
        table = table.reshape(1, old_columns, old_rows, -1).permute(0, 3, 1, 2)  # in transformers' order, for squares
        table = F.interpolate(table, size=(2 * rows - 1, 2 * columns - 1), mode="bilinear")
        y, x = (torch.arange(side, device=table.device) for side in (rows, columns))
        y, x = y[:, None].expand(rows, columns).flatten(), x.expand(rows, columns).flatten()
        # (heads, rows * columns, rows * columns)
        bias = table[0][:, y[:, None] - y + (rows - 1), x[:, None] - x + (columns - 1)]
        number, (to_patches, from_patches, to_itself) = y.shape[0], (one.view(-1, 1, 1) for one in of_class)
        first = torch.cat([to_itself, to_patches.expand(-1, 1, number)], dim=2)
        others = torch.cat([from_patches.expand(-1, number, 1), bias], dim=2)
        return torch.cat([first, others], dim=1)[None]


@keeps_tensors(10)
def _beit_index(window_size: tuple[int, int], device: torch.device) -> torch.Tensor:
    stock = BeitRelativePositionBias.generate_relative_position_index.__wrapped__  # without its own cache
    with device:
        return stock(window_size)
