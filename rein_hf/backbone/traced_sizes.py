"""Sizes in a graph that `torch.export` makes for images of many sizes.

Such a graph holds a size as an expression of the image's height or width. Padding makes long expressions of quotients
and remainders, and at each `view` of a padded tensor torch reasons for a long time whether its sizes are possible.
Here the number of multiples in a padded size is a symbol of its own instead, which the graph reads from a tensor when
it runs: the padded size is simply `multiple * count`. Sizes that are known when a graph is made remain constants, and
outside of a graph these are ordinary operations.
"""

from __future__ import annotations

import torch
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.nn import functional as F


def pad_to_multiple(values: torch.Tensor, dim: int, multiple: int, least: int = 1) -> tuple[torch.Tensor, int]:
    """Values with zeros after the last one of `dim`, so that its size is a multiple.

    Args:
        values: a tensor of any shape.
        dim (`int`): the dimension, counted from 0.
        multiple (`int`): what its size shall be a multiple of.
        least (`int`): how many multiples there always are, at least.

    Returns:
        The padded values, and how many multiples their size in `dim` is.
    """
    size = values.shape[dim]
    count = (size + multiple - 1) // multiple
    if statically_known_true(size % multiple == 0):
        return values, size // multiple
    if not torch.compiler.is_exporting() or statically_known_true(size % multiple != 0):
        return F.pad(values, [0, 0] * (values.ndim - 1 - dim) + [0, -size % multiple]), count
    count = torch.scalar_tensor(count, dtype=torch.int64).item()
    torch._check(count >= least)
    # indices and not `F.pad`, for which a traced graph would ask whether anything is to be padded
    index = torch.arange(count * multiple, device=values.device)
    inside = (index < size).view(-1, *[1] * (values.ndim - 1 - dim))
    return values.index_select(dim, index.clamp(max=size - 1)) * inside, count


def crop_to(values: torch.Tensor, dim: int, size: int) -> torch.Tensor:
    """The first `size` values of `dim`, counted from 0, which has as many at least."""
    if statically_known_true(values.shape[dim] == size):
        return values
    if not torch.compiler.is_exporting():
        return values.narrow(dim, 0, size)
    # a slice would ask whether there are as many
    return values.index_select(dim, torch.arange(size, device=values.device))


def halve(values: torch.Tensor, dim: int) -> torch.Tensor:
    """The means of neighbours along `dim`, counted from 0, two by two; a last one without neighbour is left out. In
    indices, since torch 2.11 has to know for a pooling whether the size is even."""
    first = 2 * torch.arange(values.shape[dim] // 2, device=values.device)
    return (values.index_select(dim, first) + values.index_select(dim, first + 1)) / 2
