"""Multi-scale deformable attention of Mask2Former's pixel decoder at less cost: same parameters, same names, same
results up to rounding.

Transformers' module first samples the values at all points, into large tensors, and then multiplies and sums those.
Here that is one operator, forward and backward: deformable_sampling.py.
"""

from __future__ import annotations

import torch
from transformers.models.mask2former.modeling_mask2former import (
    Mask2FormerPixelDecoderEncoderMultiscaleDeformableAttention,
)

from ..backbone.transforms import is_transformed
from .cast_weights import NO_CASTS, CastWeights
from .deformable_sampling import has_kernel, sample_and_sum, sample_and_sum_in_torch


class DeformableAttention(Mask2FormerPixelDecoderEncoderMultiscaleDeformableAttention):
    """
    Multi-scale deformable attention, for inference and training; a subclass because the stock one makes large copies.

    The operator runs where it has a kernel: on CPUs, and on GPUs where Triton is installed. Under `torch.func` and
    forward-mode differentiation, which neither it nor `grid_sample` supports, the same is computed by other operations
    of torch. The stock forward runs on other devices, and in exported and traced graphs, since other programs know
    `grid_sample` but not an operator of this library.
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
        casts: CastWeights = NO_CASTS,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            hidden_states (`(B, Q, c)`), position_embeddings (`(B, Q, c)`, *optional*): queries are their sum.
            encoder_hidden_states (`(B, N, c)`): values, one level after the other.
            attention_mask (`(B, N)`, *optional*): True where a value counts as zero.
            reference_points (`(B, Q, levels, 2)`): x and y of each query, from 0 to 1.
            spatial_shapes_list: height and width of each level.
            casts: of this module.
            encoder_attention_mask, level_start_index, output_attentions: not used, as in the stock module.

        Returns:
            The output (B, Q, c) and the attention weights (B, Q, heads, levels, points).
        """
        is_graph = torch.compiler.is_exporting() or torch.jit.is_tracing()
        transformed = is_transformed(hidden_states, encoder_hidden_states, reference_points, module=self)
        if is_graph or not (transformed or has_kernel(hidden_states.device)):
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
        queries = casts.cast(self.with_pos_embed(hidden_states, position_embeddings))
        values = casts.linear(self.value_proj, encoder_hidden_states)
        if attention_mask is not None:
            values = values.masked_fill(attention_mask[..., None], 0.0)
        per_head = (*queries.shape[:2], self.n_heads)
        offsets = casts.linear(self.sampling_offsets, queries).view(*per_head, self.n_levels, self.n_points, 2)
        logits = casts.linear(self.attention_weights, queries).view(-1, self.n_levels * self.n_points)
        if logits.device.type == "cpu":
            # transposed: a softmax over the first dimension is four times as fast as over a last one of size twelve
            weights = logits.t().softmax(dim=0).t()
        else:
            weights = logits.softmax(dim=-1)
        weights = weights.reshape(*per_head, self.n_levels, self.n_points)
        shapes = [side for shape in spatial_shapes_list for side in shape]
        sum_samples = sample_and_sum_in_torch if transformed else sample_and_sum
        output = sum_samples(values, shapes, reference_points, offsets, weights)
        return casts.linear(self.output_proj, output), weights
