"""Evaluation of one domain: each image is segmented by sliding windows and counted in a confusion matrix."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from torch import nn
from tqdm.auto import tqdm

from ..backbone.transforms import keeps_tensors
from ..inference import batched_by_size, label_maps, prepare_image, read_ahead, segment
from ..labels import class_names_of
from .metrics import MeanIoU


if TYPE_CHECKING:
    from ..data import Domain


def evaluate_domain(
    model: nn.Module,
    processor,
    domain: Domain,
    accelerator: Accelerator,
    crop: int | None = None,
    stride: int | None = None,
    limit: int | None = None,
    transform: Callable[[Image.Image, str], Image.Image] | None = None,
) -> dict[str, MeanIoU]:
    """The confusion matrices of a domain, summed over all processes.

    Args:
        model, processor, crop, stride: as for [`segment`].
        domain ([`Domain`]): its images are split between the processes.
        accelerator: the accelerator of the run. Its mixed precision is used.
        limit (`int`, *optional*): evaluate this many images, evenly spread over the domain. Of a stream, the first.
        transform (*optional*): function of an image and its name that returns the image to segment, for example a
            corrupted one.

    Returns:
        Metrics by name: the domain's under its own name and, if its images have groups, each group's under
        "name/group".

    Raises:
        ValueError: the labels are not public, the model has other classes, or a file cannot be read; `limit` is below
            1.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit is {limit}; expected a number of images, 1 at least, or None for all.")
    read = partial(read_sample, domain=domain, transform=transform)
    if domain.is_streamed:
        groups, total = set(), None
        samples = map(read, domain.dataset.share(accelerator.process_index, accelerator.num_processes, limit))
    else:
        indices = evenly_spaced_indices(len(domain.dataset), len(domain.dataset) if limit is None else limit)
        column = domain.dataset.with_format(None)["domain"]
        groups = {column[index] for index in indices}
        own_indices = indices[accelerator.process_index :: accelerator.num_processes]
        samples, total = read_ahead(own_indices, read, model.device), len(own_indices)
    names = [domain.name, *sorted(groups - {domain.name})]
    metrics = {name: MeanIoU(domain.classes, scored=domain.scored) for name in names}
    samples = tqdm(samples, domain.name, total, leave=False, disable=not accelerator.is_main_process)
    begun = []  # counts of the images before, for which nobody waits before the device has the next ones
    for batch in batched_by_size(samples, itemgetter("image"), model, crop, stride):
        with accelerator.autocast():
            labels = label_maps(model, processor, [sample["image"] for sample in batch], crop, stride)
        last, begun = begun, []
        for sample, label in zip(batch, labels, strict=True):
            label = in_classes_of(domain, label, model)
            for name in {domain.name, sample["domain"]}:
                with _naming(domain, sample):
                    finish = metrics[name].begin_add(prediction=label, reference=sample["label"])
                begun.append((sample, finish))
        _finish(domain, last)
    _finish(domain, begun)
    for metric in metrics.values():
        metric.reduce(accelerator)
    return metrics


def read_sample(
    sample: int | dict[str, Any], domain: Domain, transform: Callable[[Image.Image, str], Image.Image] | None = None
) -> dict[str, Any]:
    """A labelled sample of a domain, ready for the device.

    Args:
        sample: its index, or what a stream gave.

    Returns:
        `name`, `domain`, `label` (H, W) as a tensor, and `image`, a [`~rein_hf.inference.PreparedImage`].

    Raises:
        ValueError: the label is not public, or a file cannot be read.
    """
    sample = domain.dataset[sample] if isinstance(sample, int) else sample
    if sample["label"] is None:
        raise ValueError(f"{domain.name}: the label of {sample['name']} is not public. See rein-hf submit.")
    image = sample["image"] if transform is None else transform(sample["image"], sample["name"])
    label = torch.from_numpy(np.array(sample["label"]))
    return {**sample, "image": prepare_image(image, domain.size), "label": label}


def in_classes_of(domain: Domain, label: torch.Tensor, model: nn.Module) -> torch.Tensor:
    """A label map (H, W) of a model's classes in those of a domain, on its device."""
    names = class_names_of(model.config.id2label, "id2label of the model")
    ids = np.arange(len(names), dtype=np.uint8)
    classes = domain.predictions(ids, classes=list(names))
    return label if np.array_equal(ids, classes) else _class_table(tuple(classes.tolist()), label.device)[label.long()]


@keeps_tensors(32)
def _class_table(classes: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """Class ids as uint8, on a device: a copy for each image would wait for the model."""
    return torch.tensor(classes, dtype=torch.uint8, device=device)


def _finish(domain: Domain, begun: list[tuple[dict[str, Any], Callable[[], None]]]) -> None:
    for sample, finish in begun:
        with _naming(domain, sample):
            finish()


@contextmanager
def _naming(domain: Domain, sample: dict[str, Any]) -> Iterator[None]:
    """Errors begin with the sample's name."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{domain.name}: {sample['name']}: {error}") from error


def predict_sample(
    model: nn.Module,
    processor,
    domain: Domain,
    image: Image.Image,
    crop: int | None = None,
    stride: int | None = None,
) -> np.ndarray:
    """The label map (H, W) of an image, segmented at the size at which the domain is evaluated, in the domain's
    classes. [`Domain.predictions`] refuses a model of other classes."""
    names = class_names_of(model.config.id2label, "id2label of the model")
    label = segment(model, processor, image, crop, stride, domain.size)
    return domain.predictions(label, classes=list(names))


def evenly_spaced_samples(domain: Domain, count: int) -> list[dict[str, Any]]:
    """`count` samples, evenly spread over a domain. Of a stream, the first."""
    if domain.is_streamed:
        return list(domain.dataset.share(0, 1, count))
    return [domain.dataset[index] for index in evenly_spaced_indices(len(domain.dataset), count)]


def evenly_spaced_indices(length: int, count: int) -> list[int]:
    """`count` indices evenly spread over `range(length)`, all of them if there are fewer."""
    return np.unique(np.linspace(0, length - 1, min(count, length)).round().astype(int)).tolist()
