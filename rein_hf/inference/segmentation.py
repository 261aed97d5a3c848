"""segment(): the class of every pixel of photos, on request with probabilities."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import nn

from ..head import head_of
from ..images import to_photo, to_photos
from .strips import resized_strips
from .windows import image_scores, predict_labels, segment_image


class Segmentation(NamedTuple):
    """What [`segment`] finds in a photo of H x W pixels.

    Args:
        labels (`np.ndarray` of shape `(H, W)`): uint8, the class of every pixel.
        scores (`np.ndarray` of shape `(K, H, W)`): float32, the probability of each class; they sum to one at every
            pixel. `None` where they were not asked for.
        confidence (`np.ndarray` of shape `(H, W)`): float32, the probability of the class in `labels`, 1/K to 1.
    """

    labels: np.ndarray
    scores: np.ndarray | None
    confidence: np.ndarray


def segment(
    model: nn.Module,
    processor,
    image: Any,
    crop: int | None = None,
    stride: int | None = None,
    size: tuple[int, int] | None = None,
    progress: Callable[[int, int], object] | None = None,
    *,
    return_scores: bool = False,
) -> Any:
    """The class of every pixel of a photo, or of each of several.

    A photo is segmented as people see it: turned as its EXIF orientation says, with values of more than 8 bits scaled
    to 8. Lay the map over `rein_hf.images.upright_rgb(image)`: its height and width are those of the upright photo,
    which for an orientation of 5 to 8 are `image.width` and `image.height`.

    Args:
        model: from [`rein_hf.from_pretrained`], in eval mode.
        processor: its image processor.
        image: a path; a `PIL.Image.Image` of any size and mode; an array (H, W, 3) or a tensor (3, H, W) of RGB, uint8
            or floats from 0 to 1; a list of these, or a batch of arrays or tensors.
        crop, stride, progress: as for [`slide_inference`].
        size (`(int, int)`, *optional*): width and height that the image is resized to fit into, its ratio kept, before
            the model sees it. By default the image keeps its size.
        return_scores (`bool`): give probabilities and confidence too. They are the scores of [`slide_inference`]
            divided by their sum over the classes (a head that classifies pixels has a softmax), so the class of the
            highest is that of the label. They take 4 K H W bytes.

    Returns:
        `np.ndarray` of shape `(H, W)`, uint8 class ids, of the upright photo's own size; with `return_scores` a
        [`Segmentation`]. For a list or a batch, a list of these.

    Raises:
        ValueError: the model is in training mode; a photo cannot be read or is an array of other values; `crop` or
            `stride` or `size` makes no sense; there are more than 255 classes.
        TypeError: a photo is of another type.

    Example:

    ```py
    labels = rein_hf.segment(model, processor, "photo.jpg")
    cars = labels == model.config.label2id["car"]  # (H, W), True where there is a car
    labels, scores, confidence = rein_hf.segment(model, processor, "photo.jpg", return_scores=True)
    ```
    """
    photos, several = to_photos(image)
    found = []
    for photo in photos:
        arguments = (model, processor, to_photo(photo), crop, stride, size, progress)
        found.append(segment_with_confidence(*arguments, scores=True) if return_scores else segment_image(*arguments))
    return found if several else found[0]


def segment_with_confidence(
    model: nn.Module,
    processor,
    image: Image.Image,
    crop: int | None = None,
    stride: int | None = None,
    size: tuple[int, int] | None = None,
    progress: Callable[[int, int], object] | None = None,
    scores: bool = False,
) -> Segmentation:
    """The class of every pixel of an upright RGB image with its probability and, if `scores`, that of all classes,
    which take by far the most memory. Arguments and errors are those of [`segment`]."""
    found = image_scores(model, processor, image, crop, stride, size, progress)
    labels = predict_labels(found, (image.height, image.width))
    of_masks = head_of(model.config.model_type).classifies_masks
    confidence = np.empty((image.height, image.width), np.float32)
    every = np.empty((found.shape[1], image.height, image.width), np.float32) if scores else None
    for rows, strip in resized_strips(found, (image.height, image.width)):
        probabilities = class_probabilities(strip[0], of_masks)
        confidence[rows] = probabilities.amax(dim=-1).cpu().numpy()
        if every is not None:
            every[:, rows] = probabilities.permute(2, 0, 1).cpu().numpy()
    return Segmentation(labels[0].cpu().numpy(), every, confidence)


def class_probabilities(scores: torch.Tensor, of_masks: bool) -> torch.Tensor:
    """Probabilities of classes, in the last dimension, from their scores.

    Args:
        scores: as [`slide_inference`] gives them, with classes last.
        of_masks (`bool`): whether they are a mask classifier's, of 0 and more: each is divided by their sum; where all
            are 0, every class is as probable. Logits of pixels have a softmax.

    Example:

    ```py
    >>> import torch
    >>> from rein_hf.inference.segmentation import class_probabilities
    >>> class_probabilities(torch.tensor([[0.2, 0.6], [0.0, 0.0]]), of_masks=True).tolist()
    [[0.25, 0.75], [0.5, 0.5]]

    ```
    """
    scores = scores.float()
    if not of_masks:
        return scores.softmax(dim=-1)
    total = scores.sum(dim=-1, keepdim=True)
    return torch.where(total > 0, scores / total, 1 / scores.shape[-1])
