"""From mask and class logits to a label per pixel, over windows as in the authors' evaluation."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from ..head import class_and_mask_logits, head_of
from ..images import resize_to_fit


# Windows that go through the model together; bounds the memory that a large image takes.
WINDOWS_AT_ONCE = 8

# Rows of pixels that are upsampled together: all masks at full size would be the largest tensor of all, and slower.
ROWS_AT_ONCE = 16


def semantic_scores(
    class_queries_logits: torch.Tensor, masks_queries_logits: torch.Tensor, size: tuple[int, int]
) -> torch.Tensor:
    """Score of every class at every pixel: sum over queries of softmax(class) * sigmoid(mask), no-object dropped.

    Not the stock `post_process_semantic_segmentation`, which squeezes every mask through 384x384.

    Args:
        class_queries_logits (`(B, m, K + 1)`): a Mask2Former's class logits, no-object last.
        masks_queries_logits (`(B, m, h, w)`): its mask logits.
        size (`(int, int)`): height and width of the pixels asked for; mask logits are upsampled to it bilinearly.

    Returns:
        `torch.Tensor` of shape `(B, K, *size)`, each score at least 0; in memory the classes of a pixel lie together.
    """
    with torch.autocast(masks_queries_logits.device.type, enabled=False):  # which would sum in 8 bits of mantissa
        classes = class_queries_logits.softmax(dim=-1)[..., :-1]
        scores = classes.new_empty(len(classes), *size, classes.shape[-1])
        for rows, masks in _upsample_in_strips(masks_queries_logits, size):
            scores[:, rows] = (masks.sigmoid().flatten(1, 2) @ classes).unflatten(1, masks.shape[1:3])
    return scores.permute(0, 3, 1, 2)


@torch.no_grad()
def slide_inference(
    model: nn.Module, pixel_values: torch.Tensor, crop: int | None = None, stride: int | None = None
) -> torch.Tensor:
    """Class scores of images of any size, averaged over overlapping windows.

    Args:
        model: from [`rein_hf.from_pretrained`], in eval mode. The scores of a head that classifies pixels are its
            logits, which the authors' framework averages as well.
        pixel_values (`(B, 3, H, W)`): normalised images. A side shorter than `crop` is one window of its own length.
        crop (`int`, *optional*): side of a window in pixels; by default the crop that the model was trained on.
        stride (`int`, *optional*): step between windows in pixels, at most `crop`; by default two thirds of it, 341
            for 512 and 683 for 1024.

    Returns:
        `torch.Tensor` of shape `(B, K, H, W)`, float32 at least.

    Raises:
        ValueError: `stride` is not between 1 and `crop`, which would leave pixels unseen.
    """
    crop = model.config.backbone_config.backbone_config.image_size if crop is None else crop
    stride = round(crop * 2 / 3) if stride is None else stride
    if not 1 <= stride <= crop:
        raise ValueError(f"stride is {stride}; expected 1 to crop ({crop}).")
    height, width = pixel_values.shape[-2:]
    windows = [
        (slice(top, min(top + crop, height)), slice(left, min(left + crop, width)))
        for top in _window_starts(height, crop, stride)
        for left in _window_starts(width, crop, stride)
    ]
    if len(windows) == 1:
        return next(_window_scores(model, pixel_values[None]))
    scores, count = None, pixel_values.new_zeros(height, width)
    for first in range(0, len(windows), WINDOWS_AT_ONCE):
        chosen = windows[first : first + WINDOWS_AT_ONCE]
        found = _window_scores(model, torch.stack([pixel_values[..., rows, columns] for rows, columns in chosen]))
        for (rows, columns), window in zip(chosen, found, strict=True):
            if scores is None:
                scores = window.new_zeros(len(window), height, width, window.shape[1]).permute(0, 3, 1, 2)
            scores[..., rows, columns] += window
            count[rows, columns] += 1
    return scores.div_(count)


def predict_labels(scores: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Label maps (B, *size) of uint8 from class scores (B, K, H, W), resized bilinearly to the labels' size first."""
    if scores.shape[-2:] == torch.Size(size):
        return scores.argmax(dim=1).to(torch.uint8)
    strips = _upsample_in_strips(scores, size)
    return torch.cat([strip.argmax(dim=-1).to(torch.uint8) for _, strip in strips], dim=1)


def segment(
    model: nn.Module,
    processor,
    image: Image.Image,
    crop: int | None = None,
    stride: int | None = None,
    size: tuple[int, int] | None = None,
) -> np.ndarray:
    """The class of every pixel of a photo.

    Args:
        model: from [`rein_hf.from_pretrained`].
        processor: its image processor.
        image (`PIL.Image.Image`): of any size.
        crop, stride: as for [`slide_inference`].
        size (`(int, int)`, *optional*): width and height that the image is fitted into before the model sees it; its
            own size by default.

    Returns:
        `np.ndarray` of shape `(H, W)`, uint8 class ids, of the image's own size.
    """
    seen = image.convert("RGB") if size is None else resize_to_fit(image.convert("RGB"), size)
    pixel_values = processor(seen, return_tensors="pt")["pixel_values"].to(model.device)
    scores = slide_inference(model, pixel_values[..., : seen.height, : seen.width], crop, stride)  # windows pad
    return predict_labels(scores, (image.height, image.width))[0].cpu().numpy()


def _window_starts(length: int, crop: int, stride: int) -> list[int]:
    """First pixel of each window; the last one is moved back inside."""
    last = max(length - crop, 0)
    return [min(start, last) for start in range(0, last + stride, stride)]


def _upsample_in_strips(maps: torch.Tensor, size: tuple[int, int]) -> Iterator[tuple[slice, torch.Tensor]]:
    """Maps (B, c, h, w) resized bilinearly, strip by strip: the rows of a strip, and its pixels (B, rows, width, c).

    Channels last, over which resizing is fastest, and sums or maxima over channels as well.
    """
    maps = maps.permute(0, 2, 3, 1).contiguous()
    last, dtype = maps.shape[1] - 1, torch.promote_types(maps.dtype, torch.float32)
    # where `F.interpolate` with align_corners=False takes each row from
    source = (torch.arange(size[0], dtype=dtype, device=maps.device) + 0.5) * ((last + 1) / size[0]) - 0.5
    source = source.clamp(0, last)
    upper = source.long()
    lower, part = (upper + 1).clamp(max=last), (source - upper).to(maps.dtype)
    for first in range(0, size[0], ROWS_AT_ONCE):
        rows = slice(first, first + ROWS_AT_ONCE)
        strip = torch.lerp(maps[:, upper[rows]], maps[:, lower[rows]], part[rows, None, None]).permute(0, 3, 1, 2)
        strip = F.interpolate(strip, size=(strip.shape[2], size[1]), mode="bilinear", align_corners=False)
        yield rows, strip.permute(0, 2, 3, 1)


def _window_scores(model: nn.Module, windows: torch.Tensor) -> Iterator[torch.Tensor]:
    """Scores (B, K, h, w) of each of the windows (windows, B, 3, h, w), all of which go through the model at once;
    sides that the patches do not fill are padded with zeros and cut again."""
    patch = model.config.backbone_config.backbone_config.patch_size
    height, width = windows.shape[-2:]
    rows, columns = (max(math.ceil(side / patch), 2) for side in (height, width))  # the coarsest map halves them
    padded = F.pad(windows.flatten(0, 1), (0, columns * patch - width, 0, rows * patch - height))
    masked = head_of(model.config.model_type).classifies_masks
    output = class_and_mask_logits(model, padded) if masked else (model(pixel_values=padded).logits,)
    logits = [of.to(torch.promote_types(of.dtype, torch.float32)).unflatten(0, windows.shape[:2]) for of in output]
    for of_window in zip(*logits, strict=True):
        scores = semantic_scores(*of_window, padded.shape[-2:]) if masked else of_window[0]
        yield scores[..., :height, :width]
