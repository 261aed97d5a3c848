"""The arithmetic of multi-scale deformable attention as one operator, `rein_hf::sample_and_sum`: with a kernel for
CPUs, and where Triton is installed one for GPUs (deformable_triton.py).

Transformers' module samples a map for every point, and stacks, multiplies and sums these. On a CPU rows of the values
are weighed and summed directly, forward and backward: a bilinear sample is a weighted sum of four of them.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from typing import NamedTuple

import torch

from .row_sums import sum_of_rows, sum_of_rows_backward, sum_of_rows_in_torch


try:
    from . import deformable_triton
except ImportError:  # a torch without Triton
    deformable_triton = None


def has_kernel(device: torch.device) -> bool:
    """Whether [`sample_and_sum`] can be computed on a device."""
    return device.type == "cpu" or device.type == "cuda" and deformable_triton is not None


@torch.library.custom_op("rein_hf::sample_and_sum", mutates_args=(), device_types="cpu")
def sample_and_sum(
    values: torch.Tensor,
    shapes: list[int],
    reference_points: torch.Tensor,
    offsets: torch.Tensor,
    weights: torch.Tensor,
) -> torch.Tensor:
    """Weighted sums (B, Q, c) of bilinear samples, zero outside of a level, computed in float32 at least.

    Args:
        values (`(B, N, c)`): level after level, row after row.
        shapes: height and width of the first level, of the second, and so on.
        reference_points (`(B, Q, levels, 2)`): x and y, 0 to 1 across a level.
        offsets (`(B, Q, heads, levels, points, 2)`): x and y of the samples from there, in pixels of their level.
        weights (`(B, Q, heads, levels, points)`): of the samples. Head h weighs the h-th part of the channels.

    Returns:
        Of the values' type. Gradients with respect to all tensors.
    """
    return _sum_samples(sum_of_rows, values, shapes, reference_points, offsets, weights)


def sample_and_sum_in_torch(
    values: torch.Tensor,
    shapes: list[int],
    reference_points: torch.Tensor,
    offsets: torch.Tensor,
    weights: torch.Tensor,
) -> torch.Tensor:
    """The same as [`sample_and_sum`] in operations of torch, which can be differentiated and transformed in every way,
    but need the memory of all samples."""
    return _sum_samples(sum_of_rows_in_torch, values, shapes, reference_points, offsets, weights)


def _sum_samples(
    sum_rows: Callable[..., torch.Tensor],
    values: torch.Tensor,
    shapes: list[int],
    reference_points: torch.Tensor,
    offsets: torch.Tensor,
    weights: torch.Tensor,
) -> torch.Tensor:
    samples = _Samples.at(shapes, reference_points, offsets, weights, values.dtype)
    table = _canvas(values, shapes, samples.weights.dtype).view(-1, values.shape[-1] // weights.shape[2])
    output = sum_rows(table, samples.index, samples.corner_weights(), samples.steps)
    return output.view(*weights.shape[:2], -1).to(values.dtype)


@sample_and_sum.register_fake
def _(values, shapes, reference_points, offsets, weights):
    return values.new_empty(values.shape[0], weights.shape[1], values.shape[2])


@torch.library.custom_op("rein_hf::sample_and_sum_backward", mutates_args=(), device_types="cpu")
def sample_and_sum_backward(
    grad: torch.Tensor,
    values: torch.Tensor,
    shapes: list[int],
    reference_points: torch.Tensor,
    offsets: torch.Tensor,
    weights: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of [`sample_and_sum`] with respect to values, offsets and weights."""
    batch, _, channels = values.shape
    samples = _Samples.at(shapes, reference_points, offsets, weights, values.dtype)
    canvas = _canvas(values, shapes, samples.weights.dtype)
    per_head = channels // weights.shape[2]
    grad = grad.to(canvas.dtype).reshape(-1, per_head)
    to_table, to_corners = sum_of_rows_backward(
        grad, canvas.view(-1, per_head), samples.index, samples.corner_weights(), samples.steps
    )
    to_canvas, to_values, top = to_table.view_as(canvas), torch.empty_like(values), 0
    for (height, width), level in zip(_pairs(shapes), _levels(to_values, shapes), strict=True):
        level.copy_(to_canvas[:, top + 1 : top + 1 + height, 1 : 1 + width].flatten(1, 2))
        top += height + 2
    to_offsets, to_weights = samples.backward(to_corners.view(4, *samples.weights.shape))
    return to_values, to_offsets.view_as(offsets).to(offsets.dtype), to_weights.view_as(weights).to(weights.dtype)


@sample_and_sum_backward.register_fake
def _(grad, values, shapes, reference_points, offsets, weights):
    return torch.empty_like(values), torch.empty_like(offsets), torch.empty_like(weights)


def _remember(ctx, inputs, output):
    values, ctx.shapes, *others = inputs
    ctx.save_for_backward(values, *others)


def _backward(ctx, grad):
    values, reference_points, offsets, weights = ctx.saved_tensors
    if torch.is_grad_enabled():  # this backward pass is itself to be differentiated
        needed = [tensor for tensor in ctx.saved_tensors if tensor.requires_grad]
        output = sample_and_sum_in_torch(values, ctx.shapes, reference_points, offsets, weights)
        gradients = iter(torch.autograd.grad(output, needed, grad, create_graph=True))
        return tuple(next(gradients) if is_needed else None for is_needed in ctx.needs_input_grad)
    to_values, to_offsets, to_weights = sample_and_sum_backward(
        grad, values, ctx.shapes, reference_points, offsets, weights
    )
    to_points = None
    if ctx.needs_input_grad[2]:  # a reference point moves all samples of its level, by the level's size
        sizes = to_offsets.new_tensor([[width, height] for height, width in _pairs(ctx.shapes)])
        to_points = (to_offsets.sum(dim=(2, 4)) * sizes).to(reference_points.dtype)
    return to_values, None, to_points, to_offsets, to_weights


sample_and_sum.register_autograd(_backward, setup_context=_remember)

if deformable_triton is not None:
    sample_and_sum.register_kernel("cuda")(deformable_triton.forward)
    sample_and_sum_backward.register_kernel("cuda")(deformable_triton.backward)


def _pairs(shapes: list[int]) -> list[tuple[int, int]]:
    """Height and width of each level."""
    return list(zip(shapes[::2], shapes[1::2], strict=True))


def _levels(values: torch.Tensor, shapes: list[int]) -> tuple[torch.Tensor, ...]:
    return values.split([height * width for height, width in _pairs(shapes)], dim=1)


def _canvas(values: torch.Tensor, shapes: list[int], dtype: torch.dtype) -> torch.Tensor:
    """All levels below each other, (B, lines, stride, c), each with a border of zeros of one pixel, so that samples
    outside are zero and that one index serves the four corners, which are steps of 1 and of `stride` apart. The last
    lines are for the lower corners of samples at the lower border, whose weight is zero."""
    stride, lines = _canvas_size(shapes)
    canvas = values.new_zeros(values.shape[0], lines, stride, values.shape[-1], dtype=dtype)
    top = 0
    for (height, width), level in zip(_pairs(shapes), _levels(values, shapes), strict=True):
        canvas[:, top + 1 : top + 1 + height, 1 : 1 + width] = level.unflatten(1, (height, width))
        top += height + 2
    return canvas


def _canvas_size(shapes: list[int]) -> tuple[int, int]:
    """Pixels of a line of the canvas, and its lines."""
    return max(shapes[1::2]) + 2, sum(shapes[::2]) + len(shapes) + 2


class _Samples(NamedTuple):
    """Where samples lie on the canvas.

    Args:
        index (`(B * Q * heads, levels * points)`, int32): row of each sample's upper left corner in the canvas, whose
            rows are pixels and heads.
        right, below (`(B, Q, heads * levels * points)`): how far samples are from that corner, in pixels.
        moves_x, moves_y: booleans of the same shape, false where a sample is so far outside that it was moved.
        weights: of the same shape.
        steps: rows from the upper left corner to each of the four.
    """

    index: torch.Tensor
    right: torch.Tensor
    below: torch.Tensor
    moves_x: torch.Tensor
    moves_y: torch.Tensor
    weights: torch.Tensor
    steps: list[int]

    @classmethod
    def at(
        cls,
        shapes: list[int],
        reference_points: torch.Tensor,
        offsets: torch.Tensor,
        weights: torch.Tensor,
        dtype: torch.dtype,
    ) -> _Samples:
        """As for [`sample_and_sum`]; `dtype` is that of the values."""
        batch, _, heads, levels, points = weights.shape
        dtype = torch.promote_types(dtype, torch.float32)
        offsets, weights = offsets.to(dtype).flatten(2, 4), weights.to(dtype).flatten(2)
        stride, lines = _canvas_size(shapes)

        def per_sample(of_levels: torch.Tensor) -> torch.Tensor:  # (..., levels) -> (..., heads * levels * points)
            of_levels = of_levels[..., None, :, None]
            return of_levels.expand(*of_levels.shape[:-3], heads, levels, points).flatten(-3)

        device = weights.device
        sizes = torch.tensor(_pairs(shapes), dtype=dtype, device=device)
        corners, moves = [], []  # first column or row of each sample on its level, and how far the sample is from it
        for axis, size in ((0, per_sample(sizes[:, 1])), (1, per_sample(sizes[:, 0]))):
            position = per_sample(reference_points[..., axis].to(dtype)) * size - 0.5 + offsets[..., axis]
            # nothing of the level is left beyond -1 and its size
            clamped = position.clamp(min=position.new_tensor(-1.0), max=size)
            moves.append(clamped == position)
            first = clamped.detach().floor()
            corners.append((first.to(torch.int32), clamped - first))
        (column, right), (row, below) = corners

        integer = {"dtype": torch.int32, "device": device}
        tops = torch.tensor([0, *accumulate(height + 2 for height in shapes[:-2:2])], **integer)
        origin = per_sample((tops + 1) * stride + 1) * heads
        origin = origin + torch.arange(heads, **integer).repeat_interleave(levels * points)
        image = torch.arange(batch, **integer).view(-1, 1, 1) * lines * stride * heads
        index = (row * stride + column) * heads + origin + image
        # where a diverged run's coordinates are NaN the index is anything, and the weights are NaN
        last = (batch * lines * stride - stride - 1) * heads - 1
        index = index.clamp_(0, last).view(-1, levels * points)
        return cls(index, right, below, *moves, weights, [0, heads, stride * heads, (stride + 1) * heads])

    def corner_weights(self) -> torch.Tensor:
        """Weight of each corner of each sample, (4, B * Q * heads, levels * points)."""
        lower = self.weights * self.below
        upper = self.weights - lower
        lower_right, upper_right = lower * self.right, upper * self.right
        corners = torch.stack([upper - upper_right, upper_right, lower - lower_right, lower_right])
        return corners.view(4, *self.index.shape)

    def backward(self, to_corners: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Gradients with respect to offsets and weights from those with respect to the corners' weights, (4, B, Q,
        heads * levels * points)."""
        upper_left, upper_right, lower_left, lower_right = to_corners
        upper = torch.lerp(upper_left, upper_right, self.right)
        lower = torch.lerp(lower_left, lower_right, self.right)
        to_x = torch.lerp(upper_right - upper_left, lower_right - lower_left, self.below)
        to_offsets = torch.stack([to_x * self.moves_x, (lower - upper) * self.moves_y], dim=-1)
        return to_offsets.mul_(self.weights[..., None]), torch.lerp(upper, lower, self.below)
