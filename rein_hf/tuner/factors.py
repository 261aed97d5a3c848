"""Rein's arithmetic: products of weights that a refinement needs, and the refinement (paper section 3.2).

Notation as in the paper: T tokens (m, c), T = A B with A (m, r) and B (r, c) if they are of low rank, f features
(..., c), S their attention to the tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import nn

from .base import linear_weight


@dataclass(frozen=True)
class Factors:
    """
    Products of weights, from which the paper's refinement of features f is computed with fewer multiplications:

        S = softmax(f @ T^T / sqrt(c)) = softmax(f @ keys)
        delta = scale * (W_f (S[:, 1:] @ (W_T T[1:] + b_T) + f) + b_f) = S @ values + W f + b

    `keys` and `values` are tuples of matrices; the features are multiplied by one after the other. The matrices of
    low-rank tokens are never multiplied with each other: that takes c^2 + 2r(m + c) multiplications per patch instead
    of c^2 + 2mc.

    Args:
        keys: matrices whose product is T^T / sqrt(c), (c, m); without a softmax T^T.
        values: matrices whose product is scale * (W_T T + b_T) W_f^T, (m, c), with a first row of zeros: the first
            token is a sink, which takes the attention of patches that need no refinement.
        weight: W = scale * W_f, (c, c).
        bias: b = scale * b_f, (c,).
        use_softmax (`bool`): whether S is a softmax.

    `keys` and `values` may have a leading dimension, the blocks, which share `weight` and `bias`.
    """

    keys: tuple[torch.Tensor, ...]
    values: tuple[torch.Tensor, ...]
    weight: torch.Tensor
    bias: torch.Tensor
    use_softmax: bool

    @classmethod
    def of_weights(
        cls,
        tokens: tuple[torch.Tensor, ...],
        to_feature: nn.Linear,
        delta: nn.Linear,
        scale: torch.Tensor | None,
        use_softmax: bool,
    ) -> Factors:
        """
        Args:
            tokens: A (..., m, r) and B (..., r, c), or T (..., m, c) alone.
            to_feature: W_T, b_T.
            delta: W_f, b_f.
            scale (`torch.Tensor`, *optional*): of shape (1,); one if there is none.
            use_softmax (`bool`): whether S is a softmax.
        """
        weight, bias = linear_weight(delta), delta.bias
        if scale is not None:
            weight, bias = scale * weight, scale * bias
        temperature = tokens[-1].shape[-1] ** -0.5 if use_softmax else 1.0
        if len(tokens) == 1:
            keys = (temperature * tokens[0].mT,)
            values = (_zero_sink_row(to_feature(tokens[0])) @ weight.T,)
        else:
            a, b = tokens
            keys = (b.mT, temperature * a.mT)
            # W_T (A B) + b_T = [A, 1] @ [W_T B; b_T]
            rows = nn.functional.linear(b, linear_weight(to_feature))
            rows = torch.cat([rows, to_feature.bias.expand(*rows.shape[:-2], 1, -1)], dim=-2)
            values = (_zero_sink_row(nn.functional.pad(a, (0, 1), value=1.0)), rows @ weight.T)
        return cls(keys, values, weight, bias, use_softmax)

    def to(self, device: torch.device, dtype: torch.dtype) -> Factors:
        """The same factors on a device and in a type."""

        def moved(matrices: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            return tuple(matrix.to(device, dtype) for matrix in matrices)

        weight, bias = moved((self.weight, self.bias))
        return replace(self, keys=moved(self.keys), values=moved(self.values), weight=weight, bias=bias)

    def of_block(self, row: int) -> Factors:
        """The factors of one block, from those of all blocks."""
        keys, values = (tuple(matrix[row] for matrix in matrices) for matrices in (self.keys, self.values))
        return replace(self, keys=keys, values=values)

    def attention(self, features: torch.Tensor) -> torch.Tensor:
        """Attention S (..., m) of the features f (..., c) of one block to its tokens; each row sums to 1. Without a
        softmax it is f @ T^T."""
        attention = _multiply(features, self.keys)
        return attention.softmax(dim=-1) if self.use_softmax else attention

    def refine(self, features: torch.Tensor) -> torch.Tensor:
        """The refinement delta (..., c) of the features f (..., c) of one block; new memory."""
        flat = features.flatten(0, -2)
        *first, last = self.values
        delta = nn.functional.linear(flat, self.weight, self.bias)
        return delta.addmm_(_multiply(self.attention(flat), first), last).view(features.shape)


def _multiply(matrix: torch.Tensor, factors: tuple[torch.Tensor, ...] | list[torch.Tensor]) -> torch.Tensor:
    for factor in factors:
        matrix = matrix @ factor
    return matrix


def _zero_sink_row(matrix: torch.Tensor) -> torch.Tensor:
    """The matrix (..., m, k) with zeros as its first row."""
    return nn.functional.pad(matrix[..., 1:, :], (0, 0, 1, 0))
