"""Mask2Former's pixel decoder at less cost, and traceable for images of any size: the same parameters, names and
results, to rounding.

What differs from transformers' modules:
- deformable attention weighs rows of the values directly; transformers samples a map for every point, and stacks,
  multiplies and sums these;
- positions are made once per size, for one image; transformers remembers one of the three sizes, for a whole batch;
- no padding masks, which are empty, and no tensors of sizes: a graph that they are traced into holds for one size.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F
from transformers.models.mask2former.modeling_mask2former import (
    Mask2FormerPixelDecoder,
    Mask2FormerPixelDecoderEncoderMultiscaleDeformableAttention,
    Mask2FormerPixelDecoderEncoderOnly,
    Mask2FormerPixelDecoderOutput,
    Mask2FormerSinePositionEmbedding,
)
from transformers.pytorch_utils import compile_compatible_method_lru_cache


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
    ) -> Mask2FormerPixelDecoderOutput:
        """
        Args:
            features: maps of the backbone, finest first.
            encoder_outputs, output_attentions, output_hidden_states, return_dict: as in the stock module.

        Returns:
            `Mask2FormerPixelDecoderOutput`: pixel embeddings at stride 4 and three maps, coarsest first.
        """
        coarsest = features[::-1][: self.num_feature_levels]
        inputs = [projection(map) for projection, map in zip(self.input_projections, coarsest, strict=True)]
        shapes = [(map.shape[2], map.shape[3]) for map in inputs]
        if encoder_outputs is None:
            positions = [self.position_embedding(map.shape, map.device, map.dtype) for map in coarsest]
            encoder_outputs = self.encoder(
                inputs_embeds=torch.cat([_rows(map) for map in inputs], dim=1),
                position_embeddings=torch.cat(
                    [_rows(map) + level for map, level in zip(positions, self.level_embed, strict=True)], dim=1
                ),
                spatial_shapes_list=shapes,
                valid_ratios=inputs[0].new_ones(len(inputs[0]), len(inputs), 2),
                output_attentions=output_attentions,
                output_hidden_states=output_hidden_states,
                return_dict=return_dict,
            )
        levels = encoder_outputs.last_hidden_state.split([height * width for height, width in shapes], dim=1)
        maps = [level.transpose(1, 2).unflatten(2, shape) for level, shape in zip(levels, shapes, strict=True)]
        for index, map in enumerate(features[: self.num_fpn_levels][::-1]):
            lateral = self.lateral_convolutions[index](map)
            above = F.interpolate(maps[-1], size=lateral.shape[-2:], mode="bilinear", align_corners=False)
            maps.append(self.output_convolutions[index](lateral + above))
        return Mask2FormerPixelDecoderOutput(
            mask_features=self.mask_projection(maps[-1]),
            multi_scale_features=tuple(maps[: self.num_feature_levels]),
            attentions=encoder_outputs.attentions,
        )


def _rows(map: torch.Tensor) -> torch.Tensor:
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


class DeformableAttention(Mask2FormerPixelDecoderEncoderMultiscaleDeformableAttention):
    """
    Multi-scale deformable attention, in inference and in training; a subclass because of what the stock one copies.

    A bilinear sample is a weighted sum of four rows of the values, so the output of a query and a head is one of
    4 * levels * points rows: four calls of `embedding_bag`, one per corner. Only measured on CPUs: on other devices,
    and in exported graphs, for which `grid_sample` is the better known operation, this is the stock module.
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
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            hidden_states (`(B, Q, c)`), position_embeddings (`(B, Q, c)`, *optional*): queries.
            encoder_hidden_states (`(B, N, c)`): values, level after level.
            attention_mask (`(B, N)`, *optional*): True where a value is to count as zero.
            reference_points (`(B, Q, levels, 2)`): x and y of each query, 0 to 1.
            spatial_shapes_list: height and width of each level.
            encoder_attention_mask, level_start_index, output_attentions: not used, as in the stock module.

        Returns:
            The output (B, Q, c) and the attention weights (B, Q, heads, levels, points).
        """
        if hidden_states.device.type != "cpu" or torch.compiler.is_exporting():
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
        queries = self.with_pos_embed(hidden_states, position_embeddings)
        values = self.value_proj(encoder_hidden_states)
        if attention_mask is not None:
            values = values.masked_fill(attention_mask[..., None], 0.0)
        per_head = (*queries.shape[:2], self.n_heads)
        offsets = self.sampling_offsets(queries).view(*per_head, self.n_levels, self.n_points, 2)
        # over the first dimension: four times as fast as over a last one of twelve
        logits = self.attention_weights(queries).view(-1, self.n_levels * self.n_points)
        weights = logits.t().softmax(dim=0).t().reshape(*per_head, self.n_levels, self.n_points)
        output = sample_and_sum(values, spatial_shapes_list, reference_points, offsets, weights)
        return self.output_proj(output), weights


def sample_and_sum(
    values: torch.Tensor,
    shapes: list[tuple[int, int]],
    reference_points: torch.Tensor,
    offsets: torch.Tensor,
    weights: torch.Tensor,
) -> torch.Tensor:
    """Weighted sums (B, Q, c) of bilinear samples, zero outside of a level, computed in float32 at least.

    Args:
        values (`(B, N, c)`): level after level, row after row.
        shapes: height and width of each level.
        reference_points (`(B, Q, levels, 2)`): x and y, 0 to 1 across a level.
        offsets (`(B, Q, heads, levels, points, 2)`): x and y of the samples from there, in pixels of their level.
        weights (`(B, Q, heads, levels, points)`): of the samples. Head h weighs the h-th part of the channels.
    """
    batch, queries, heads, levels, points = weights.shape
    dtype, device = torch.promote_types(values.dtype, torch.float32), values.device
    offsets, weights = offsets.to(dtype).flatten(2, 4), weights.to(dtype).flatten(2)

    # All levels below each other on one canvas, each with a border of zeros of one pixel, so that samples outside are
    # zero and that one index serves the four corners, which are steps of 1 and of `stride` apart. The last lines are
    # for the lower corners of samples at the lower border, whose weight is zero.
    stride = max(width for _, width in shapes) + 2
    lines = sum(height + 2 for height, _ in shapes) + 2
    canvas = values.new_zeros(batch, lines, stride, values.shape[-1], dtype=dtype)
    tops, top = [], 0
    for (height, width), level in zip(shapes, values.split([h * w for h, w in shapes], dim=1), strict=True):
        canvas[:, top + 1 : top + 1 + height, 1 : 1 + width] = level.unflatten(1, (height, width))
        tops.append(top)
        top += height + 2
    table = canvas.view(-1, values.shape[-1] // heads)  # a row for each pixel and head

    def per_sample(of_levels: torch.Tensor) -> torch.Tensor:  # (..., levels) -> (..., heads * levels * points)
        of_levels = of_levels[..., None, :, None]
        return of_levels.expand(*of_levels.shape[:-3], heads, levels, points).flatten(-3)

    sizes = torch.tensor(shapes, dtype=dtype, device=device)
    corners = []  # first row or column of each sample on its level, and how far the sample is from it
    for axis, size in ((0, sizes[:, 1]), (1, sizes[:, 0])):
        position = per_sample(reference_points[..., axis].to(dtype) * size - 0.5) + offsets[..., axis]
        # nothing of the level is left beyond -1 and its size
        position = position.clamp(min=position.new_tensor(-1.0), max=per_sample(size))
        first = position.detach().floor()
        corners.append((first.to(torch.int32), position - first))
    (column, right), (row, below) = corners

    integer = {"dtype": torch.int32, "device": device}
    origin = per_sample((torch.tensor(tops, **integer) + 1) * stride + 1) * heads
    origin = origin + torch.arange(heads, **integer).repeat_interleave(levels * points)
    image = torch.arange(batch, **integer).view(-1, 1, 1) * lines * stride * heads
    index = (row * stride + column) * heads + origin + image
    # where a diverged run's coordinates are NaN the index is anything, and the weights are NaN
    index = index.clamp(0, len(table) - 1 - (stride + 1) * heads).view(-1, levels * points)

    lower = weights * below
    upper = weights - lower
    lower_right, upper_right = lower * right, upper * right
    parts = [
        F.embedding_bag(index, table[step:], mode="sum", per_sample_weights=weight.view(-1, levels * points))
        for step, weight in (
            (0, upper - upper_right),
            (heads, upper_right),
            (stride * heads, lower - lower_right),
            ((stride + 1) * heads, lower_right),
        )
    ]
    output = (parts[0] + parts[1]) + (parts[2] + parts[3])
    return output.view(batch, queries, -1).to(values.dtype)


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
