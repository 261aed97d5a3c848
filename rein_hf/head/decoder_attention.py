"""The two attentions of Mask2Former's transformer decoder at less cost: same parameters, same names, same results up
to rounding. Transformers' and torch's modules also make attention weights, which nobody uses."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F
from transformers.models.mask2former.modeling_mask2former import Mask2FormerAttention

from ..backbone import NormedSum
from ..backbone.transforms import is_transformed
from .cast_weights import NO_CASTS, CastWeights


class CrossAttention(nn.MultiheadAttention):
    """The decoder's attention to the feature maps; a subclass because the stock one also computes attention weights,
    and needs a copy of the mask for every head."""

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        casts: CastWeights = NO_CASTS,
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """
        Args:
            query (`(m, B, q)`), key (`(N, B, q)`), value (`(N, B, q)`): as the decoder passes them.
            attn_mask (`(B, 1, m, N)`): from [`MaskPredictor`], added to the products, one for all heads. With a mask
                of another shape, or none, the stock forward runs.
            casts: of this module.
            kwargs: further arguments of the stock forward.

        Returns:
            The output (m, B, q), and None in the place of the attention weights.
        """
        if attn_mask is None or attn_mask.dim() != 4:
            return super().forward(query, key, value, attn_mask=attn_mask, **kwargs)
        if is_transformed(query, key, value, module=self):
            attn_mask = attn_mask.to(query.dtype).expand(-1, self.num_heads, -1, -1).flatten(0, 1)
            return super().forward(query, key, value, attn_mask=attn_mask, **kwargs)
        # batch first, as the data lies in memory: otherwise a bfloat16 product copies the weight for every token
        projected = [
            split_heads(F.linear(rows.transpose(0, 1), weight, bias), self.num_heads)
            for rows, weight, bias in zip((query, key, value), *(one.chunk(3) for one in casts.of(self)), strict=True)
        ]
        attn_mask, dropout = attn_mask.to(projected[0].dtype), self.dropout if self.training else 0.0
        output = F.scaled_dot_product_attention(*projected, attn_mask=attn_mask, dropout_p=dropout)
        return casts.linear(self.out_proj, output.transpose(1, 2).flatten(2)).transpose(0, 1), None


class SelfAttention(Mask2FormerAttention):
    """The attention of the decoder's queries to each other; a subclass because the stock one makes attention weights
    and copies of queries, keys and values."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_embeddings: torch.Tensor | None = None,
        key_value_states: torch.Tensor | None = None,
        key_value_position_embeddings: torch.Tensor | None = None,
        output_attentions: bool = False,
        casts: CastWeights = NO_CASTS,
        rows: NormedSum | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """
        Args:
            hidden_states (`(m, B, q)`), position_embeddings (`(m, B, q)`, *optional*): queries and keys are their sum.
            attention_mask, key_value_states, key_value_position_embeddings: the stock forward runs with one of these.
            output_attentions: the stock forward runs, and returns the attention weights too.
            casts: of this module.
            rows (`(B, m, q)` each, *optional*): the same hidden states, and with positions, where both are cast.

        Returns:
            The output (m, B, q), and None in the place of the attention weights.
        """
        others = (attention_mask, key_value_states, key_value_position_embeddings)
        is_stock = output_attentions or any(one is not None for one in others)
        if is_stock or is_transformed(hidden_states, module=self):
            return super().forward(hidden_states, attention_mask, position_embeddings, *others[1:], output_attentions)
        if rows is None:
            plain = hidden_states.transpose(0, 1)
            placed = plain if position_embeddings is None else plain + position_embeddings.transpose(0, 1)
            rows = NormedSum(plain, plain, casts.cast(placed))
        projected = [
            split_heads(casts.linear(projection, one), self.num_heads)
            for projection, one in ((self.q_proj, rows.placed), (self.k_proj, rows.placed), (self.v_proj, rows.cast))
        ]
        output = attend(*projected, self.dropout if self.training else 0.0)
        return casts.linear(self.out_proj, output.transpose(1, 2).flatten(2)).transpose(0, 1), None


def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, dropout: float) -> torch.Tensor:
    """Attention (B, heads, m, d) of a hundred queries to each other."""
    if query.device.type == "cpu" and query.dtype == torch.bfloat16:
        # here the backward pass of torch's fused kernel takes three times as long as these operations
        weights = (query * query.shape[-1] ** -0.5 @ key.transpose(2, 3)).softmax(dim=-1, dtype=torch.float32)
        return F.dropout(weights, dropout).to(value.dtype) @ value
    return F.scaled_dot_product_attention(query, key, value, dropout_p=dropout)


def split_heads(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """(B, m, q) -> (B, heads, m, q / heads)."""
    return rows.unflatten(-1, (heads, -1)).transpose(1, 2)
