"""Weighted sums of rows of a matrix on a CPU, and their gradients, each of the two as fast as it can be had there."""

from __future__ import annotations

import warnings

import torch
from torch.nn import functional as F


def sum_of_rows(table: torch.Tensor, index: torch.Tensor, weights: torch.Tensor, steps: list[int]) -> torch.Tensor:
    """Weighted sums of rows, `output[r] = sum over k and s of weights[k, r, s] * table[index[r, s] + steps[k]]`.

    Without gradients: the backward pass of `embedding_bag` adds one row after the other to the table's gradient, and
    takes about twenty times as long as its forward pass; [`sum_of_rows_backward`] takes its place.

    Args:
        table (`(N, d)`): on a CPU.
        index (`(R, S)`): int32.
        weights (`(K, R, S)`): weight of each row that is summed.
        steps: K numbers in ascending order, the first is 0. The last one plus the largest index must be below N.

    Returns:
        The sums (R, d), in the table's dtype.
    """
    table, weights = table.detach(), weights.detach()  # otherwise `embedding_bag` prepares its own backward
    output = None
    for step, weight in zip(steps, weights, strict=True):
        part = F.embedding_bag(index, table[step:], mode="sum", per_sample_weights=weight)
        output = part if output is None else output.add_(part)
    return output


def sum_of_rows_in_torch(
    table: torch.Tensor, index: torch.Tensor, weights: torch.Tensor, steps: list[int]
) -> torch.Tensor:
    """The same as [`sum_of_rows`] in operations of torch, which can be differentiated and transformed in every way,
    but need the memory of all rows."""
    parts = (torch.einsum("rsd,rs->rd", table[index + step], one) for step, one in zip(steps, weights, strict=True))
    return sum(parts)


def sum_of_rows_backward(
    grad: torch.Tensor, table: torch.Tensor, index: torch.Tensor, weights: torch.Tensor, steps: list[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of [`sum_of_rows`] with respect to table and weights, from the gradient (R, d) of its output."""
    rows, samples = index.shape
    flat = index.flatten()
    # of the table: for each of its rows a weighted sum of rows of `grad`; sorting brings together what is summed
    sorted_index, order = flat.sort()
    bags = len(table) - steps[-1]
    ends = F.pad(sorted_index.bincount(minlength=bags).cumsum(0), (1, 0))
    output_row = order // samples
    grad_table = torch.zeros_like(table)
    for step, weight in zip(steps, weights.flatten(1), strict=True):
        grad_table[step : step + bags] += F.embedding_bag(
            output_row, grad, ends, mode="sum", per_sample_weights=weight[order], include_last_offset=True
        )
    # of the weights: for each sample the product of a row of `grad` and a row of the table
    ends = torch.arange(0, (rows + 1) * samples, samples, dtype=index.dtype)
    zeros, grad_weights = grad.new_zeros(len(flat)), torch.empty_like(weights)
    for step, out in zip(steps, grad_weights, strict=True):
        part = table[step:]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
            pattern = torch.sparse_csr_tensor(ends, flat, zeros, (rows, len(part)), check_invariants=False)
        out.copy_(torch.sparse.sampled_addmm(pattern, grad, part.t(), beta=0.0).values().view_as(out))
    return grad_table, grad_weights
