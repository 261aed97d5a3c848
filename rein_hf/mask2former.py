"""Mask2Former's head at less cost, and class and mask logits for inference.

Inference makes full masks of the last decoder output only: the others are asked for attention masks, and resizing the
pixel embeddings to these and multiplying by the queries is the same in either order.
"""

from __future__ import annotations

import torch
from peft import PeftModel
from torch import nn
from torch.nn import functional as F
from transformers import Mask2FormerForUniversalSegmentation
from transformers.models.mask2former.modeling_mask2former import (
    Mask2FormerMaskPredictor,
    Mask2FormerPixelDecoder,
    Mask2FormerPixelDecoderEncoderMultiscaleDeformableAttention,
    Mask2FormerPixelDecoderEncoderOnly,
    Mask2FormerSinePositionEmbedding,
)

from .pixel_decoder import DeformableAttention, PixelDecoder, PixelDecoderEncoder, SinePositions


class MaskPredictor(Mask2FormerMaskPredictor):
    """The mask predictor of the decoder; a subclass because inference needs no masks in full size of the outputs
    before the last one. See [`class_and_mask_logits`]."""

    def forward(
        self,
        outputs: torch.Tensor,
        pixel_embeddings: torch.Tensor | list[torch.Tensor],
        attention_mask_target_size: tuple[int, int],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            outputs (`(m, B, q)`): normalised decoder output.
            pixel_embeddings (`(B, c, h, w)`, or such tensors of several sizes): with a list, masks are made in the
                size of the attention mask.
            attention_mask_target_size: height and width of the attention mask.

        Returns:
            Mask logits (B, m, h, w) and the attention mask (B * heads, m, height * width), True where not to look.
        """
        if not isinstance(pixel_embeddings, list):
            return super().forward(outputs, pixel_embeddings, attention_mask_target_size)
        fitting = next(one for one in pixel_embeddings if one.shape[-2:] == attention_mask_target_size)
        return super().forward(outputs, fitting, attention_mask_target_size)


class CrossAttention(nn.MultiheadAttention):
    """The decoder's attention to the maps; a subclass because these lie there channel after channel, and without
    gradients a bfloat16 projection of such a tensor on a CPU copies its weight once per token."""

    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **kwargs):
        """As the stock one: query (m, B, q), key and value (N, B, q)."""
        if not torch.is_grad_enabled():
            key, value = key.contiguous(), value.contiguous()
        return super().forward(query, key, value, **kwargs)


REPLACED = {
    nn.MultiheadAttention: CrossAttention,
    Mask2FormerPixelDecoder: PixelDecoder,
    Mask2FormerPixelDecoderEncoderOnly: PixelDecoderEncoder,
    Mask2FormerPixelDecoderEncoderMultiscaleDeformableAttention: DeformableAttention,
    Mask2FormerMaskPredictor: MaskPredictor,
    Mask2FormerSinePositionEmbedding: SinePositions,
}


def lighten(model: Mask2FormerForUniversalSegmentation) -> None:
    """Gives the head's stock modules the light classes; parameters, names and hooks are as before."""
    for module in model.modules():
        module.__class__ = REPLACED.get(type(module), type(module))


def class_and_mask_logits(model: nn.Module, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What `model(pixel_values=pixel_values)` gives, without what only training and research ask for.

    Args:
        model: a Mask2Former, with or without adapter. One that is wrapped, has hooks or whose head is stock is called.
        pixel_values (`(B, 3, H, W)`): normalised images.

    Returns:
        `class_queries_logits` (B, m, K + 1) and `masks_queries_logits` (B, m, h, w) of the last decoder output.
    """
    segmenter = model.get_base_model() if isinstance(model, PeftModel) else model
    if not _is_light(segmenter) or any(map(_is_intercepted, (model, segmenter, segmenter.model))):
        output = model(pixel_values=pixel_values)
        return output.class_queries_logits, output.masks_queries_logits
    transformer = segmenter.model.transformer_module
    features = segmenter.model.pixel_level_module(pixel_values)
    maps, embeddings = features.decoder_hidden_states, features.decoder_last_hidden_state
    resized = [F.interpolate(embeddings, size=map.shape[-2:], mode="bilinear", align_corners=False) for map in maps]
    output = transformer(maps, resized).intermediate_hidden_states[-1].transpose(0, 1)
    masks = torch.einsum("bmc,bchw->bmhw", transformer.decoder.mask_predictor.mask_embedder(output), embeddings)
    return segmenter.class_predictor(output), masks


def _is_light(model: nn.Module) -> bool:
    if not isinstance(model, Mask2FormerForUniversalSegmentation):
        return False
    return isinstance(getattr(model.model.transformer_module.decoder, "mask_predictor", None), MaskPredictor)


def _is_intercepted(module: nn.Module) -> bool:
    """Whether something is to run around this module's own forward: hooks, or the forward that accelerate puts in."""
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))
