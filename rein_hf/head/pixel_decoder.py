"""Mask2Former's pixel decoder at less cost, and traceable for images of any size: the same parameters, names and
results, to rounding.

What differs from transformers' modules:
- positions are made once per size, for one image; transformers remembers one of the three sizes, for a whole batch;
- activations are made in place, and nobody waits for the device to hear that they are finite: the trainer looks at the
  loss (divergence.py);
- no padding masks, which are empty, and no tensors of sizes: a graph that they are traced into holds for one size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F
from transformers.models.mask2former.modeling_mask2former import (
    Mask2FormerPixelDecoder,
    Mask2FormerPixelDecoderEncoderLayer,
    Mask2FormerPixelDecoderEncoderOnly,
    Mask2FormerPixelDecoderOutput,
    Mask2FormerSinePositionEmbedding,
)
from transformers.pytorch_utils import compile_compatible_method_lru_cache

from ..backbone import rescale


class PixelDecoder(Mask2FormerPixelDecoder):
    """The pixel decoder; a subclass because `torch.as_tensor` of the maps' sizes, which nobody uses, would make them
    constants of a traced graph."""

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
            features: maps of the backbone, finest first.
            scales (*optional*): by what each map is still to be resized, `ViTPyramidBackbone.scales`.
            encoder_outputs, output_attentions, output_hidden_states, return_dict: as in the stock module.

        Returns:
            `Mask2FormerPixelDecoderOutput`: pixel embeddings at stride 4 and three maps, coarsest first.
        """
        features = list(zip(features, scales or [1.0] * len(features), strict=True))
        coarsest = features[::-1][: self.num_feature_levels]
        inputs = [
            _project_and_rescale(*one, map, scale)
            for one, (map, scale) in zip(self.input_projections, coarsest, strict=True)
        ]
        shapes = [(map.shape[2], map.shape[3]) for map in inputs]
        if encoder_outputs is None:
            positions = [self.position_embedding(map.shape, map.device, map.dtype) for map in inputs]
            encoder_outputs = self.encoder(
                inputs_embeds=torch.cat([_flatten_map(map) for map in inputs], dim=1),
                position_embeddings=torch.cat(
                    [_flatten_map(map) + level for map, level in zip(positions, self.level_embed, strict=True)], dim=1
                ),
                spatial_shapes_list=shapes,
                valid_ratios=inputs[0].new_ones(inputs[0].shape[0], len(inputs), 2),
                output_attentions=output_attentions,
                output_hidden_states=output_hidden_states,
                return_dict=return_dict,
            )
        levels = encoder_outputs.last_hidden_state.split([height * width for height, width in shapes], dim=1)
        # channels of a pixel stay together, here and in what follows: that resizes ten times as fast
        maps = [level.unflatten(1, shape).permute(0, 3, 1, 2) for level, shape in zip(levels, shapes, strict=True)]
        for index, (map, scale) in enumerate(features[: self.num_fpn_levels][::-1]):
            lateral = _project_and_rescale(*self.lateral_convolutions[index], map, scale)
            summed = F.interpolate(maps[-1], size=lateral.shape[-2:], mode="bilinear", align_corners=False)
            summed += lateral
            convolution, norm, _ = self.output_convolutions[index]
            maps.append(F.relu(norm(convolution(summed)), inplace=True))
        return Mask2FormerPixelDecoderOutput(
            mask_features=self.mask_projection(maps[-1]),
            multi_scale_features=tuple(maps[: self.num_feature_levels]),
            attentions=encoder_outputs.attentions,
        )


def _project_and_rescale(convolution: nn.Module, norm: nn.Module, map: torch.Tensor, scale: float) -> torch.Tensor:
    """A projection of a map that is to be resized: pixel by pixel, and so it may as well come first, where there are
    fewer pixels, and resizing after it, where there are fewer channels."""
    return norm(rescale(convolution(map), scale) if scale > 1 else convolution(rescale(map, scale)))


def _flatten_map(map: torch.Tensor) -> torch.Tensor:
    """(B, c, H, W) -> (B, H * W, c)."""
    return map.flatten(2).transpose(1, 2)


class PixelDecoderEncoder(Mask2FormerPixelDecoderEncoderOnly):
    """The layers of the pixel decoder; a subclass because `torch.linspace` makes the maps' sizes constants of a traced
    graph."""

    @staticmethod
    def get_reference_points(
        spatial_shapes_list: list[tuple[int, int]], valid_ratios: torch.Tensor, device: torch.device
    ) -> torch.Tensor:
        """Centres of all pixels of all levels, x and y from 0 to 1 of each level, (B, N, levels, 2), from height and
        width of each level and the part of it that is image, (B, levels, 2)."""
        points = []
        for level, (height, width) in enumerate(spatial_shapes_list):
            y, x = (torch.arange(size, dtype=valid_ratios.dtype, device=device) + 0.5 for size in (height, width))
            y = y[None] / (valid_ratios[:, None, level, 1] * height)
            x = x[None] / (valid_ratios[:, None, level, 0] * width)
            x, y = x[:, None, :].expand(-1, height, -1), y[:, :, None].expand(-1, -1, width)
            points.append(torch.stack([x, y], dim=-1).flatten(1, 2))
        return torch.cat(points, dim=1)[:, :, None] * valid_ratios[:, None]


class PixelDecoderEncoderLayer(Mask2FormerPixelDecoderEncoderLayer):
    """A layer of the pixel decoder; a subclass because the stock one copies the wide activations of its MLP, and looks
    at all values of its output in training."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None,
        output_attentions: bool = False,
        **kwargs,
    ) -> tuple[torch.Tensor, ...]:
        """
        Args:
            hidden_states (`(B, N, c)`): level after level.
            attention_mask (`(B, N)`, *optional*): True where there is padding.
            output_attentions (`bool`): whether to return the attention weights too.
            kwargs: further arguments of [`DeformableAttention`].

        Returns:
            The output (B, N, c), and the attention weights if asked for.
        """
        attended, weights = self.self_attn(
            hidden_states=hidden_states,
            attention_mask=attention_mask,
            encoder_hidden_states=hidden_states,
            output_attentions=output_attentions,
            **kwargs,
        )
        hidden_states = self.self_attn_layer_norm(hidden_states + self._dropped(attended))
        rows = hidden_states.flatten(0, 1)  # in place, autograd would copy what is a view of rows
        wide = F.relu(self.fc1(rows), inplace=True)
        rows = rows + self._dropped(self.fc2(self._dropped(wide)))
        hidden_states = self.final_layer_norm(rows).view_as(hidden_states)
        return (hidden_states, weights.transpose(1, 0)) if output_attentions else (hidden_states,)

    def _dropped(self, tensor: torch.Tensor) -> torch.Tensor:
        return F.dropout(tensor, self.dropout, self.training)


class SinePositions(Mask2FormerSinePositionEmbedding):
    """Sine positions; a subclass because those of a size are made once, and for one image of a batch."""

    def forward(
        self, shape: torch.Size, device: torch.device, dtype: torch.dtype, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Positions (B, 2 * num_position_features, H, W) of maps of `shape` (B, c, H, W), not to be written to."""
        if mask is not None:
            return super().forward(shape, device, dtype, mask)
        batch, _, height, width = shape
        return self._of_one_image(height, width, device, dtype, *self._settings).expand(batch, -1, -1, -1)

    @property
    def _settings(self) -> tuple:
        return self.num_position_features, self.normalize, self.scale, self.temperature

    @staticmethod
    @compile_compatible_method_lru_cache(maxsize=6)  # the three maps of two sizes of images
    def _of_one_image(height: int, width: int, device: torch.device, dtype: torch.dtype, *settings) -> torch.Tensor:
        with torch.inference_mode(False):  # remembered for training as well
            stock = Mask2FormerSinePositionEmbedding.build_sine_position_embedding
            return stock(torch.Size((1, 0, height, width)), device, dtype, *settings)
