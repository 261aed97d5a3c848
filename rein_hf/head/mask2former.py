"""Mask2Former's head at less cost, and class and mask logits for inference: the same parameters, names and results, to
rounding.

What differs from transformers' modules:
- attention masks are made from pixel embeddings resized to their size, which is the same as masks resized to it;
- in inference the backbone's features are projected first and resized then;
- full masks are made for all decoder outputs together, and for inference of the last one only;
- attention to the maps returns no weights, and its mask is one for all heads.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from peft import PeftModel
from torch import nn
from torch.nn import functional as F
from transformers import Mask2FormerForUniversalSegmentation
from transformers.models.mask2former.modeling_mask2former import (
    Mask2FormerMaskedAttentionDecoderOutput,
    Mask2FormerMaskPredictor,
    Mask2FormerPixelDecoder,
    Mask2FormerPixelDecoderEncoderLayer,
    Mask2FormerPixelDecoderEncoderMultiscaleDeformableAttention,
    Mask2FormerPixelDecoderEncoderOnly,
    Mask2FormerSinePositionEmbedding,
    Mask2FormerTransformerModule,
)

from ..backbone import ViTPyramidBackbone
from .deformable_attention import DeformableAttention
from .pixel_decoder import PixelDecoder, PixelDecoderEncoder, PixelDecoderEncoderLayer, SinePositions


class TransformerModule(Mask2FormerTransformerModule):
    """The decoder and what it is given; a subclass because the masks of all its outputs are made together."""

    def forward(
        self,
        multi_scale_features: Sequence[torch.Tensor],
        mask_features: torch.Tensor,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> Mask2FormerMaskedAttentionDecoderOutput:
        """
        Args:
            multi_scale_features: three maps (B, c, h, w), coarsest first.
            mask_features (`(B, c, H, W)`): pixel embeddings.
            output_hidden_states, output_attentions: as in the stock module.

        Returns:
            As the stock module; `masks_queries_logits` are those of all outputs, the initial one first, (B, m, H, W).
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
        """As `forward`, with mask embeddings (B, m, c) in the place of masks."""
        features, positions, sizes, resized = [], [], [], []
        for level, (projection, map) in enumerate(zip(self.input_projections, multi_scale_features, strict=True)):
            sizes.append(map.shape[-2:])
            position = self.position_embedder(map.shape, map.device, map.dtype)
            positions.append(position.flatten(2).permute(2, 0, 1))
            features.append(projection(map).flatten(2).permute(2, 0, 1) + self.level_embed.weight[level])
            # masks for the attention have no gradient
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
    """The mask predictor of the decoder; a subclass because full masks are not what the decoder needs."""

    def forward(
        self,
        outputs: torch.Tensor,
        pixel_embeddings: torch.Tensor | list[torch.Tensor],
        attention_mask_target_size: tuple[int, int],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            outputs (`(m, B, q)`): normalised decoder output.
            pixel_embeddings: those of [`TransformerModule`], (B, c, h, w) in the sizes of the attention masks; one
                tensor is for the stock module.
            attention_mask_target_size: height and width of the attention mask.

        Returns:
            Mask embeddings (B, m, c) and the attention mask (B, 1, m, height * width), True where not to look.
        """
        if not isinstance(pixel_embeddings, list):
            return super().forward(outputs, pixel_embeddings, attention_mask_target_size)
        embeddings = self.mask_embedder(outputs.transpose(0, 1))
        with torch.no_grad():
            fitting = next(one for one in pixel_embeddings if one.shape[-2:] == attention_mask_target_size)
            # not `< 0`: the sigmoid of a number close below zero is a half
            hidden = (embeddings @ fitting.flatten(2)).sigmoid() < 0.5
        return embeddings, hidden.unsqueeze(1)


class CrossAttention(nn.MultiheadAttention):
    """The decoder's attention to the maps; a subclass because its weights, which nobody asks for, and a mask for every
    head need not be made."""

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
            query (`(m, B, q)`), key (`(N, B, q)`), value (`(N, B, q)`): of the decoder.
            attn_mask (`(B, 1, m, N)`): that of [`MaskPredictor`], for all heads. One of another kind is for the stock
                module, and so are `kwargs`.

        Returns:
            The output (m, B, q), and no weights.
        """
        if attn_mask is None or attn_mask.dim() != 4:
            return super().forward(query, key, value, attn_mask=attn_mask, **kwargs)
        # image after image, as they lie there: token after token a bfloat16 product copies its weight for each of them
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
    """Mask logits (B, m, H, W) of every output: products of its mask embeddings (B, m, c) and the pixel embeddings
    (B, c, H, W)."""
    if pixels.device.type == "cpu" and torch.is_grad_enabled() and not torch.compiler.is_compiling():
        return _MaskProducts.apply(pixels, *embeddings)
    numbers = [one.shape[1] for one in embeddings]
    return torch.einsum("bmc,bchw->bmhw", torch.cat(embeddings, dim=1), pixels).split(numbers, dim=1)


class _MaskProducts(torch.autograd.Function):
    """The loss looks at the masks that are matched, a tenth of them: the gradients of the others, which are zero, are
    left out of the products."""

    @staticmethod
    def forward(ctx, pixels: torch.Tensor, *embeddings: torch.Tensor) -> tuple[torch.Tensor, ...]:
        ctx.save_for_backward(pixels, *embeddings)
        ctx.set_materialize_grads(False)
        flat = pixels.flatten(2).contiguous()  # bfloat16 products would copy it, each of them
        return tuple((one @ flat).unflatten(2, pixels.shape[2:]) for one in embeddings)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, *grads: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
        pixels, *embeddings = ctx.saved_tensors
        used = [(one, grad) for one, grad in zip(embeddings, grads, strict=True) if grad is not None]
        to_pixels, to_used = torch.empty_like(pixels), [torch.zeros_like(one) for one, _ in used]
        for image in range(len(pixels)):
            of_image = [grad[image].flatten(1) for _, grad in used]
            matched = [torch.linalg.vector_norm(rows, torch.inf, dim=1).nonzero()[:, 0] for rows in of_image]
            rows = torch.cat([rows[queries] for rows, queries in zip(of_image, matched, strict=True)])
            weights = torch.cat([one[image, queries] for (one, _), queries in zip(used, matched, strict=True)])
            torch.mm(weights.T, rows, out=to_pixels[image].view(len(weights.T), -1))
            found = (rows @ pixels[image].flatten(1).T).split([len(queries) for queries in matched])
            for to_embeddings, queries, to_matched in zip(to_used, matched, found, strict=True):
                to_embeddings[image, queries] = to_matched
        filled = iter(to_used)
        return to_pixels, *(None if grad is None else next(filled) for grad in grads)


FAST_MODULES = {
    nn.MultiheadAttention: CrossAttention,
    Mask2FormerPixelDecoder: PixelDecoder,
    Mask2FormerPixelDecoderEncoderOnly: PixelDecoderEncoder,
    Mask2FormerPixelDecoderEncoderLayer: PixelDecoderEncoderLayer,
    Mask2FormerPixelDecoderEncoderMultiscaleDeformableAttention: DeformableAttention,
    Mask2FormerTransformerModule: TransformerModule,
    Mask2FormerMaskPredictor: MaskPredictor,
    Mask2FormerSinePositionEmbedding: SinePositions,
}


def use_fast_modules(model: Mask2FormerForUniversalSegmentation) -> None:
    """Gives the head's stock modules the light classes; parameters, names and hooks are as before."""
    for module in model.modules():
        module.__class__ = FAST_MODULES.get(type(module), type(module))


def class_and_mask_logits(model: nn.Module, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What `model(pixel_values=pixel_values)` gives, without what only training and research ask for.

    Args:
        model: a Mask2Former, with or without adapter. One that is wrapped, has hooks or whose head is stock is called.
        pixel_values (`(B, 3, H, W)`): normalised images.

    Returns:
        `class_queries_logits` (B, m, K + 1) and `masks_queries_logits` (B, m, h, w) of the last decoder output.
    """
    segmenter = model.get_base_model() if isinstance(model, PeftModel) else model
    if not _uses_fast_modules(segmenter) or any(map(_has_hooks, _bypassed_modules(model, segmenter))):
        output = model(pixel_values=pixel_values)
        return output.class_queries_logits, output.masks_queries_logits
    encoder, decoder = segmenter.model.pixel_level_module.encoder, segmenter.model.pixel_level_module.decoder
    features = decoder(encoder(pixel_values, resize=False).feature_maps, scales=encoder.scales)
    pixels = features.mask_features
    output = segmenter.model.transformer_module.decode(features.multi_scale_features, pixels)
    (masks,) = mask_logits(output.masks_queries_logits[-1:], pixels)
    return segmenter.class_predictor(output.intermediate_hidden_states[-1].transpose(0, 1)), masks


def _bypassed_modules(model: nn.Module, segmenter: Mask2FormerForUniversalSegmentation) -> list[nn.Module]:
    """What is passed by: the modules whose parts are called instead of themselves."""
    inner = segmenter.model
    return [model, segmenter, inner, inner.pixel_level_module, inner.transformer_module]


def _uses_fast_modules(model: nn.Module) -> bool:
    if not isinstance(model, Mask2FormerForUniversalSegmentation):
        return False
    head, encoder = model.model.transformer_module, model.model.pixel_level_module.encoder
    return isinstance(head, TransformerModule) and isinstance(encoder, ViTPyramidBackbone)


def _has_hooks(module: nn.Module) -> bool:
    """Whether something is to run around this module's own forward: hooks, or the forward that accelerate puts in."""
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))
