"""Where the pixels of Mask2Former's feature maps are: computed once per size, and for one image of a batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers.models.mask2former.modeling_mask2former import Mask2FormerSinePositionEmbedding

from ..backbone.transforms import keeps_tensors


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
        return self._embed_one_image(height, width, device, dtype, *self._settings).expand(batch, -1, -1, -1)

    @property
    def _settings(self) -> tuple:
        return self.num_position_features, self.normalize, self.scale, self.temperature

    @staticmethod
    @keeps_tensors(6)  # three maps for each of two image sizes
    def _embed_one_image(height: int, width: int, device: torch.device, dtype: torch.dtype, *settings) -> torch.Tensor:
        stock = Mask2FormerSinePositionEmbedding.build_sine_position_embedding.__wrapped__  # without its own cache
        return stock(torch.Size((1, 0, height, width)), device, dtype, *settings)


def reference_points(shapes: Sequence[tuple[int, int]], device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """Reference points (1, N, levels, 2) of the pixel decoder's attention: x and y, from 0 to 1, of the centres of all
    pixels of all levels, the same in each level. Do not write into them: later calls return them again.

    Args:
        shapes: height and width of each level.
        device, dtype: of the result.
    """
    return _reference_points(tuple(shapes), device, dtype)


@keeps_tensors(2)  # two image sizes
def _reference_points(shapes: tuple[tuple[int, int], ...], device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    points = []
    for height, width in shapes:
        y, x = ((torch.arange(size, dtype=dtype, device=device) + 0.5) / size for size in (height, width))
        x, y = x[None].expand(height, -1), y[:, None].expand(-1, width)
        points.append(torch.stack([x, y], dim=-1).flatten(0, 1))
    return torch.cat(points)[None, :, None].repeat(1, 1, len(shapes), 1)
