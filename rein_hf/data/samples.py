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
from transformers.image_utils import SizeDict

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
    Makes a batch of the model's arguments with the stock image processor.

    Args:
        processor: from [`build_image_processor`].
        crop (`int`): side in pixels to which images are padded with zeros, after normalisation.
        masks (`bool`): whether the head classifies masks (Mask2Former) or pixels.
    """

    def __init__(self, processor, crop: int, masks: bool = True):
        self.processor, self.crop, self.masks = processor, crop, masks

    def __call__(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """
        Args:
            samples: with `name`, `domain`, an `image` of at most `crop` x `crop` pixels and a `label` of exactly that
                many: the image processor would pad masks with 255, which is no value of a mask.

        Returns:
            `pixel_values` (B, 3, crop, crop) float32; for each image `mask_labels` (classes, crop, crop) and
            `class_labels` (classes,), or, for a head that classifies pixels, `labels` (B, crop, crop) int64; and
            `samples`, "domain/name" of each image, which [`SegmentationTrainer`] removes before the model is called.

        Raises:
            ValueError: a label is of another size.
        """
        for sample in samples:
            if sample["label"].size != (self.crop, self.crop):
                width, height = sample["label"].size
                raise ValueError(f"A label is {width}x{height} pixels; expected {self.crop}x{self.crop}.")
        batch = self.processor(
            images=[sample["image"] for sample in samples],
            segmentation_maps=[np.asarray(sample["label"]) for sample in samples],
            pad_size=SizeDict(height=self.crop, width=self.crop),
            return_tensors="pt",
        )
        names = [f"{sample['domain']}/{sample['name']}" for sample in samples]
        if not self.masks:
            labels = np.stack([np.asarray(sample["label"]) for sample in samples])
            return {"pixel_values": batch["pixel_values"], "labels": torch.from_numpy(labels).long(), "samples": names}
        return {key: batch[key] for key in ("pixel_values", "mask_labels", "class_labels")} | {"samples": names}


@lru_cache(maxsize=16)
def _epoch_order(seed: int, source: int, epoch: int, length: int) -> np.ndarray:
    return np.random.default_rng([seed, 0, epoch, source]).permutation(length)
