"""Multi-scale deformable attention of Mask2Former's pixel decoder at less cost: same parameters, same names, same
results up to rounding.

Transformers' module first samples the values at all points, into large tensors, and then multiplies and sums those. A
bilinear sample is a weighted sum of four rows of the values, and so is a sum of samples. This module computes that one
weighted sum of rows directly, forward and backward.
"""

from __future__ import annotations

import warnings

import torch
from torch.nn import functional as F
from transformers.models.mask2former.modeling_mask2former import (
    Mask2FormerPixelDecoderEncoderMultiscaleDeformableAttention,
)

from .transforms import is_transformed


class DeformableAttention(Mask2FormerPixelDecoderEncoderMultiscaleDeformableAttention):
    """
    Multi-scale deformable attention, for inference and training; a subclass because the stock one makes large copies.

    For each query and head the output is a weighted sum of 4 * levels * points rows, [`sum_of_rows`]. That is so on
    CPUs, and under `torch.func` and forward-mode differentiation, which `grid_sample` does not support. The stock
    forward runs on other devices, and in exported and traced graphs, since other programs know `grid_sample` but not
    an operator of this library.
    """

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        position_embeddings: torch.Tensor | None = None,
        reference_points: torch.Tensor | None = None,
        spatial_shapes_list: list[tuple[int, int]] | None = None,
        level_start_index: torch.Tensor | None = None,
        output_attentions: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            hidden_states (`(B, Q, c)`), position_embeddings (`(B, Q, c)`, *optional*): queries are their sum.
            encoder_hidden_states (`(B, N, c)`): values, one level after the other.
            attention_mask (`(B, N)`, *optional*): True where a value counts as zero.
            reference_points (`(B, Q, levels, 2)`): x and y of each query, from 0 to 1.
            spatial_shapes_list: height and width of each level.
            encoder_attention_mask, level_start_index, output_attentions: not used, as in the stock module.

        Returns:
            The output (B, Q, c) and the attention weights (B, Q, heads, levels, points).
        """
        tensors = (hidden_states, encoder_hidden_states, reference_points, *self.parameters())
        is_graph = torch.compiler.is_exporting() or torch.jit.is_tracing()
        if is_graph or (hidden_states.device.type != "cpu" and not is_transformed(*tensors)):
            return super().forward(
                hidden_states,
                attention_mask,
                encoder_hidden_states,
                encoder_attention_mask,
                position_embeddings,
                reference_points,
                spatial_shapes_list,
                level_start_index,
                output_attentions,
            )
        queries = self.with_pos_embed(hidden_states, position_embeddings)
        values = self.value_proj(encoder_hidden_states)
        if attention_mask is not None:
            values = values.masked_fill(attention_mask[..., None], 0.0)
        per_head = (*queries.shape[:2], self.n_heads)
        offsets = self.sampling_offsets(queries).view(*per_head, self.n_levels, self.n_points, 2)
        # transposed: a softmax over the first dimension is four times as fast as over a last one of size twelve
        logits = self.attention_weights(queries).view(-1, self.n_levels * self.n_points)
        weights = logits.t().softmax(dim=0).t().reshape(*per_head, self.n_levels, self.n_points)
        output = sample_and_sum(values, spatial_shapes_list, reference_points, offsets, weights)
        return self.output_proj(output), weights


def sample_and_sum(
    values: torch.Tensor,
    shapes: list[tuple[int, int]],
    reference_points: torch.Tensor,
    offsets: torch.Tensor,
    weights: torch.Tensor,
) -> torch.Tensor:
    """Weighted sums (B, Q, c) of bilinear samples, zero outside of a level, computed in float32 at least.

    Args:
        values (`(B, N, c)`): one level after the other, each row by row.
        shapes: height and width of each level.
        reference_points (`(B, Q, levels, 2)`): x and y, from 0 to 1 across a level.
        offsets (`(B, Q, heads, levels, points, 2)`): x and y of each sample from the reference point, in pixels of its
            level.
        weights (`(B, Q, heads, levels, points)`): weight of each sample. Head h sums the h-th part of the channels.
    """
    batch, queries, heads, levels, points = weights.shape
    dtype, device = torch.promote_types(values.dtype, torch.float32), values.device
    offsets, weights = offsets.to(dtype).flatten(2, 4), weights.to(dtype).flatten(2)

    # The levels lie on one canvas, one below the other, each inside a border of zeros one pixel wide. So samples
    # outside of a level are zero, and one index finds all four corners of a sample: the others are 1, `stride` and
    # `stride` + 1 pixels further. The two extra lines at the end keep that inside the canvas for samples on the last
    # border, where the weights of the lower corners are zero.
    stride = max(width for _, width in shapes) + 2
    lines = sum(height + 2 for height, _ in shapes) + 2
    canvas = values.new_zeros(batch, lines, stride, values.shape[-1], dtype=dtype)
    tops, top = [], 0
    for (height, width), level in zip(shapes, values.split([h * w for h, w in shapes], dim=1), strict=True):
        canvas[:, top + 1 : top + 1 + height, 1 : 1 + width] = level.unflatten(1, (height, width))
        tops.append(top)
        top += height + 2
    table = canvas.view(-1, values.shape[-1] // heads)  # one row per pixel and head

    def per_sample(of_levels: torch.Tensor) -> torch.Tensor:  # (..., levels) -> (..., heads * levels * points)
        of_levels = of_levels[..., None, :, None]
        return of_levels.expand(*of_levels.shape[:-3], heads, levels, points).flatten(-3)

    sizes = torch.tensor(shapes, dtype=dtype, device=device)
    corners = []  # per axis: the column or row left of or above each sample, and the sample's distance from it
    for axis, size in ((0, sizes[:, 1]), (1, sizes[:, 0])):
        position = per_sample(reference_points[..., axis].to(dtype) * size - 0.5) + offsets[..., axis]
        # further outside than that every sample is zero
        position = position.clamp(min=position.new_tensor(-1.0), max=per_sample(size))
        first = position.detach().floor()
        corners.append((first.to(torch.int32), position - first))
    (column, right), (row, below) = corners

    integer = {"dtype": torch.int32, "device": device}
    origin = per_sample((torch.tensor(tops, **integer) + 1) * stride + 1) * heads
    origin = origin + torch.arange(heads, **integer).repeat_interleave(levels * points)
    image = torch.arange(batch, **integer).view(-1, 1, 1) * lines * stride * heads
    index = (row * stride + column) * heads + origin + image
    # in a diverged run coordinates are NaN; then the index can be any number, and the weights are NaN
    index = index.clamp(0, len(table) - 1 - (stride + 1) * heads).view(-1, levels * points)

    lower = weights * below
    upper = weights - lower
    lower_right, upper_right = lower * right, upper * right
    corners = torch.stack([upper - upper_right, upper_right, lower - lower_right, lower_right])
    steps = [0, heads, stride * heads, (stride + 1) * heads]
    corners = corners.view(4, -1, levels * points)
    if is_transformed(table, corners):
        output = sum_of_rows_in_torch(table, index, corners, steps)
    else:
        output = sum_of_rows(table, index, corners, steps)
    return output.view(batch, queries, -1).to(values.dtype)


@torch.library.custom_op("rein_hf::sum_of_rows", mutates_args=())
def sum_of_rows(table: torch.Tensor, index: torch.Tensor, weights: torch.Tensor, steps: list[int]) -> torch.Tensor:
    """Weighted sums of rows, `output[r] = sum over k and s of weights[k, r, s] * table[index[r, s] + steps[k]]`.

    It is an operator of its own because of its backward pass: that of `embedding_bag` adds one row after the other to
    the table's gradient, and takes about twenty times as long as its forward pass.

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


@sum_of_rows.register_fake
def _(table, index, weights, steps):
    return table.new_empty(index.shape[0], table.shape[1])


def sum_of_rows_in_torch(
    table: torch.Tensor, index: torch.Tensor, weights: torch.Tensor, steps: list[int]
) -> torch.Tensor:
    """The same as [`sum_of_rows`] in operations of torch, which can be differentiated and transformed in every way,
    but need the memory of all rows."""
    parts = (torch.einsum("rsd,rs->rd", table[index + step], one) for step, one in zip(steps, weights, strict=True))
    return sum(parts)


@torch.library.custom_op("rein_hf::sum_of_rows_backward", mutates_args=())
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


@sum_of_rows_backward.register_fake
def _(grad, table, index, weights, steps):
    return torch.empty_like(table), torch.empty_like(weights)


def _setup_context(ctx, inputs, output):
    *tensors, ctx.steps = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, grad):
    table, index, weights = ctx.saved_tensors
    if torch.is_grad_enabled():  # this backward pass is itself to be differentiated
        output = sum_of_rows_in_torch(table, index, weights, ctx.steps)
        grad_table, grad_weights = torch.autograd.grad(output, (table, weights), grad, create_graph=True)
        return grad_table, None, grad_weights, None
    grad_table, grad_weights = sum_of_rows_backward(grad.contiguous(), table, index, weights, ctx.steps)
    return grad_table, None, grad_weights, None


sum_of_rows.register_autograd(_backward, setup_context=_setup_context)
