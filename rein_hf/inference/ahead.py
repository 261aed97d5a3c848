"""The model at work while the next images are read and the last results are copied."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset

from ..images import default_workers, image_tensor, upright_rgb
from .budget import windows_at_once
from .strips import resize_pixels
from .transfer import pixel_values_of
from .windows import count_windows, predict_labels, slide_inference, window_sides


Item = TypeVar("Item")


class PreparedImage(NamedTuple):
    """An image as it goes to the device.

    Args:
        pixels (`(3, h, w)`): uint8, at the size at which the model sees them.
        size (`(int, int)`): height and width of the label map.
    """

    pixels: torch.Tensor
    size: tuple[int, int]


def prepare_image(image: Image.Image, size: tuple[int, int] | None = None) -> PreparedImage:
    """An image, upright and resized to fit into a width and a height; arguments and errors are those of
    [`rein_hf.segment`]."""
    image = upright_rgb(image)
    return PreparedImage(resize_pixels(image_tensor(image), size), (image.height, image.width))


def label_maps(
    model: nn.Module,
    processor,
    images: Sequence[PreparedImage],
    crop: int | None = None,
    stride: int | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> list[torch.Tensor]:
    """The class of every pixel of images whose pixels are of one size, on the model's device.

    Nothing here waits for the device. Arguments and errors are those of [`rein_hf.segment`].

    Returns:
        A map `(H, W)` of uint8 for each image, of its `size`.
    """
    pixel_values = torch.cat([pixel_values_of(processor, image.pixels, model.device) for image in images])
    scores = slide_inference(model, pixel_values, crop, stride, progress)
    if len({image.size for image in images}) == 1:
        return list(predict_labels(scores, images[0].size))
    return [predict_labels(one[None], image.size)[0] for one, image in zip(scores, images, strict=True)]


def batched_by_size(
    items: Iterable[Item],
    image_of: Callable[[Item], PreparedImage],
    model: nn.Module,
    crop: int | None = None,
    stride: int | None = None,
) -> Iterator[list[Item]]:
    """Lists of neighbouring items whose images are of one size, in order: one by one on a CPU, elsewhere as many as
    there is memory for."""
    batch, most = [], 1
    for item in items:
        shape = image_of(item).pixels.shape
        if batch and (image_of(batch[0]).pixels.shape != shape or len(batch) >= most):
            yield batch
            batch = []
        if not batch:
            most = images_at_once(model, shape[1], shape[2], crop, stride)
        batch.append(item)
        if len(batch) >= most:
            yield batch
            batch = []
    if batch:
        yield batch


def images_at_once(
    model: nn.Module, height: int, width: int, crop: int | None = None, stride: int | None = None
) -> int:
    """How many images of a size are segmented together."""
    if model.device.type == "cpu":
        return 1
    crop, stride = window_sides(model, crop, stride)
    windows = windows_at_once(model, min(crop, height), min(crop, width), 1, model.device)
    return max(windows // count_windows(height, width, crop, stride), 1)


def read_ahead(items: Sequence[Any], read: Callable[[Any], Any], device: torch.device) -> Iterator[Any]:
    """What `read` makes of each item, in order. Beside a device other than a CPU, worker processes read ahead, and
    tensors among the results are in memory from which a GPU copies by itself.

    Args:
        items: of any kind that can be pickled.
        read: a function that can be pickled.
        device: where the model is.

    Raises:
        Exception: what `read` raised, when its item's turn has come.
    """
    workers = min(default_workers(device.type), len(items))
    if not workers:
        yield from map(read, items)
        return
    loader = DataLoader(
        _Reads(items, read),
        batch_size=None,
        num_workers=workers,
        collate_fn=_as_it_is,
        pin_memory=device.type == "cuda",
    )
    for found in loader:
        if isinstance(found, _Failure):
            raise found.error
        yield found


class _Failure(NamedTuple):
    """What a worker raised: a `DataLoader` would make a message of many lines of it."""

    error: Exception


class _Reads(Dataset):
    def __init__(self, items: Sequence[Any], read: Callable[[Any], Any]):
        self.items, self.read = items, read

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        try:
            return self.read(self.items[index])
        except Exception as error:
            return _Failure(error)


def _as_it_is(item: Any) -> Any:
    return item
