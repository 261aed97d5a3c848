"""Mask2Former's pixel decoder at less cost, and traceable for images of any size: same parameters, same names, same
results up to rounding.

What differs from transformers' modules:
- position embeddings and reference points are computed once per size, for one image; transformers caches only the
  embeddings of one of the three sizes, for the whole batch;
- activations are computed in place. The stock layers check that they are finite, which waits for the device; here the
  trainer checks the loss instead (divergence.py);
- there are no padding masks, because images are never padded here, and no tensors that hold sizes: tracing would turn
  those into constants, and the graph would hold for one size only.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.mask2former.modeling_mask2former import (
    Mask2FormerPixelDecoder,
    Mask2FormerPixelDecoderEncoderLayer,
    Mask2FormerPixelDecoderEncoderOnly,
    Mask2FormerPixelDecoderOutput,
)

from ..backbone import norm_of_sum, own_autocast, rescale
from ..backbone.transforms import is_transformed
from .cast_weights import NO_CASTS, CastWeights
from .positions import reference_points


class PixelDecoder(Mask2FormerPixelDecoder):
    """The pixel decoder; a subclass because the stock one puts the sizes of its maps into a tensor that nobody uses,
    and tracing turns them into constants."""

    autocast_dtype: torch.dtype | None = None  # of frozen weights that were cast, see backbone/frozen_weights.py

    def forward(
        self,
        features: list[torch.Tensor],
        encoder_outputs=None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        scales: Sequence[float] | None = None,
    ) -> Mask2FormerPixelDecoderOutput:
        """
        Args:
            features: feature maps of the backbone, (B, c, h, w), finest first.
            scales (*optional*): the factor by which each feature map still has to be resized,
                `ViTPyramidBackbone.scales`; none of them by default.
            encoder_outputs, output_attentions, output_hidden_states, return_dict: as in the stock module.

        Returns:
            `Mask2FormerPixelDecoderOutput`: `mask_features`, the pixel embeddings at stride 4, (B, c, H/4, W/4), and
            `multi_scale_features`, three maps of strides 32, 16 and 8.
        """
        with own_autocast(self, features[0]):
            return self._decode(
                features, encoder_outputs, output_attentions, output_hidden_states, return_dict, scales
            )

    def _decode(
        self, features, encoder_outputs, output_attentions, output_hidden_states, return_dict, scales
    ) -> Mask2FormerPixelDecoderOutput:
        # group_norm has a forward-mode derivative for contiguous maps only, and vmap cannot always add in place
        transformed = is_transformed(*features, module=self)
        if transformed:
            features = [feature_map.contiguous() for feature_map in features]
        features = list(zip(features, scales or [1.0] * len(features), strict=True))
        coarsest = features[::-1][: self.num_feature_levels]
        inputs = [
            _project_and_rescale(*projection, feature_map, scale)
            for projection, (feature_map, scale) in zip(self.input_projections, coarsest, strict=True)
        ]
        shapes = [(level.shape[2], level.shape[3]) for level in inputs]
        if encoder_outputs is None:
            # of one image: they are the same for all
            positions = [self.position_embedding((1, *level.shape[1:]), level.device, level.dtype) for level in inputs]
            encoder_outputs = self.encoder(
                inputs_embeds=torch.cat([_flatten_map(level) for level in inputs], dim=1),
                position_embeddings=torch.cat(
                    [_flatten_map(one) + level for one, level in zip(positions, self.level_embed, strict=True)], dim=1
                ),
                spatial_shapes_list=shapes,
                output_attentions=output_attentions,
                output_hidden_states=output_hidden_states,
                return_dict=return_dict,
            )
        levels = encoder_outputs.last_hidden_state.split([height * width for height, width in shapes], dim=1)
        # channels last, in these maps and all that follow: they are resized ten times as fast
        maps = [level.unflatten(1, shape).permute(0, 3, 1, 2) for level, shape in zip(levels, shapes, strict=True)]
        for index, (feature_map, scale) in enumerate(features[: self.num_fpn_levels][::-1]):
            lateral = _project_and_rescale(*self.lateral_convolutions[index], feature_map, scale)
            summed = F.interpolate(maps[-1], size=lateral.shape[-2:], mode="bilinear", align_corners=False)
            summed = (summed + lateral).contiguous() if transformed else summed.add_(lateral)
            convolution, norm, _ = self.output_convolutions[index]
            maps.append(F.relu(norm(convolution(summed)), inplace=True))
        return Mask2FormerPixelDecoderOutput(
            mask_features=self.mask_projection(maps[-1]),
            multi_scale_features=tuple(maps[: self.num_feature_levels]),
            attentions=encoder_outputs.attentions,
        )


def _project_and_rescale(
    convolution: nn.Module, norm: nn.Module, feature_map: torch.Tensor, scale: float
) -> torch.Tensor:
    """A feature map, resized and projected. The projection looks at one pixel at a time, so both orders give the same.
    A map that is enlarged is projected first, while it has fewer pixels."""
    return norm(rescale(convolution(feature_map), scale) if scale > 1 else convolution(rescale(feature_map, scale)))


def _flatten_map(feature_map: torch.Tensor) -> torch.Tensor:
    """(B, c, H, W) -> (B, H * W, c)."""
    return feature_map.flatten(2).transpose(1, 2)


class PixelDecoderEncoder(Mask2FormerPixelDecoderEncoderOnly):
    """The layers of the pixel decoder; a subclass because tracing turns the sizes in the stock one's `torch.linspace`
    into constants, and because reference points are computed once per size."""

    autocast_dtype: torch.dtype | None = None  # as of the pixel decoder

    def forward(
        self,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_embeddings: torch.Tensor | None = None,
        spatial_shapes_list: list[tuple[int, int]] | None = None,
        level_start_index: torch.Tensor | None = None,
        valid_ratios: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> BaseModelOutput:
        """
        Args:
            inputs_embeds (`(B, N, c)`), position_embeddings (`(1 or B, N, c)`): queries are their sum.
            spatial_shapes_list: height and width of each level.
            attention_mask, level_start_index, output_attentions, output_hidden_states, return_dict: as in the stock
                module.
            valid_ratios: not used; no image is padded.

        Returns:
            What the stock module returns.
        """
        config = self.config
        output_attentions = config.output_attentions if output_attentions is None else output_attentions
        output_hidden_states = config.output_hidden_states if output_hidden_states is None else output_hidden_states
        points = reference_points(spatial_shapes_list, inputs_embeds.device, inputs_embeds.dtype)
        casts = CastWeights(self, inputs_embeds)
        hidden, kept, attentions = inputs_embeds, [], []
        for layer in self.layers:
            if output_hidden_states:
                kept.append(hidden.transpose(0, 1))
            hidden, *weights = layer(
                hidden,
                attention_mask,
                position_embeddings=position_embeddings,
                reference_points=points.expand(hidden.shape[0], -1, -1, -1),
                spatial_shapes_list=spatial_shapes_list,
                output_attentions=output_attentions,
                casts=casts,
            )
            attentions.extend(weights)
        if output_hidden_states:
            kept.append(hidden.transpose(0, 1))
        return BaseModelOutput(
            last_hidden_state=hidden,
            hidden_states=tuple(kept) if output_hidden_states else None,
            attentions=tuple(attentions) if output_attentions else None,
        )


class PixelDecoderEncoderLayer(Mask2FormerPixelDecoderEncoderLayer):
    """A layer of the pixel decoder; a subclass because the stock one copies the wide activations of its MLP, and in
    training checks every value of its output."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None,
        output_attentions: bool = False,
        casts: CastWeights = NO_CASTS,
        **kwargs,
    ) -> tuple[torch.Tensor, ...]:
        """
        Args:
            hidden_states (`(B, N, c)`): level after level.
            attention_mask (`(B, N)`, *optional*): True where there is padding.
            output_attentions (`bool`): whether to return the attention weights as well.
            casts: of the encoder.
            kwargs: further arguments of [`DeformableAttention`].

        Returns:
            The output (B, N, c) and, with `output_attentions`, the attention weights.
        """
        attended, weights = self.self_attn(
            hidden_states=hidden_states,
            attention_mask=attention_mask,
            encoder_hidden_states=hidden_states,
            output_attentions=output_attentions,
            casts=casts,
            **kwargs,
        )
        attended = norm_of_sum(hidden_states, self._drop(attended), self.self_attn_layer_norm, casts.dtype)
        rows = attended.cast.flatten(0, 1)  # fc1 of 3-dim rows is a view, which a relu in place copies
        wide = F.relu(casts.linear(self.fc1, rows), inplace=True)
        narrow = self._drop(casts.linear(self.fc2, self._drop(wide))).view_as(attended.normed)
        hidden_states = norm_of_sum(attended.normed, narrow, self.final_layer_norm).normed
        return (hidden_states, weights.transpose(1, 0)) if output_attentions else (hidden_states,)

    def _drop(self, tensor: torch.Tensor) -> torch.Tensor:
        return F.dropout(tensor, self.dropout, self.training)
