"""Multi-scale deformable sampling on a GPU: one Triton kernel forward, one backward.

Both go through the samples of a block of queries of one head, and gather the four rows of values around each. Sums are
in float32 for values in half precision, in the values' own type otherwise. The shapes of all arguments are those of
[`rein_hf.head.deformable_sampling.sample_and_sum`].

`TRITON_INTERPRET=1` runs the kernels on a CPU, which is how they are tested where there is no GPU.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl


# Queries that one program goes through. Compiled for sm_80 and sm_90, no register spills with 16 (122 and 56 registers
# in the backward pass) or 32 (217 and 109); with 8 and 64 some do.
BLOCK_QUERIES = 16


@triton.jit
def _sample(
    anchors,
    offsets,
    weights,
    row,
    head,
    inside,
    height,
    width,
    level,
    point,
    HEADS: tl.constexpr,
    LEVELS: tl.constexpr,
    POINTS: tl.constexpr,
    TYPE: tl.constexpr,
):
    """One sample for each query of the block, all (BLOCK,): where its weight lies, whether any value is near it, its
    weight, the column and row of its upper left corner, and how far it is right of and below that corner, in pixels of
    its level. `anchors` are the reference points, `row` counts the queries of all images."""
    at = row * LEVELS + level
    x = tl.load(anchors + 2 * at, mask=inside, other=0.0).to(TYPE) * width - 0.5
    y = tl.load(anchors + 2 * at + 1, mask=inside, other=0.0).to(TYPE) * height - 0.5
    at = ((row * HEADS + head) * LEVELS + level) * POINTS + point
    x += tl.load(offsets + 2 * at, mask=inside, other=0.0).to(TYPE)
    y += tl.load(offsets + 2 * at + 1, mask=inside, other=0.0).to(TYPE)
    # nothing of the level is left beyond -1 and its size; a number that is none stays one, in what is right and below
    near = inside & (x > -1) & (x < width) & (y > -1) & (y < height)
    x = tl.where(x < -1, -1.0, tl.where(x > width, width, x)).to(TYPE)
    y = tl.where(y < -1, -1.0, tl.where(y > height, height, y)).to(TYPE)
    left, top = tl.floor(x), tl.floor(y)
    weight = tl.load(weights + at, mask=inside, other=0.0).to(TYPE)
    return at, near, weight, left.to(tl.int32), top.to(tl.int32), x - left, y - top


@triton.jit
def _corner(column, row, inside, height, width, start, channel, valid, width_of_values):
    """Where the values (BLOCK, D) of a corner lie, and which of them are there: none outside of the level, whose first
    value is `start`."""
    there = inside & (column >= 0) & (column < width) & (row >= 0) & (row < height)
    token = start + row * width + column
    return token[:, None] * width_of_values + channel[None, :], there[:, None] & valid[None, :]


@triton.jit
def _forward_kernel(
    values,
    anchors,
    offsets,
    weights,
    output,
    shapes,
    queries,
    tokens,
    HEADS: tl.constexpr,
    LEVELS: tl.constexpr,
    POINTS: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    TYPE: tl.constexpr,
):
    image, head = tl.program_id(1) // HEADS, tl.program_id(1) % HEADS
    query = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside, row = query < queries, image.to(tl.int64) * queries + query
    channel = tl.arange(0, BLOCK_CHANNELS)
    valid = channel < CHANNELS
    channel += head * CHANNELS
    total = tl.zeros((BLOCK, BLOCK_CHANNELS), TYPE)
    start = image.to(tl.int64) * tokens
    for level in tl.static_range(LEVELS):
        height, width = shapes[2 * level], shapes[2 * level + 1]
        for point in range(POINTS):
            at, near, weight, left, top, right_of, below = _sample(
                anchors, offsets, weights, row, head, inside, height, width, level, point, HEADS, LEVELS, POINTS, TYPE
            )
            for corner in tl.static_range(4):
                share_x = right_of if corner % 2 else 1 - right_of
                share_y = below if corner // 2 else 1 - below
                place, there = _corner(
                    left + corner % 2,
                    top + corner // 2,
                    inside,
                    height,
                    width,
                    start,
                    channel,
                    valid,
                    HEADS * CHANNELS,
                )
                total += (weight * share_x * share_y)[:, None] * tl.load(values + place, there, 0.0).to(TYPE)
        start += height * width
    rows = (row * HEADS * CHANNELS)[:, None] + channel[None, :]
    tl.store(output + rows, total, inside[:, None] & valid[None, :])


@triton.jit
def _backward_kernel(
    grad,
    values,
    anchors,
    offsets,
    weights,
    to_values,
    to_offsets,
    to_weights,
    shapes,
    queries,
    tokens,
    HEADS: tl.constexpr,
    LEVELS: tl.constexpr,
    POINTS: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    TYPE: tl.constexpr,
):
    image, head = tl.program_id(1) // HEADS, tl.program_id(1) % HEADS
    query = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside, row = query < queries, image.to(tl.int64) * queries + query
    channel = tl.arange(0, BLOCK_CHANNELS)
    valid = channel < CHANNELS
    channel += head * CHANNELS
    rows = (row * HEADS * CHANNELS)[:, None] + channel[None, :]
    of_output = tl.load(grad + rows, inside[:, None] & valid[None, :], 0.0).to(TYPE)
    start = image.to(tl.int64) * tokens
    for level in tl.static_range(LEVELS):
        height, width = shapes[2 * level], shapes[2 * level + 1]
        for point in range(POINTS):
            at, near, weight, left, top, right_of, below = _sample(
                anchors, offsets, weights, row, head, inside, height, width, level, point, HEADS, LEVELS, POINTS, TYPE
            )
            to_weight = tl.zeros((BLOCK,), TYPE)
            to_x = tl.zeros((BLOCK,), TYPE)
            to_y = tl.zeros((BLOCK,), TYPE)
            for corner in tl.static_range(4):
                share_x = right_of if corner % 2 else 1 - right_of
                share_y = below if corner // 2 else 1 - below
                place, there = _corner(
                    left + corner % 2,
                    top + corner // 2,
                    inside,
                    height,
                    width,
                    start,
                    channel,
                    valid,
                    HEADS * CHANNELS,
                )
                product = tl.sum(of_output * tl.load(values + place, there, 0.0).to(TYPE), axis=1)
                to_weight += share_x * share_y * product
                to_x += (share_y if corner % 2 else -share_y) * product
                to_y += (share_x if corner // 2 else -share_x) * product
                tl.atomic_add(to_values + place, (weight * share_x * share_y)[:, None] * of_output, there)
            tl.store(to_weights + at, to_weight, inside)
            # a sample that no value is near to does not change when it moves
            tl.store(to_offsets + 2 * at, tl.where(near, to_x * weight, 0.0), inside)
            tl.store(to_offsets + 2 * at + 1, tl.where(near, to_y * weight, 0.0), inside)
        start += height * width


def _launch(kernel, tensors: list[torch.Tensor], shapes: list[int], weights: torch.Tensor, values) -> None:
    batch, queries, heads, levels, points = weights.shape
    channels = values.shape[-1] // heads
    grid = (triton.cdiv(queries, BLOCK_QUERIES), batch * heads)
    with torch.cuda.device_of(values):  # Triton launches on the current device, wherever the tensors are
        kernel[grid](
            *tensors,
            tuple(shapes),
            queries,
            values.shape[1],
            HEADS=heads,
            LEVELS=levels,
            POINTS=points,
            CHANNELS=channels,
            BLOCK=BLOCK_QUERIES,
            BLOCK_CHANNELS=triton.next_power_of_2(channels),
            TYPE=tl.float64 if values.dtype == torch.float64 else tl.float32,
            enable_fp_fusion=True,  # the default, which Triton is about to change
        )


def forward(
    values: torch.Tensor,
    shapes: list[int],
    reference_points: torch.Tensor,
    offsets: torch.Tensor,
    weights: torch.Tensor,
) -> torch.Tensor:
    """Weighted sums (B, Q, c) of bilinear samples, in the type of the values."""
    values, reference_points, offsets, weights = (
        tensor.contiguous() for tensor in (values, reference_points, offsets, weights)
    )
    output = values.new_empty(values.shape[0], weights.shape[1], values.shape[2])
    _launch(_forward_kernel, [values, reference_points, offsets, weights, output], shapes, weights, values)
    return output


def backward(
    grad: torch.Tensor,
    values: torch.Tensor,
    shapes: list[int],
    reference_points: torch.Tensor,
    offsets: torch.Tensor,
    weights: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients with respect to values, offsets and weights, each in the type of its tensor."""
    grad, values, reference_points, offsets, weights = (
        tensor.contiguous() for tensor in (grad, values, reference_points, offsets, weights)
    )
    # many queries add to one value, in an order that changes from call to call
    sums = torch.float64 if values.dtype == torch.float64 else torch.float32
    to_values = torch.zeros_like(values, dtype=sums)
    to_offsets, to_weights = torch.empty_like(offsets), torch.empty_like(weights)
    tensors = [grad, values, reference_points, offsets, weights, to_values, to_offsets, to_weights]
    _launch(_backward_kernel, tensors, shapes, weights, values)
    return to_values.to(values.dtype), to_offsets, to_weights
