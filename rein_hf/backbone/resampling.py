"""Weights of a vision transformer whose shapes depend on the sizes of image and patch, resampled to other sizes."""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F


def resample(tensor: torch.Tensor, shape: torch.Size, kind: str, class_tokens: int) -> torch.Tensor:
    """A tensor resampled to a shape.

    Args:
        tensor: of one of the kinds of `Architecture.resampled`.
        shape: what its shape shall be; of a square grid of patches.
        kind (`str`): see `Architecture.resampled`.
        class_tokens (`int`): how many learned positions come before those of the patches.
    """
    if tensor.shape == shape:
        return tensor
    if kind == "kernel":
        return resample_patch_embed(tensor, shape[-1])
    if kind == "grid":
        side = math.isqrt(math.prod(shape[:-1]) - class_tokens)
        positions = tensor.reshape(1, -1, tensor.shape[-1])
        return resample_position_embed(positions, side, class_tokens).reshape(shape)
    # relative positions: as transformers interpolates them for images of other sizes
    if kind == "axis":
        return _resized(tensor.T[None], shape[0], "linear")[0].T.contiguous()
    assert kind == "offsets", kind
    grid, of_class = tensor[:-3], tensor[-3:]
    return torch.cat([_resample_square(grid, math.isqrt(shape[0] - 3), "bilinear"), of_class])


def resample_patch_embed(weight: torch.Tensor, patch_size: int) -> torch.Tensor:
    """Kernel of a patch embedding, (c, 3, p, p), resampled to `patch_size`: bicubic, no antialiasing."""
    if weight.shape[-1] == patch_size:
        return weight
    return _resized(weight, (patch_size, patch_size), "bicubic")


def resample_position_embed(positions: torch.Tensor, side: int, class_tokens: int = 1) -> torch.Tensor:
    """Position embeddings (1, k + n, c), those of k class tokens first, resampled to (1, k + side * side, c): bicubic.

    Raises:
        ValueError: n is not a square.
    """
    of_class, grid = positions[0, :class_tokens], positions[0, class_tokens:]
    if math.isqrt(len(grid)) ** 2 != len(grid):
        raise ValueError(f"{len(grid)} position embeddings found; expected a square number of patches.")
    if len(grid) == side * side:
        return positions
    return torch.cat([of_class, _resample_square(grid, side, "bicubic")])[None]


def _resample_square(rows: torch.Tensor, side: int, mode: str) -> torch.Tensor:
    """Rows (n, c) of a square map, resampled to (side * side, c)."""
    old = math.isqrt(len(rows))
    map = rows.reshape(1, old, old, -1).permute(0, 3, 1, 2)
    return _resized(map, (side, side), mode)[0].flatten(1).T.contiguous()


def _resized(tensor: torch.Tensor, size: int | tuple[int, int], mode: str) -> torch.Tensor:
    """`F.interpolate`, in float32."""
    return F.interpolate(tensor.float(), size=size, mode=mode, align_corners=False).to(tensor.dtype)
