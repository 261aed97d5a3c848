"""To the device and back, without waiting where that is possible."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from transformers.models.mask2former.image_processing_pil_mask2former import Mask2FormerImageProcessorPil

from ..backbone.transforms import keeps_tensors
from ..images import normalize, normalized_levels


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor on a device. From pinned memory it is copied while this process goes on."""
    return tensor.to(device, non_blocking=tensor.is_pinned() if device.type == "cuda" else False)


def start_copy(tensor: torch.Tensor) -> Callable[[], torch.Tensor]:
    """Begins to copy a tensor to the CPU; the function that is returned waits for it, and for nothing that the device
    was given to do afterwards."""
    if tensor.device.type != "cuda":
        return tensor.cpu
    copied = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    copied.copy_(tensor, non_blocking=True)
    done = torch.cuda.Event()
    done.record(torch.cuda.current_stream(tensor.device))

    def wait() -> torch.Tensor:
        done.synchronize()
        return copied

    return wait


@keeps_tensors(8)
def _levels_on_device(levels: bytes, device: torch.device) -> torch.Tensor:
    """Levels (3, 256) of float32, on a device: a copy for each image would wait for the model."""
    return torch.frombuffer(bytearray(levels), dtype=torch.float32).view(3, -1).to(device)


def pixel_values_of(processor, pixels: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Pixels (3, H, W) of uint8 as an image processor normalises them, (1, 3, H, W), on a device: bit for bit, and
    computed there, if the processor is Mask2Former's and does not resize."""
    if isinstance(processor, Mask2FormerImageProcessorPil) and not processor.do_resize:
        levels = _levels_on_device(normalized_levels(processor).numpy().tobytes(), device)
        return normalize(to_device(pixels, device), levels)[None]
    image = Image.fromarray(np.ascontiguousarray(pixels.permute(1, 2, 0).cpu().numpy()))
    values = processor(image, return_tensors="pt")["pixel_values"].to(device)
    return values[..., : pixels.shape[1], : pixels.shape[2]]  # padded window by window instead
