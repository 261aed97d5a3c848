"""The augmented samples of a training run in the order in which it sees them, and their batches for the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image
from torch.utils.data import ConcatDataset

from ..images import image_tensor, normalize, normalized_levels
from ..labels import IGNORE
from .hub_datasets import ShuffledStream, Stream


class TrainingSamples(torch.utils.data.Dataset):
    """
    All samples of a training run in the order in which it sees them. Sources are repeated as often as needed, in a new
    random order in every epoch, and every sample is augmented anew. Sample k depends only on the seed and on k: a run
    that resumes at k, or splits its batches between processes, sees the samples of an uninterrupted single process.
    Read it in order, without shuffling.

    Args:
        sources (`Sequence[datasets.Dataset | Stream]`): of [`rein_hf.data.Domain`]s, labelled.
        length (`int`): samples of the run, iterations times total batch size.
        augment: function of (image, label, generator) that returns image and label.
        seed (`int`): of order and augmentation.
        weights (`Sequence[float]`, *optional*): the share of the samples that comes from each source. By default the
            sources are one pool, of which each image is seen once per epoch. Required if one of several sources is
            streamed.

    Raises:
        ValueError: weights are not one positive number for each source, or are missing where they are required.
    """

    def __init__(
        self,
        sources: Sequence[datasets.Dataset | Stream],
        length: int,
        augment: Callable[..., tuple[Image.Image, Image.Image]],
        seed: int = 0,
        weights: Sequence[float] | None = None,
    ):
        streamed = any(isinstance(source, Stream) for source in sources)
        if streamed and weights is None:
            if len(sources) > 1:
                raise ValueError("A streamed source has no size to share the samples by; expected weights.")
            weights = [1.0]
        if weights is not None and (len(weights) != len(sources) or not all(weight > 0 for weight in weights)):
            raise ValueError(f"weights are {weights}; expected a positive number for each of {len(sources)} sources.")
        self.sources = [source.shuffled(seed) if isinstance(source, Stream) else source for source in sources]
        self.length, self.augment, self.seed = length, augment, seed
        self.pool = ConcatDataset(self.sources) if weights is None else None
        if weights is not None:
            shares = np.cumsum(weights) / np.sum(weights)
            self.choices = np.searchsorted(shares, np.random.default_rng([seed, 2]).random(length), side="right")
            self.positions = np.zeros(length, np.int64)
            for index in range(len(sources)):
                self.positions[self.choices == index] = np.arange((self.choices == index).sum())

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, k: int) -> dict[str, Any]:
        """`name`, `domain`, and the augmented `image` and `label`.

        Raises:
            IndexError: the run has no sample k.
            ValueError: the image has no public label, or its files cannot be read.
        """
        if not 0 <= k < self.length:
            raise IndexError(f"sample {k} of a run of {self.length}.")
        source, position, order = (
            (self.pool, k, 0)
            if self.pool is not None
            else (self.sources[self.choices[k]], int(self.positions[k]), int(self.choices[k]))
        )
        if not isinstance(source, ShuffledStream):
            epoch, position = divmod(position, len(source))
            position = int(_epoch_order(self.seed, order, epoch, len(source))[position])
        sample = source[position]
        if sample["label"] is None:
            raise ValueError(f"{sample['domain']}: the label of {sample['name']} is not public; nothing to train on.")
        image, label = self.augment(sample["image"], sample["label"], np.random.default_rng([self.seed, 1, k]))
        return {**sample, "image": image, "label": label}


class Collator:
    """
    Makes a batch of the model's arguments, equal to that of the image processor.

    Args:
        processor: from [`build_image_processor`].
        crop (`int`): side in pixels to which images are padded with zeros, after normalisation.
        masks (`bool`): whether the head classifies masks (Mask2Former) or pixels.
        defer_masks (`bool`): give `label_maps` in the place of `mask_labels`, which are as large as the images of
            several batches. [`class_masks`] makes the latter of them where the model is.
    """

    def __init__(self, processor, crop: int, masks: bool = True, defer_masks: bool = False):
        self.levels, self.crop, self.masks, self.defer_masks = normalized_levels(processor), crop, masks, defer_masks

    def __call__(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """
        Args:
            samples: with `name`, `domain`, an `image` (RGB) of at most `crop` x `crop` pixels and a `label` of exactly
                that many.

        Returns:
            `pixel_values` (B, 3, crop, crop) float32; for each image `mask_labels` (classes, crop, crop) float32 and
            `class_labels` (classes,) int64, ascending, or, for a head that classifies pixels, `labels` (B, crop, crop)
            int64; and `samples`, "domain/name" of each image, which [`SegmentationTrainer`] removes before the model
            is called. With `defer_masks`, `label_maps` (B, crop, crop) uint8 in the place of `mask_labels`.

        Raises:
            ValueError: an image or a label is of another size.
        """
        pixel_values = torch.zeros(len(samples), 3, self.crop, self.crop)
        label_maps = torch.empty(len(samples), self.crop, self.crop, dtype=torch.uint8)
        for values, label_map, sample in zip(pixel_values, label_maps, samples, strict=True):
            image, label = sample["image"], sample["label"]
            if label.size != (self.crop, self.crop):
                raise ValueError(f"A label is {label.width}x{label.height} pixels; expected {self.crop}x{self.crop}.")
            if max(image.size) > self.crop:
                raise ValueError(
                    f"An image is {image.width}x{image.height} pixels; expected {self.crop}x{self.crop} at most."
                )
            values[:, : image.height, : image.width] = normalize(image_tensor(image), self.levels)
            label_map[:] = torch.from_numpy(np.array(label))
        names = [f"{sample['domain']}/{sample['name']}" for sample in samples]
        if not self.masks:
            return {"pixel_values": pixel_values, "labels": label_maps.long(), "samples": names}
        classes = [label_map.flatten().bincount(minlength=256)[:IGNORE].nonzero()[:, 0] for label_map in label_maps]
        labels = {"label_maps": label_maps} if self.defer_masks else {"mask_labels": class_masks(label_maps, classes)}
        return {"pixel_values": pixel_values, **labels, "class_labels": classes, "samples": names}


def class_masks(label_maps: torch.Tensor, class_labels: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The pixels of each class, on the device of the label maps.

    Args:
        label_maps (`(B, H, W)`): class ids.
        class_labels (`(classes,)` each): the classes of each image.

    Returns:
        For each image (classes, H, W) float32: 1 at the pixels of a class, 0 elsewhere.
    """
    return [
        (label_map == classes[:, None, None]).to(torch.float32)
        for label_map, classes in zip(label_maps, class_labels, strict=True)
    ]


@lru_cache(maxsize=16)
def _epoch_order(seed: int, source: int, epoch: int, length: int) -> np.ndarray:
    return np.random.default_rng([seed, 0, epoch, source]).permutation(length)
