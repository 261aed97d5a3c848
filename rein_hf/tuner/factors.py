"""Rein's arithmetic: products of weights that a refinement needs, and the refinement (paper section 3.2).

Notation as in the paper: T tokens (m, c), T = A B with A (m, r) and B (r, c) if they are of low rank, f features
(..., c), S their attention to the tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn


@dataclass(frozen=True)
class RefinementWeights:
    """
    The weights that a refinement is computed from.

    Args:
        tokens: A (..., m, r) and B (..., r, c), or T (..., m, c) alone.
        to_feature: W_T (c, c) and b_T (c,).
        delta: W_f (c, c) and b_f (c,).
        scale (`torch.Tensor`, *optional*): of shape (1,); one if there is none.
        use_softmax (`bool`): whether S is a softmax.
        multiplied (`bool`): whether the matrices of low-rank tokens are to be multiplied with each other.
    """

    tokens: tuple[torch.Tensor, ...]
    to_feature: tuple[torch.Tensor, torch.Tensor]
    delta: tuple[torch.Tensor, torch.Tensor]
    scale: torch.Tensor | None
    use_softmax: bool
    multiplied: bool = False

    def tensors(self) -> tuple[torch.Tensor, ...]:
        """All of them."""
        return (*self.tokens, *self.to_feature, *self.delta, *(() if self.scale is None else (self.scale,)))

    def with_tensors(self, tensors: Sequence[torch.Tensor]) -> RefinementWeights:
        """Others in their place, in the order of `tensors()`."""
        tokens, rest = tuple(tensors[: len(self.tokens)]), tensors[len(self.tokens) :]
        scale = None if self.scale is None else rest[4]
        return replace(self, tokens=tokens, to_feature=tuple(rest[:2]), delta=tuple(rest[2:4]), scale=scale)

    def of_blocks(self, row: int | slice) -> RefinementWeights:
        """Those of one refined block, or of some."""
        return replace(self, tokens=tuple(matrix[row] for matrix in self.tokens))


@dataclass(frozen=True)
class Factors:
    """
    Products of weights, from which the paper's refinement of features f is computed with fewer multiplications:

        S = softmax(f @ T^T / sqrt(c)) = softmax(f @ keys)
        delta = scale * (W_f (S[:, 1:] @ (W_T T[1:] + b_T) + f) + b_f) = S @ values + W f + b

    `keys` and `values` are tuples of matrices; the features are multiplied by one after the other. Low-rank tokens may
    give two matrices each: that takes c^2 + 2r(m + c) multiplications per patch instead of c^2 + 2mc, but more
    products, see [`saves_time`].

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
    def of_weights(cls, weights: RefinementWeights) -> Factors:
        """The factors of a block, or of several if the tokens have a leading dimension."""
        tokens, (weight, bias) = weights.tokens, weights.delta
        if weights.scale is not None:
            weight, bias = weights.scale * weight, weights.scale * bias
        temperature = tokens[-1].shape[-1] ** -0.5 if weights.use_softmax else 1.0
        to_feature, to_feature_bias = weights.to_feature
        if len(tokens) == 1:
            keys = (temperature * tokens[0].mT,)
            values = (_zero_sink_row(nn.functional.linear(tokens[0], to_feature, to_feature_bias)) @ weight.T,)
        else:
            a, b = tokens
            keys = (b.mT, temperature * a.mT)
            # W_T (A B) + b_T = [A, 1] @ [W_T B; b_T]
            rows = nn.functional.linear(b, to_feature)
            rows = torch.cat([rows, to_feature_bias.expand(*rows.shape[:-2], 1, -1)], dim=-2)
            values = (_zero_sink_row(nn.functional.pad(a, (0, 1), value=1.0)), rows @ weight.T)
            if weights.multiplied:
                keys, values = (keys[0] @ keys[1],), (values[0] @ values[1],)
        return cls(keys, values, weight, bias, weights.use_softmax)

    def tensors(self) -> tuple[torch.Tensor, ...]:
        """All of them."""
        return (*self.keys, *self.values, self.weight, self.bias)

    def with_tensors(self, tensors: Sequence[torch.Tensor]) -> Factors:
        """Others in their place, in the order of `tensors()`."""
        *products, weight, bias = tensors
        half = len(products) // 2
        return replace(self, keys=tuple(products[:half]), values=tuple(products[half:]), weight=weight, bias=bias)

    def to(self, device: torch.device, dtype: torch.dtype) -> Factors:
        """The same factors on a device and in a type."""
        return self.with_tensors([tensor.to(device, dtype) for tensor in self.tensors()])

    def unbind(self) -> list[Factors]:
        """The factors of each block, from those of all blocks."""
        number = len(self.keys[0])
        products = [matrix.unbind() for matrix in (*self.keys, *self.values)]
        # the gradients of all blocks are stacked and summed at once: additions one by one would round every sum
        shared = [matrix.expand(number, *matrix.shape).unbind() for matrix in (self.weight, self.bias)]
        return [self.with_tensors(tensors) for tensors in zip(*products, *shared, strict=True)]

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


def saves_time(device: torch.device) -> bool:
    """Whether matrices of low-rank tokens are better multiplied with each other on a device. Two products less for
    each block, and four less in a backward pass, are faster where a product takes longer to launch than to compute; on
    a CPU the multiplications count."""
    return device.type != "cpu"


def add_to_patches(
    output: torch.Tensor, delta: torch.Tensor, num_prefix_tokens: int, in_place: bool = False
) -> torch.Tensor:
    """The output of a block (B, P + N, c) or (B, H, W, c) with delta, of the same shape, added to its patches; in the
    type of the output. The P prefix tokens pass unchanged, whatever their delta is. `in_place` adds to the output
    itself."""
    if in_place:
        output[:, num_prefix_tokens:].add_(delta[:, num_prefix_tokens:])
        return output
    if num_prefix_tokens == 0:
        return (output + delta).to(output.dtype)
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return _AddToPatches.forward(output, delta, num_prefix_tokens)
    return _AddToPatches.apply(output, delta, num_prefix_tokens)


class _AddToPatches(torch.autograd.Function):
    """`add_to_patches`, whose gradient torch would compute in three times as many operations, for it records how the
    prefix tokens are written."""

    generate_vmap_rule = True

    @staticmethod
    def forward(output: torch.Tensor, delta: torch.Tensor, num_prefix_tokens: int) -> torch.Tensor:
        refined = (output + delta).to(output.dtype)
        refined[:, :num_prefix_tokens] = output[:, :num_prefix_tokens]
        return refined

    @staticmethod
    def setup_context(ctx, inputs: tuple, output: torch.Tensor) -> None:
        _, delta, ctx.num_prefix_tokens = inputs
        ctx.dtype = delta.dtype

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        of_delta = gradient.to(ctx.dtype, copy=True)
        of_delta[:, : ctx.num_prefix_tokens] = 0
        return gradient, of_delta, None

    @staticmethod
    def jvp(ctx, of_output: torch.Tensor, of_delta: torch.Tensor, _: None) -> torch.Tensor:
        return _AddToPatches.forward(of_output, of_delta, ctx.num_prefix_tokens)


def _multiply(matrix: torch.Tensor, factors: tuple[torch.Tensor, ...] | list[torch.Tensor]) -> torch.Tensor:
    for factor in factors:
        matrix = matrix @ factor
    return matrix


def _zero_sink_row(matrix: torch.Tensor) -> torch.Tensor:
    """The matrix (..., m, k) with zeros as its first row."""
    return nn.functional.pad(matrix[..., 1:, :], (0, 0, 1, 0))
