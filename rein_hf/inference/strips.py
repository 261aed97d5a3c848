"""Maps and photos resized bilinearly, without antialiasing, in strips of rows, so that no large copy is made."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.nn import functional as F

from ..images import fitted_size
from .budget import rows_at_once


def resize_pixels(pixels: torch.Tensor, size: tuple[int, int] | None) -> torch.Tensor:
    """A photo (3, H, W) of uint8, on any device, resized to fit into a width and a height, its ratio kept.

    As in the authors' evaluation, the two may be swapped: the photo's long side fits into the longer of them, its
    short side into the shorter. Values are rounded; OpenCV, which the authors use, gives the same to within one level.
    If `size` is None, the photo is returned; errors are those of [`rein_hf.images.fitted_size`].
    """
    if size is None:
        return pixels
    width, height = fitted_size((pixels.shape[2], pixels.shape[1]), size)
    if (height, width) == pixels.shape[1:]:
        return pixels
    strips = resized_strips(pixels[None], (height, width))
    return torch.cat([strip.round_().to(torch.uint8) for _, strip in strips], dim=1)[0].permute(2, 0, 1)


def resized_strips(maps: torch.Tensor, size: tuple[int, int]) -> Iterator[tuple[slice, torch.Tensor]]:
    """Maps (B, c, h, w) resized bilinearly, one strip of rows after the other: which rows of the result a strip is,
    and its pixels (B, rows, width, c), in the type of the maps or, of integers, in float32.

    Channels come last, because resizing, sums and maxima over channels are fastest so.
    """
    maps = maps.permute(0, 2, 3, 1).contiguous()
    height, dtype = maps.shape[1], torch.promote_types(maps.dtype, torch.float32)
    # the row of `maps` that `F.interpolate` with align_corners=False reads for each row of the result
    source = (torch.arange(size[0], dtype=dtype, device=maps.device) + 0.5) * (height / size[0]) - 0.5
    source = source.clamp(0, height - 1)
    upper = source.long()
    values = maps.dtype if maps.is_floating_point() else dtype
    lower, lower_weight = (upper + 1).clamp(max=height - 1), (source - upper).to(values)[:, None, None]
    at_once = rows_at_once(maps, size)
    for first in range(0, size[0], at_once):
        rows = slice(first, first + at_once)
        above, below = (maps[:, lines[rows]].to(values) for lines in (upper, lower))
        strip = torch.lerp(above, below, lower_weight[rows])
        strip = strip.permute(0, 3, 1, 2)
        strip = F.interpolate(strip, size=(strip.shape[2], size[1]), mode="bilinear", align_corners=False)
        yield rows, strip.permute(0, 2, 3, 1)
