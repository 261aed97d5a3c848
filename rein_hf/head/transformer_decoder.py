"""Mask2Former's transformer decoder at less cost: same parameters, same names, same results up to rounding.

What differs from transformers' modules:
- an attention mask is computed from pixel embeddings that were first resized to its size. The stock decoder computes
  the full masks and resizes those; both operations are linear, so the result is the same;
- the full masks of all decoder outputs are computed together, at the end;
- the attention to the feature maps returns no attention weights, and all its heads share one mask.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F
from transformers.models.mask2former.modeling_mask2former import (
    Mask2FormerMaskedAttentionDecoderOutput,
    Mask2FormerMaskPredictor,
    Mask2FormerTransformerModule,
)

from .transforms import is_transformed


class TransformerModule(Mask2FormerTransformerModule):
    """The transformer decoder and the inputs that it needs; a subclass because it computes the masks of all decoder
    outputs together."""

    def forward(
        self,
        multi_scale_features: Sequence[torch.Tensor],
        mask_features: torch.Tensor,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> Mask2FormerMaskedAttentionDecoderOutput:
        """
        Args:
            multi_scale_features: three feature maps (B, c, h, w), coarsest first.
            mask_features (`(B, c, H, W)`): pixel embeddings.
            output_hidden_states, output_attentions: as in the stock module.

        Returns:
            What the stock module returns; `masks_queries_logits` is a tuple of mask logits (B, m, H, W), one entry per
            decoder output, the initial output first.
        """
        output = self.decode(multi_scale_features, mask_features, output_hidden_states, output_attentions)
        output.masks_queries_logits = mask_logits(output.masks_queries_logits, mask_features)
        return output

    def decode(
        self,
        multi_scale_features: Sequence[torch.Tensor],
        mask_features: torch.Tensor,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> Mask2FormerMaskedAttentionDecoderOutput:
        """Does what `forward` does, but `masks_queries_logits` holds mask embeddings (B, m, c) instead of mask logits;
        [`mask_logits`] turns them into mask logits."""
        features, positions, sizes, resized = [], [], [], []
        for level, (projection, feature_map) in enumerate(
            zip(self.input_projections, multi_scale_features, strict=True)
        ):
            sizes.append(feature_map.shape[-2:])
            position = self.position_embedder(feature_map.shape, feature_map.device, feature_map.dtype)
            positions.append(position.flatten(2).permute(2, 0, 1))
            features.append(projection(feature_map).flatten(2).permute(2, 0, 1) + self.level_embed.weight[level])
            # detached: no gradient flows through attention masks
            resized.append(F.interpolate(mask_features.detach(), sizes[-1], mode="bilinear", align_corners=False))
        batch = mask_features.shape[0]
        contents, queries = (
            embedding.weight.unsqueeze(1).repeat(1, batch, 1)
            for embedding in (self.queries_features, self.queries_embedder)
        )
        return self.decoder(
            inputs_embeds=contents,
            multi_stage_positional_embeddings=positions,
            pixel_embeddings=resized,
            encoder_hidden_states=features,
            query_position_embeddings=queries,
            feature_size_list=sizes,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            return_dict=True,
        )


class MaskPredictor(Mask2FormerMaskPredictor):
    """The decoder's mask predictor; a subclass because the decoder needs attention masks but not the full masks."""

    def forward(
        self,
        outputs: torch.Tensor,
        pixel_embeddings: torch.Tensor | list[torch.Tensor],
        attention_mask_target_size: tuple[int, int],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            outputs (`(m, B, q)`): normalised decoder output.
            pixel_embeddings: the list that [`TransformerModule`] makes, (B, c, h, w) in the size of each attention
                mask. A single tensor means that the stock decoder calls: then the stock forward runs.
            attention_mask_target_size: height and width of the attention mask.

        Returns:
            Mask embeddings (B, m, c) and the attention mask (B, 1, m, height * width), True at pixels that a query
            must not attend to.
        """
        if not isinstance(pixel_embeddings, list):
            return super().forward(outputs, pixel_embeddings, attention_mask_target_size)
        embeddings = self.mask_embedder(outputs.transpose(0, 1))
        with torch.no_grad():
            pixels = next(one for one in pixel_embeddings if one.shape[-2:] == attention_mask_target_size)
            # not `< 0`: for a logit just below zero the sigmoid rounds to exactly 0.5
            masked = (embeddings @ pixels.flatten(2)).sigmoid() < 0.5
        return embeddings, masked.unsqueeze(1)


class CrossAttention(nn.MultiheadAttention):
    """The decoder's attention to the feature maps; a subclass because the stock one also computes attention weights,
    which nobody uses, and needs a copy of the mask for every head."""

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """
        Args:
            query (`(m, B, q)`), key (`(N, B, q)`), value (`(N, B, q)`): as the decoder passes them.
            attn_mask (`(B, 1, m, N)`): from [`MaskPredictor`], one for all heads. With a mask of another shape, or
                none, the stock forward runs.
            kwargs: further arguments of the stock forward.

        Returns:
            The output (m, B, q), and None in the place of the attention weights.
        """
        if attn_mask is None or attn_mask.dim() != 4:
            return super().forward(query, key, value, attn_mask=attn_mask, **kwargs)
        if is_transformed(query, key, value, *self.parameters()):
            attn_mask = attn_mask.expand(-1, self.num_heads, -1, -1).flatten(0, 1)
            return super().forward(query, key, value, attn_mask=attn_mask, **kwargs)
        # batch first, as the data lies in memory: otherwise a bfloat16 product copies the weight for every token
        projected = [
            F.linear(rows.transpose(0, 1), weight, bias).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for rows, weight, bias in zip(
                (query, key, value), self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3), strict=True
            )
        ]
        dropout = self.dropout if self.training else 0.0
        output = F.scaled_dot_product_attention(*projected, attn_mask=attn_mask.logical_not(), dropout_p=dropout)
        return self.out_proj(output.permute(2, 0, 1, 3).flatten(2)), None


def mask_logits(embeddings: Sequence[torch.Tensor], pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Mask logits (B, m, H, W) of every decoder output: the products of its mask embeddings (B, m, c) and the pixel
    embeddings (B, c, H, W)."""
    if (
        pixels.device.type == "cpu"
        and torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and not is_transformed(pixels, *embeddings)
    ):
        return _MaskProducts.apply(pixels, *embeddings)
    numbers = [one.shape[1] for one in embeddings]
    return torch.einsum("bmc,bchw->bmhw", torch.cat(embeddings, dim=1), pixels).split(numbers, dim=1)


class _MaskProducts(torch.autograd.Function):
    """The products of [`mask_logits`] with a cheaper backward pass. The loss only uses matched masks, about a tenth of
    all. The gradients of the others are zero, and the backward pass leaves them out of its products. It leaves none
    out when it is itself differentiated: the derivative of a gradient that is zero need not be zero."""

    @staticmethod
    def forward(ctx, pixels: torch.Tensor, *embeddings: torch.Tensor) -> tuple[torch.Tensor, ...]:
        ctx.save_for_backward(pixels, *embeddings)
        ctx.set_materialize_grads(False)
        flat = pixels.flatten(2).contiguous()  # otherwise every bfloat16 product copies it
        return tuple((one @ flat).unflatten(2, pixels.shape[2:]) for one in embeddings)

    @staticmethod
    def backward(ctx, *grads: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
        pixels, *embeddings = ctx.saved_tensors
        used = [(one, grad) for one, grad in zip(embeddings, grads, strict=True) if grad is not None]
        if not used:
            return (None,) * (1 + len(embeddings))
        if torch.is_grad_enabled():  # this backward pass is to be differentiated
            products = [(one.transpose(1, 2) @ grad.flatten(2)).view_as(pixels) for one, grad in used]
            flat = pixels.flatten(2).transpose(1, 2)
            return sum(products), *(None if grad is None else grad.flatten(2) @ flat for grad in grads)
        grad_pixels, grad_used = torch.empty_like(pixels), [torch.zeros_like(one) for one, _ in used]
        for image in range(len(pixels)):
            grad_masks = [grad[image].flatten(1) for _, grad in used]
            matched = [torch.linalg.vector_norm(rows, torch.inf, dim=1).nonzero()[:, 0] for rows in grad_masks]
            rows = torch.cat([rows[queries] for rows, queries in zip(grad_masks, matched, strict=True)])
            weights = torch.cat([one[image, queries] for (one, _), queries in zip(used, matched, strict=True)])
            torch.mm(weights.T, rows, out=grad_pixels[image].view(len(weights.T), -1))
            products = (rows @ pixels[image].flatten(1).T).split([len(queries) for queries in matched])
            for grad_embeddings, queries, product in zip(grad_used, matched, products, strict=True):
                grad_embeddings[image, queries] = product
        remaining = iter(grad_used)
        return grad_pixels, *(None if grad is None else next(remaining) for grad in grads)
