"""Gives a Mask2Former the fast modules of this folder, and calls only those of its parts that inference needs.

A fast module has the parameters, the names and, up to rounding, the results of the stock module that it replaces. What
inference leaves out, of a model with fast modules:
- the backbone's features are projected first and resized afterwards, when they have fewer channels;
- masks are computed for the last decoder output only.
"""

from __future__ import annotations

import torch
from peft import PeftModel
from torch import nn
from transformers import Mask2FormerForUniversalSegmentation
from transformers.models.mask2former.modeling_mask2former import (
    Mask2FormerAttention,
    Mask2FormerMaskedAttentionDecoder,
    Mask2FormerMaskedAttentionDecoderLayer,
    Mask2FormerMaskPredictor,
    Mask2FormerPixelDecoder,
    Mask2FormerPixelDecoderEncoderLayer,
    Mask2FormerPixelDecoderEncoderMultiscaleDeformableAttention,
    Mask2FormerPixelDecoderEncoderOnly,
    Mask2FormerSinePositionEmbedding,
    Mask2FormerTransformerModule,
)

from ..backbone import ViTPyramidBackbone
from ..backbone.transforms import has_hooks
from .decoder_attention import CrossAttention, SelfAttention
from .deformable_attention import DeformableAttention
from .masks import MaskPredictor, mask_logits
from .pixel_decoder import PixelDecoder, PixelDecoderEncoder, PixelDecoderEncoderLayer
from .positions import SinePositions
from .transformer_decoder import TransformerDecoder, TransformerDecoderLayer, TransformerModule


FAST_MODULES = {
    nn.MultiheadAttention: CrossAttention,
    Mask2FormerPixelDecoder: PixelDecoder,
    Mask2FormerPixelDecoderEncoderOnly: PixelDecoderEncoder,
    Mask2FormerPixelDecoderEncoderLayer: PixelDecoderEncoderLayer,
    Mask2FormerPixelDecoderEncoderMultiscaleDeformableAttention: DeformableAttention,
    Mask2FormerTransformerModule: TransformerModule,
    Mask2FormerMaskedAttentionDecoder: TransformerDecoder,
    Mask2FormerMaskedAttentionDecoderLayer: TransformerDecoderLayer,
    Mask2FormerAttention: SelfAttention,
    Mask2FormerMaskPredictor: MaskPredictor,
    Mask2FormerSinePositionEmbedding: SinePositions,
}


def use_fast_modules(model: Mask2FormerForUniversalSegmentation) -> None:
    """Turns the stock modules of a model's head into fast ones, in place: only their classes change, parameters, names
    and hooks stay."""
    for module in model.modules():
        module.__class__ = FAST_MODULES.get(type(module), type(module))


def class_and_mask_logits(model: nn.Module, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The logits that `model(pixel_values=pixel_values)` gives, without computing what only training needs.

    Args:
        model: a Mask2Former, with or without adapter. If its head is stock, or if it is wrapped or has hooks, which
            must not be skipped, the whole model is called.
        pixel_values (`(B, 3, H, W)`): normalised images.

    Returns:
        `class_queries_logits` (B, m, K + 1) and `masks_queries_logits` (B, m, h, w) of the last decoder output.
    """
    segmenter = model.get_base_model() if isinstance(model, PeftModel) else model
    if not _uses_fast_modules(segmenter) or any(map(has_hooks, _skipped_modules(model, segmenter))):
        output = model(pixel_values=pixel_values)
        return output.class_queries_logits, output.masks_queries_logits
    encoder, decoder = segmenter.model.pixel_level_module.encoder, segmenter.model.pixel_level_module.decoder
    features = decoder(encoder(pixel_values, resize=False).feature_maps, scales=encoder.scales)
    pixels = features.mask_features
    output = segmenter.model.transformer_module.decode(features.multi_scale_features, pixels)
    (masks,) = mask_logits(output.masks_queries_logits[-1:], pixels)
    return segmenter.class_predictor(output.intermediate_hidden_states[-1].transpose(0, 1)), masks


def _skipped_modules(model: nn.Module, segmenter: Mask2FormerForUniversalSegmentation) -> list[nn.Module]:
    """The modules whose own `forward` is not called, because their parts are called one by one."""
    inner = segmenter.model
    return [model, segmenter, inner, inner.pixel_level_module, inner.transformer_module]


def _uses_fast_modules(model: nn.Module) -> bool:
    if not isinstance(model, Mask2FormerForUniversalSegmentation):
        return False
    head, encoder = model.model.transformer_module, model.model.pixel_level_module.encoder
    return isinstance(head, TransformerModule) and isinstance(encoder, ViTPyramidBackbone)
