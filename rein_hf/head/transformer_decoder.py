"""Mask2Former's transformer decoder at less cost: same parameters, same names, same results up to rounding.

What differs from transformers' modules:
- an attention mask is computed from pixel embeddings that were first resized to its size. The stock decoder computes
  the full masks and resizes those; both operations are linear, so the result is the same;
- the full masks of all decoder outputs are computed together, at the end;
- attention returns no attention weights, and all heads share one mask: decoder_attention.py, masks.py;
- what the layers of one level have in common is computed once: keys are features and their positions;
- in training the mask embeddings of all outputs are computed together too, beside those for the attention masks, which
  have no gradient;
- no layer is ever skipped. The stock decoder skips each with the probability `config.dropout`, and fails: the next one
  attends to another level than its attention mask is for;
- everything lies in memory image after image, so that no product has to copy its inputs first.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F
from transformers.models.mask2former.modeling_mask2former import (
    Mask2FormerMaskedAttentionDecoder,
    Mask2FormerMaskedAttentionDecoderLayer,
    Mask2FormerMaskedAttentionDecoderOutput,
    Mask2FormerTransformerModule,
)

from ..backbone import norm_of_sum, own_autocast
from ..backbone.transforms import has_hooks
from ..tuner import query_weights
from .cast_weights import NO_CASTS, CastWeights
from .masks import mask_logits


class TransformerModule(Mask2FormerTransformerModule):
    """The transformer decoder and the inputs that it needs; a subclass because it computes the masks of all decoder
    outputs together."""

    autocast_dtype: torch.dtype | None = None  # of frozen weights that were cast, see backbone/frozen_weights.py

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
        with own_autocast(self, mask_features):
            return self._decode(multi_scale_features, mask_features, output_hidden_states, output_attentions)

    def _decode(
        self,
        multi_scale_features: Sequence[torch.Tensor],
        mask_features: torch.Tensor,
        output_hidden_states: bool,
        output_attentions: bool,
    ) -> Mask2FormerMaskedAttentionDecoderOutput:
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
            weight.unsqueeze(1).expand(-1, batch, -1)
            for weight in query_weights(self.queries_features, self.queries_embedder)
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


class TransformerDecoder(Mask2FormerMaskedAttentionDecoder):
    """The layers of the transformer decoder; a subclass because it computes what they have in common once, and no
    attention mask for a layer that does not follow."""

    autocast_dtype: torch.dtype | None = None  # as of the whole module

    def forward(
        self,
        inputs_embeds: torch.Tensor,
        multi_stage_positional_embeddings: list[torch.Tensor],
        pixel_embeddings: torch.Tensor | list[torch.Tensor],
        encoder_hidden_states: list[torch.Tensor],
        query_position_embeddings: torch.Tensor,
        feature_size_list: list[tuple[int, int]],
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = True,
    ) -> Mask2FormerMaskedAttentionDecoderOutput:
        """
        Args:
            inputs_embeds (`(m, B, q)`), query_position_embeddings (`(m, B, q)`): queries and their positions.
            multi_stage_positional_embeddings (`(N, B, q)` each), encoder_hidden_states (`(N, B, q)` each): the three
                feature maps and the positions of their pixels.
            pixel_embeddings, feature_size_list: as for [`MaskPredictor`]; with one tensor, the stock forward runs.
            output_attentions, output_hidden_states, return_dict: as in the stock module.

        Returns:
            What the stock module returns, except that `masks_queries_logits` are mask embeddings (B, m, c).
        """
        if not isinstance(pixel_embeddings, list):
            return super().forward(
                inputs_embeds,
                multi_stage_positional_embeddings,
                pixel_embeddings,
                encoder_hidden_states,
                query_position_embeddings,
                feature_size_list,
                output_attentions,
                output_hidden_states,
                return_dict,
            )
        config = self.config
        output_attentions = config.output_attentions if output_attentions is None else output_attentions
        output_hidden_states = config.output_hidden_states if output_hidden_states is None else output_hidden_states
        casts = CastWeights(self, inputs_embeds)
        pairs = zip(encoder_hidden_states, multi_stage_positional_embeddings, strict=True)
        keys = [casts.cast(features + positions) for features, positions in pairs]
        values = [casts.cast(features) for features in encoder_hidden_states]

        hidden, states, attentions, attention_mask = inputs_embeds, [inputs_embeds], [], None
        with_gradient = torch.is_grad_enabled()
        normed, masks = [], []
        for index, layer in enumerate([None, *self.layers]):
            if layer is not None:
                layer_outputs = layer(
                    hidden,
                    (index - 1) % self.num_feature_levels,
                    None,
                    multi_stage_positional_embeddings,
                    query_position_embeddings,
                    values,  # as a positional argument for gradient checkpointing
                    encoder_attention_mask=attention_mask,
                    output_attentions=output_attentions,
                    keys=keys,
                    casts=casts,
                )
                hidden = layer_outputs[0]
                states.append(hidden)
                attentions.extend(layer_outputs[1:2])
            is_last = index == len(self.layers)
            if is_last and with_gradient:
                break
            with torch.no_grad():  # no gradient flows through attention masks
                output = norm_of_sum(hidden.transpose(0, 1), None, self.layernorm, casts.dtype)
                normed.append(output.normed.transpose(0, 1))
                level = index % self.num_feature_levels
                size = None if is_last else feature_size_list[level]
                # those of this level alone: a graph for all sizes cannot tell levels apart by their sizes
                pixels = pixel_embeddings[level : level + 1]
                embeddings, attention_mask = self.mask_predictor(output.cast.transpose(0, 1), pixels, size, casts)
                masks.append(embeddings)
        if with_gradient:  # once more for all outputs together: one backward pass instead of one for each
            together = self.layernorm(torch.cat([state.transpose(0, 1) for state in states]))
            embeddings, _ = self.mask_predictor(together.transpose(0, 1), pixel_embeddings, None, casts)
            normed = [one.transpose(0, 1) for one in together.chunk(len(states))]
            masks = embeddings.chunk(len(states))
        return Mask2FormerMaskedAttentionDecoderOutput(
            last_hidden_state=hidden.transpose(0, 1),
            hidden_states=tuple(states) if output_hidden_states else None,
            attentions=tuple(attentions) if output_attentions else None,
            intermediate_hidden_states=tuple(normed),
            masks_queries_logits=tuple(masks),
        )


class TransformerDecoderLayer(Mask2FormerMaskedAttentionDecoderLayer):
    """A layer of the transformer decoder; a subclass because the stock one always asks for attention weights."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        level_index: int | None = None,
        attention_mask: torch.Tensor | None = None,
        position_embeddings: list[torch.Tensor] | None = None,
        query_position_embeddings: torch.Tensor | None = None,
        encoder_hidden_states: list[torch.Tensor] | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        output_attentions: bool | None = False,
        keys: list[torch.Tensor] | None = None,
        casts: CastWeights = NO_CASTS,
    ) -> tuple[torch.Tensor, ...]:
        """
        Args:
            hidden_states (`(m, B, q)`), query_position_embeddings (`(m, B, q)`): queries and their positions.
            encoder_hidden_states (`(N, B, q)` each), keys (`(N, B, q)` each): values and keys of each level.
            level_index: which of them this layer attends to.
            encoder_attention_mask (`(B, 1, m, N)`): from [`MaskPredictor`].
            attention_mask, position_embeddings, output_attentions: as in the stock layer, which runs where keys are
                not given, where norms come first, and where attention weights are asked for.
            casts: of the decoder.

        Returns:
            The output (m, B, q) and, with `output_attentions`, the weights of the attention of queries to each other
            (B, heads, m, m) and None.
        """
        if keys is None or self.pre_norm or output_attentions:
            return super().forward(
                hidden_states,
                level_index,
                attention_mask,
                position_embeddings,
                query_position_embeddings,
                encoder_hidden_states,
                encoder_attention_mask,
                output_attentions,
            )
        # image after image, as the data lies in memory
        rows, positions = hidden_states.transpose(0, 1), query_position_embeddings.transpose(0, 1)
        query = (rows + positions).transpose(0, 1)
        options = {} if casts.dtype is None else {"casts": casts}
        attended, _ = self.cross_attn(
            query, keys[level_index], encoder_hidden_states[level_index], attn_mask=encoder_attention_mask, **options
        )
        attended = self._drop(attended.transpose(0, 1))
        rows = norm_of_sum(rows, attended, self.cross_attn_layer_norm, casts.dtype, positions)
        if not has_hooks(self.self_attn):  # which may change what it gets
            options["rows"] = rows
        attended, _ = self.self_attn(
            rows.normed.transpose(0, 1), position_embeddings=query_position_embeddings, **options
        )
        attended = self._drop(attended.transpose(0, 1))
        rows = norm_of_sum(rows.normed, attended, self.self_attn_layer_norm, casts.dtype)
        wide = F.dropout(self.activation_fn(casts.linear(self.fc1, rows.cast)), self.activation_dropout, self.training)
        narrow = self._drop(casts.linear(self.fc2, wide))
        return (norm_of_sum(rows.normed, narrow, self.final_layer_norm).normed.transpose(0, 1),)

    def _drop(self, tensor: torch.Tensor) -> torch.Tensor:
        return F.dropout(tensor, self.dropout, self.training)
