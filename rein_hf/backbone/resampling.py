"""Resamples those weights of a vision transformer whose shapes depend on the image size or the patch size."""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F


def resample(tensor: torch.Tensor, shape: torch.Size, kind: str, class_tokens: int) -> torch.Tensor:
    """Resamples a weight to the shape that it has in a model of another image or patch size.

    Args:
        tensor: the weight.
        shape: the new shape, for a square grid of patches.
        kind (`str`): what the weight is, see `Architecture.resampled`.
        class_tokens (`int`): number of learned positions before those of the patches.
    """
    if tensor.shape == shape:
        return tensor
    if kind == "kernel":
        return resample_patch_embed(tensor, shape[-1])
    if kind == "grid":
        side = math.isqrt(math.prod(shape[:-1]) - class_tokens)
        positions = tensor.reshape(1, -1, tensor.shape[-1])
        return resample_position_embed(positions, side, class_tokens).reshape(shape)
    # relative positions, interpolated as transformers does for images of other sizes
    if kind == "axis":
        return _interpolate(tensor.T[None], shape[0], "linear")[0].T.contiguous()
    assert kind == "offsets", kind
    grid, class_offsets = tensor[:-3], tensor[-3:]
    return torch.cat([_resample_square(grid, math.isqrt(shape[0] - 3), "bilinear"), class_offsets])


def resample_patch_embed(weight: torch.Tensor, patch_size: int) -> torch.Tensor:
    """Resamples the kernel (c, 3, p, p) of a patch embedding to (c, 3, patch_size, patch_size): bicubic, without
    antialiasing."""
    if weight.shape[-1] == patch_size:
        return weight
    return _interpolate(weight, (patch_size, patch_size), "bicubic")


def resample_position_embed(positions: torch.Tensor, side: int, class_tokens: int = 1) -> torch.Tensor:
    """Resamples position embeddings (1, k + n, c), those of k class tokens first, to (1, k + side * side, c): bicubic.

    Raises:
        ValueError: n is not a square.
    """
    class_positions, grid = positions[0, :class_tokens], positions[0, class_tokens:]
    if math.isqrt(len(grid)) ** 2 != len(grid):
        raise ValueError(f"{len(grid)} position embeddings found; expected a square number of patches.")
    if len(grid) == side * side:
        return positions
    return torch.cat([class_positions, _resample_square(grid, side, "bicubic")])[None]


def _resample_square(rows: torch.Tensor, side: int, mode: str) -> torch.Tensor:
    """Resamples a square grid, given as rows (n, c), to (side * side, c)."""
    old_side = math.isqrt(len(rows))
    grid = rows.reshape(1, old_side, old_side, -1).permute(0, 3, 1, 2)
    return _interpolate(grid, (side, side), mode)[0].flatten(1).T.contiguous()


def _interpolate(tensor: torch.Tensor, size: int | tuple[int, int], mode: str) -> torch.Tensor:
    """`F.interpolate`, computed in float32."""
    return F.interpolate(tensor.float(), size=size, mode=mode, align_corners=False).to(tensor.dtype)
