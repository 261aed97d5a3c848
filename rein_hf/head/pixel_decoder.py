"""Mask2Former's pixel decoder at less cost, and traceable for images of any size: same parameters, same names, same
results up to rounding.

What differs from transformers' modules:
- position embeddings are computed once per size, for one image, and expanded to the batch; transformers caches only
  one of the three sizes, for the whole batch;
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
from transformers.models.mask2former.modeling_mask2former import (
    Mask2FormerPixelDecoder,
    Mask2FormerPixelDecoderEncoderLayer,
    Mask2FormerPixelDecoderEncoderOnly,
    Mask2FormerPixelDecoderOutput,
    Mask2FormerSinePositionEmbedding,
)
from transformers.pytorch_utils import compile_compatible_method_lru_cache

from ..backbone import rescale
from .transforms import is_transformed, makes_ordinary_tensors


class PixelDecoder(Mask2FormerPixelDecoder):
    """The pixel decoder; a subclass because the stock one puts the sizes of its maps into a tensor that nobody uses,
    and tracing turns them into constants."""

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
        # group_norm has a forward-mode derivative for contiguous maps only, and vmap cannot always add in place
        transformed = is_transformed(*features, *self.parameters())
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
            positions = [self.position_embedding(level.shape, level.device, level.dtype) for level in inputs]
            encoder_outputs = self.encoder(
                inputs_embeds=torch.cat([_flatten_map(level) for level in inputs], dim=1),
                position_embeddings=torch.cat(
                    [_flatten_map(one) + level for one, level in zip(positions, self.level_embed, strict=True)], dim=1
                ),
                spatial_shapes_list=shapes,
                valid_ratios=inputs[0].new_ones(inputs[0].shape[0], len(inputs), 2),
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
    into constants."""

    @staticmethod
    def get_reference_points(
        spatial_shapes_list: list[tuple[int, int]], valid_ratios: torch.Tensor, device: torch.device
    ) -> torch.Tensor:
        """Reference points (B, N, levels, 2): x and y, from 0 to 1, of the centres of all pixels of all levels.

        Args:
            spatial_shapes_list: height and width of each level.
            valid_ratios (`(B, levels, 2)`): the fraction of each level's width and height that is not padding.
            device: of the result.
        """
        points = []
        for level, (height, width) in enumerate(spatial_shapes_list):
            y, x = (torch.arange(size, dtype=valid_ratios.dtype, device=device) + 0.5 for size in (height, width))
            y = y[None] / (valid_ratios[:, None, level, 1] * height)
            x = x[None] / (valid_ratios[:, None, level, 0] * width)
            x, y = x[:, None, :].expand(-1, height, -1), y[:, :, None].expand(-1, -1, width)
            points.append(torch.stack([x, y], dim=-1).flatten(1, 2))
        return torch.cat(points, dim=1)[:, :, None] * valid_ratios[:, None]


class PixelDecoderEncoderLayer(Mask2FormerPixelDecoderEncoderLayer):
    """A layer of the pixel decoder; a subclass because the stock one copies the wide activations of its MLP, and in
    training checks every value of its output."""

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
            output_attentions (`bool`): whether to return the attention weights as well.
            kwargs: further arguments of [`DeformableAttention`].

        Returns:
            The output (B, N, c) and, with `output_attentions`, the attention weights.
        """
        attended, weights = self.self_attn(
            hidden_states=hidden_states,
            attention_mask=attention_mask,
            encoder_hidden_states=hidden_states,
            output_attentions=output_attentions,
            **kwargs,
        )
        hidden_states = self.self_attn_layer_norm(hidden_states + self._drop(attended))
        rows = hidden_states.flatten(0, 1)  # fc1 of 3-dim rows is a view, which a relu in place copies
        wide = F.relu(self.fc1(rows), inplace=True)
        rows = rows + self._drop(self.fc2(self._drop(wide)))
        hidden_states = self.final_layer_norm(rows).view_as(hidden_states)
        return (hidden_states, weights.transpose(1, 0)) if output_attentions else (hidden_states,)

    def _drop(self, tensor: torch.Tensor) -> torch.Tensor:
        return F.dropout(tensor, self.dropout, self.training)


class SinePositions(Mask2FormerSinePositionEmbedding):
    """Sine position embeddings; a subclass because they are computed once per size, and for one image only."""

    def forward(
        self, shape: torch.Size, device: torch.device, dtype: torch.dtype, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Position embeddings (B, 2 * num_position_features, H, W) for maps of `shape` (B, c, H, W). Do not write into
        them: the images of a batch share their memory, and later calls return them again."""
        if mask is not None:
            return super().forward(shape, device, dtype, mask)
        batch, _, height, width = shape
        embed = self._embed_one_image
        if not torch.compiler.is_compiling() and not makes_ordinary_tensors():
            embed = embed.__wrapped__  # not to be cached
        return embed(height, width, device, dtype, *self._settings).expand(batch, -1, -1, -1)

    @property
    def _settings(self) -> tuple:
        return self.num_position_features, self.normalize, self.scale, self.temperature

    @staticmethod
    @compile_compatible_method_lru_cache(maxsize=6)  # three maps for each of two image sizes
    def _embed_one_image(height: int, width: int, device: torch.device, dtype: torch.dtype, *settings) -> torch.Tensor:
        with torch.inference_mode(False):  # cached, so training must be able to use it too
            stock = Mask2FormerSinePositionEmbedding.build_sine_position_embedding.__wrapped__  # without its own cache
            return stock(torch.Size((1, 0, height, width)), device, dtype, *settings)
