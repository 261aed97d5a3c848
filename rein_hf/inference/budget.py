"""How much of an image is computed together: as much as the device has memory for."""

from __future__ import annotations

import torch
from torch import nn


# What the windows that go through a model together may take on a CPU. Larger batches are no faster there.
CPU_BYTES = 192 * 2**20
# On another device, where few and large operations are faster, a part of its free memory, and what is assumed where
# that cannot be asked.
FREE_SHARE = 0.25
DEVICE_BYTES = 2**30
MOST_WINDOWS = {"cpu": 8}  # and 32 elsewhere

# How many rows of pixels are upsampled together on a CPU. All masks at full size would be the largest tensor of an
# inference there, and slower to compute with. Elsewhere the rows of a strip may take this many bytes.
CPU_ROWS = 16
STRIP_BYTES = 256 * 2**20


def windows_at_once(model: nn.Module, height: int, width: int, images: int, device: torch.device) -> int:
    """How many windows of each image go through a model together; one at least.

    Args:
        model: a segmenter.
        height, width (`int`): sides of a window in pixels.
        images (`int`): how many images are cut into the same windows.
        device: where the model is.
    """
    budget = _budget(device) // max(window_bytes(model, height, width) * images, 1)
    return int(max(1, min(budget, MOST_WINDOWS.get(device.type, 32))))


def window_bytes(model: nn.Module, height: int, width: int) -> int:
    """About how much memory a window takes on its way through a model, which depends on nothing but sizes: the finest
    map in the backbone's and in the head's channels and as mask logits, the tokens of a block, and the class scores.
    `python -m tests.measure.window_memory` measures it."""
    config = model.config
    vit = config.backbone_config.backbone_config
    hidden, head = getattr(vit, "hidden_size", 1024), getattr(config, "feature_size", 256)
    queries, classes = getattr(config, "num_queries", 100), len(getattr(config, "id2label", {}))
    pixels = height * width
    finest = pixels // 16 * (hidden + 3 * head + 2 * queries)
    tokens = pixels // vit.patch_size**2 * 12 * hidden
    return 4 * (finest + tokens + pixels * classes)


def rows_at_once(maps: torch.Tensor, size: tuple[int, int]) -> int:
    """How many rows of maps (B, h, w, c) that are resized to `size` are computed together."""
    if maps.device.type == "cpu":
        return CPU_ROWS
    # integers are resized in float32
    row = len(maps) * size[1] * maps.shape[-1] * (maps.element_size() if maps.is_floating_point() else 4)
    return max(STRIP_BYTES // row, CPU_ROWS)


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that there is not enough memory; that of a CPU is a plain RuntimeError of torch."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    )


def _budget(device: torch.device) -> int:
    if device.type == "cpu":
        return CPU_BYTES
    if device.type == "cuda" and not torch.compiler.is_compiling():
        free, _ = torch.cuda.mem_get_info(device)
        free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(FREE_SHARE * free)
    return DEVICE_BYTES
