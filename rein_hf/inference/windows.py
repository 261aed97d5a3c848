"""Label maps from images: sliding windows as in the authors' evaluation."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from ..backbone.transforms import keeps_tensors
from ..head import head_of
from ..images import image_tensor, upright_rgb
from ..labels import MAX_CLASSES
from .budget import windows_at_once
from .class_scores import semantic_scores
from .compiled import predict_logits
from .strips import resize_pixels, resized_strips
from .transfer import pixel_values_of, to_device


@torch.no_grad()
def slide_inference(
    model: nn.Module,
    pixel_values: torch.Tensor,
    crop: int | None = None,
    stride: int | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> torch.Tensor:
    """Class scores of images of any size, averaged over overlapping windows.

    Args:
        model: from [`rein_hf.from_pretrained`], in eval mode. The scores of a head that classifies pixels are its
            logits, which the authors' framework averages as well.
        pixel_values (`(B, 3, H, W)`): normalised images. Along a side shorter than `crop` there is one window, as long
            as that side.
        crop (`int`, *optional*): side of a window in pixels; by default the crop that the model was trained on.
        stride (`int`, *optional*): step between windows in pixels, at most `crop`. By default two thirds of `crop`,
            as in the paper: 341 for 512 and 683 for 1024.
        progress (*optional*): called after every few windows with the number of windows that are done, and of all.

    Returns:
        `torch.Tensor` of shape `(B, K, H, W)`, float32 at least.

    Raises:
        ValueError: the model is in training mode; `crop` is below 1, or `stride` is not between 1 and `crop`, which
            would leave pixels unseen.
    """
    if model.training:
        raise ValueError(
            "The model is in training mode, in which dropout and batch norm give other labels, and a head's running "
            "statistics change; expected model.eval() before it segments."
        )
    crop, stride = window_sides(model, crop, stride)
    height, width = pixel_values.shape[-2:]
    windows = [
        (slice(top, min(top + crop, height)), slice(left, min(left + crop, width)))
        for top in _window_starts(height, crop, stride)
        for left in _window_starts(width, crop, stride)
    ]
    if len(windows) == 1:
        scores = next(_window_scores(model, pixel_values[None]))
        if progress is not None:
            progress(1, 1)
        return scores
    scores = None
    at_once = windows_at_once(model, min(crop, height), min(crop, width), len(pixel_values), pixel_values.device)
    for first in range(0, len(windows), at_once):
        batch = windows[first : first + at_once]
        crops = torch.stack([pixel_values[..., rows, columns] for rows, columns in batch])
        for (rows, columns), added in zip(batch, _window_scores(model, crops), strict=True):
            if scores is None:
                scores = added.new_zeros(len(added), height, width, added.shape[1]).permute(0, 3, 1, 2)
            scores[..., rows, columns] += added
        if progress is not None:
            progress(first + len(batch), len(windows))
    rows_seen, columns_seen = (_count_windows(side, crop, stride, scores.device) for side in (height, width))
    return scores.div_((rows_seen[:, None] * columns_seen).to(scores.dtype))


def window_sides(model: nn.Module, crop: int | None = None, stride: int | None = None) -> tuple[int, int]:
    """Side of a window and step between windows in pixels, of a model and what may be asked for instead, see
    [`slide_inference`].

    Raises:
        ValueError: they make no sense.
    """
    crop = model.config.backbone_config.backbone_config.image_size if crop is None else crop
    if crop < 1:
        raise ValueError(f"crop is {crop}; expected a number of pixels, 1 at least.")
    stride = max(round(crop * 2 / 3), 1) if stride is None else stride
    if not 1 <= stride <= crop:
        raise ValueError(f"stride is {stride}; expected 1 to crop ({crop}).")
    return crop, stride


def count_windows(height: int, width: int, crop: int, stride: int) -> int:
    """The number of windows of an image."""
    return len(_window_starts(height, crop, stride)) * len(_window_starts(width, crop, stride))


def predict_labels(scores: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Label maps (B, *size) of uint8 from class scores (B, K, H, W), resized bilinearly to the labels' size first.

    Raises:
        ValueError: there are more than 255 classes, whose ids would not fit into 8 bits beside 255 for no class.
    """
    if scores.shape[1] > MAX_CLASSES:
        raise ValueError(
            f"scores are of {scores.shape[1]} classes; expected {MAX_CLASSES} at most, as label maps hold 8 bits. "
            "Take scores.argmax(dim=1) of rein_hf.slide_inference instead."
        )
    if scores.shape[-2:] == torch.Size(size):
        return scores.argmax(dim=1).to(torch.uint8)
    strips = resized_strips(scores, size)
    return torch.cat([strip.argmax(dim=-1).to(torch.uint8) for _, strip in strips], dim=1)


def segment_image(
    model: nn.Module,
    processor,
    image: Image.Image,
    crop: int | None = None,
    stride: int | None = None,
    size: tuple[int, int] | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> np.ndarray:
    """The class of every pixel of one photo, `(H, W)`: what [`rein_hf.segment`] does for each, where the arguments and
    errors are described."""
    image = upright_rgb(image)
    scores = image_scores(model, processor, image, crop, stride, size, progress)
    return predict_labels(scores, (image.height, image.width))[0].cpu().numpy()


def image_scores(
    model: nn.Module,
    processor,
    image: Image.Image,
    crop: int | None,
    stride: int | None,
    size: tuple[int, int] | None,
    progress: Callable[[int, int], object] | None,
) -> torch.Tensor:
    """Class scores `(1, K, h, w)` of an upright RGB image, at the size at which the model sees it; the arguments are
    those of [`rein_hf.segment`]."""
    pixels = to_device(image_tensor(image), model.device)
    pixel_values = pixel_values_of(processor, resize_pixels(pixels, size), model.device)
    return slide_inference(model, pixel_values, crop, stride, progress)


def _window_starts(length: int, crop: int, stride: int) -> list[int]:
    """First pixel of each window. A window that would reach over the end is moved back inside."""
    last_start = max(length - crop, 0)
    return [min(start, last_start) for start in range(0, last_start + stride, stride)]


@keeps_tensors(32)
def _count_windows(length: int, crop: int, stride: int, device: torch.device) -> torch.Tensor:
    """How many windows show each of `length` pixels, computed where it is used: a copy would wait for the model."""
    count = torch.zeros(length, device=device)
    for start in _window_starts(length, crop, stride):
        count[start : start + crop] += 1
    return count


def _window_scores(model: nn.Module, windows: torch.Tensor) -> Iterator[torch.Tensor]:
    """Scores (B, K, h, w) of each of the windows (windows, B, 3, h, w), all of which go through the model at once.
    Windows are padded with zeros to whole patches, and the scores are cropped again."""
    patch = model.config.backbone_config.backbone_config.patch_size
    height, width = windows.shape[-2:]
    # two patches at least, because the coarsest of the four maps halves the grid of patches
    rows, columns = (max(math.ceil(side / patch), 2) for side in (height, width))
    padded = F.pad(windows.flatten(0, 1), (0, columns * patch - width, 0, rows * patch - height))
    has_masks = head_of(model.config.model_type).classifies_masks
    logits = [one.to(torch.promote_types(one.dtype, torch.float32)) for one in predict_logits(model, padded)]
    if has_masks and windows.device.type != "cpu":  # in few large operations; on a CPU one window takes less memory
        logits = [semantic_scores(*logits, padded.shape[-2:])]
    for window_logits in zip(*(tensor.unflatten(0, windows.shape[:2]) for tensor in logits), strict=True):
        is_scores = len(window_logits) == 1
        scores = window_logits[0] if is_scores else semantic_scores(*window_logits, padded.shape[-2:])
        yield scores[..., :height, :width]
