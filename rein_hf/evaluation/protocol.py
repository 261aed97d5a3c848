"""One domain, evaluated: whole images by windows, streamed into confusion matrices."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from accelerate import Accelerator
from PIL import Image
from torch import nn
from tqdm.auto import tqdm

from ..inference import segment
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
    alter: Callable[[Image.Image, str], Image.Image] | None = None,
) -> dict[str, MeanIoU]:
    """The confusion matrices of a domain, summed over all processes.

    Args:
        model, processor, crop, stride: as for [`segment`].
        domain ([`Domain`]): its images are split between the processes.
        accelerator: of the run; its mixed precision applies.
        limit (`int`, *optional*): evaluate this many images, evenly spread; the first ones of a stream.
        alter: function of an image and its name that returns the image to evaluate on, e.g. a corrupted one.

    Returns:
        A metric for the domain by its name and, if its images have groups, one for each by "name/group".

    Raises:
        ValueError: the labels are not public; the model has other classes; a file is not as it should be.
    """
    if domain.is_streamed:
        groups, total = set(), None
        mine = domain.dataset.share(accelerator.process_index, accelerator.num_processes, limit)
    else:
        indices = evenly_spaced_indices(len(domain.dataset), limit or len(domain.dataset))
        column = domain.dataset.with_format(None)["domain"]
        groups = {column[index] for index in indices}
        chosen = indices[accelerator.process_index :: accelerator.num_processes]
        mine, total = map(domain.dataset.__getitem__, chosen), len(chosen)
    names = [domain.name, *sorted(groups - {domain.name})]
    metrics = {name: MeanIoU(domain.classes, scored=domain.scored) for name in names}
    for sample in tqdm(mine, domain.name, total, leave=False, disable=not accelerator.is_main_process):
        if sample["label"] is None:
            raise ValueError(f"{domain.name}: the label of {sample['name']} is not public. See recipes/submit.py.")
        image = sample["image"] if alter is None else alter(sample["image"], sample["name"])
        with accelerator.autocast():
            prediction = predict_sample(model, processor, domain, image, crop, stride)
        for name in {domain.name, sample["domain"]}:
            metrics[name].add(prediction=prediction, reference=sample["label"])
    for metric in metrics.values():
        metric.reduce(accelerator)
    return metrics


def predict_sample(
    model: nn.Module,
    processor,
    domain: Domain,
    image: Image.Image,
    crop: int | None = None,
    stride: int | None = None,
) -> np.ndarray:
    """What [`segment`] finds at the size at which a domain is evaluated, in its classes. A model of others is refused
    by [`Domain.predictions`]."""
    names = model.config.id2label
    label = segment(model, processor, image, crop, stride, domain.size)
    return domain.predictions(label, classes=[names[index] for index in range(len(names))])


def evenly_spaced_samples(domain: Domain, count: int) -> list[dict[str, Any]]:
    """`count` samples of a domain, evenly spread; the first ones of a stream."""
    if domain.is_streamed:
        return list(domain.dataset.share(0, 1, count))
    return [domain.dataset[index] for index in evenly_spaced_indices(len(domain.dataset), count)]


def evenly_spaced_indices(length: int, count: int) -> list[int]:
    """`count` indices, or all of them, evenly spread over `range(length)`."""
    return np.unique(np.linspace(0, length - 1, min(count, length)).round().astype(int)).tolist()
