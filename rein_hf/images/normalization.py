"""Pixels as a model takes them: what an image processor does to each value, looked up."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image


def normalized_levels(processor) -> torch.Tensor:
    """What an image processor makes of each level of each channel, bit for bit: (3, 256) float32.

    Args:
        processor: one that treats pixels one by one once resizing and padding are left out, such as
            [`rein_hf.ReinImageProcessor`].

    Raises:
        ValueError: it makes NaN or infinities of them, as a deviation of 0 does.
    """
    gray = np.arange(256, dtype=np.uint8).reshape(16, 16)
    ramp = Image.fromarray(np.stack([gray] * 3, axis=-1))
    with np.errstate(all="ignore"):  # numpy's warning would name neither of the two
        values = processor(ramp, do_resize=False, return_tensors="pt")["pixel_values"]
    levels = values[0, :, :16, :16].flatten(1).contiguous()
    if not levels.isfinite().all():
        raise ValueError(
            f"The image processor has image_mean {processor.image_mean} and image_std {processor.image_std}, which "
            "make NaN or infinities of pixels; expected finite numbers, and an image_std other than 0. Correct its "
            "preprocessor_config.json."
        )
    return levels


def image_tensor(image: Image.Image) -> torch.Tensor:
    """The pixels (3, H, W) uint8 of an RGB image, in memory of its own."""
    return torch.from_numpy(np.stack([np.asarray(channel) for channel in image.split()]))


def normalize(pixels: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    """Pixels (..., 3, H, W) of uint8 as float32, on their device.

    Args:
        levels (`(3, 256)`): from [`normalized_levels`], on the same device.
    """
    index = pixels.movedim(-3, 0).flatten(1)
    if index.device.type == "cpu":  # numpy looks up by bytes; torch would make integers of 64 bits of them first
        found = torch.from_numpy(
            np.stack([level.take(channel) for level, channel in zip(levels.numpy(), index.numpy(), strict=True)])
        )
    else:
        found = levels.gather(1, index.long())
    return found.unflatten(1, (*pixels.shape[:-3], *pixels.shape[-2:])).movedim(0, -3)
