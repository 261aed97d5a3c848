"""One domain, evaluated: whole images by windows, streamed into confusion matrices."""

from __future__ import annotations

import numpy as np
from accelerate import Accelerator
from PIL import Image
from torch import nn
from tqdm.auto import tqdm

from .data import Domain
from .inference import segment
from .metrics import MeanIoU


def evaluate_domain(
    model: nn.Module,
    processor,
    domain: Domain,
    accelerator: Accelerator,
    crop: int | None = None,
    stride: int | None = None,
    limit: int | None = None,
) -> dict[str, MeanIoU]:
    """The confusion matrices of a domain, summed over all processes.

    Args:
        model, processor, crop, stride: as for [`segment`].
        domain ([`Domain`]): its images are split between the processes.
        accelerator: of the run; its mixed precision applies.
        limit (`int`, *optional*): evaluate this many images, evenly spread.

    Returns:
        A metric for the domain by its name and, if its images have groups, one for each by "name/group".
    """
    indices = spread(len(domain.dataset), limit or len(domain.dataset))
    groups = domain.dataset.with_format(None)["domain"]
    names = [domain.name, *sorted({groups[index] for index in indices} - {domain.name})]
    metrics = {name: MeanIoU(domain.classes) for name in names}
    mine = indices[accelerator.process_index :: accelerator.num_processes]
    for index in tqdm(mine, desc=domain.name, leave=False, disable=not accelerator.is_main_process):
        sample = domain.dataset[index]
        with accelerator.autocast():
            prediction = predict(model, processor, domain, sample["image"], crop, stride)
        for name in {domain.name, sample["domain"]}:
            metrics[name].add(prediction=prediction, reference=sample["label"])
    for metric in metrics.values():
        metric.reduce(accelerator)
    return metrics


def predict(
    model: nn.Module,
    processor,
    domain: Domain,
    image: Image.Image,
    crop: int | None = None,
    stride: int | None = None,
) -> np.ndarray:
    """What [`segment`] finds, in the classes of a domain. A model of others is refused by [`Domain.predictions`]."""
    names = model.config.id2label
    label = segment(model, processor, image, crop, stride)
    return domain.predictions(label, classes=[names[index] for index in range(len(names))])


def spread(length: int, count: int) -> list[int]:
    """`count` indices, or all of them, evenly spread over `range(length)`."""
    return np.unique(np.linspace(0, length - 1, min(count, length)).round().astype(int)).tolist()
