"""Mean IoU from one streaming confusion matrix per domain, with the interface of `evaluate`'s metrics.

`evaluate.load("mean_iou")` needs the Hub and keeps every label map in an Arrow file; this keeps K x K counts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from accelerate import Accelerator

from ..inference import start_copy, to_device
from ..labels import IGNORE


class MeanIoU:
    """
    Intersection over union of each class and its mean.

    Args:
        classes (`Sequence[str]`): names of the K classes, by id, each another one.
        ignore_index (`int`): label of pixels that do not count.
        scored (`Sequence[str]`, *optional*): the classes over which the mean is taken, for a data set that does not
            have all of them. Pixels predicted as another class are wrong nevertheless. All classes by default.

    Raises:
        ValueError: `classes` or `scored` names a class twice, `scored` names an unknown one, or `ignore_index` is 255
            and there are more than 255 classes.

    The IoU of a class that occurs neither in a label nor in a prediction is nan, and is left out of the mean.

    Example:

    ```py
    >>> import numpy as np
    >>> from rein_hf.evaluation import MeanIoU
    >>> metric = MeanIoU(["road", "sky"])
    >>> metric.add(prediction=np.array([[0, 0], [1, 1]]), reference=np.array([[0, 1], [1, 255]]))
    >>> metric.compute()
    {'mean_iou': 0.5, 'overall_accuracy': 0.6666666666666666, 'per_class_iou': {'road': 0.5, 'sky': 0.5}}

    ```
    """

    def __init__(self, classes: Sequence[str], ignore_index: int = IGNORE, scored: Sequence[str] | None = None):
        self.classes = list(classes)
        self.ignore_index = ignore_index
        self.scored = self.classes if scored is None else list(scored)
        for argument, names in (("classes", self.classes), ("scored", self.scored)):
            if twice := [name for name, number in Counter(names).items() if number > 1]:
                raise ValueError(
                    f"{argument} has several classes named {twice[:5]}; expected a name of its own for each."
                )
        if ignore_index == IGNORE and len(self.classes) > IGNORE:
            raise ValueError(
                f"classes has {len(self.classes)} names, and pixels of {self.classes[IGNORE]!r}, which has the id "
                f"{IGNORE}, would not count. Give another ignore_index, such as -1."
            )
        if unknown := set(self.scored) - set(self.classes):
            raise ValueError(f"scored names {sorted(unknown)}; expected some of the classes {self.classes}.")
        self.confusion = np.zeros((len(self.classes), len(self.classes)), dtype=np.int64)

    def add(self, *, prediction: np.ndarray | torch.Tensor, reference: np.ndarray | torch.Tensor) -> None:
        """Count one label map. Pixels are counted on the device of the prediction.

        Args:
            prediction, reference: integer maps (H, W) of the same shape. The rows of the confusion matrix are the
                classes of the reference.

        Raises:
            ValueError: shapes differ, or a value is neither a class nor, in the reference, `ignore_index`.
        """
        self.begin_add(prediction=prediction, reference=reference)()

    def begin_add(
        self, *, prediction: np.ndarray | torch.Tensor, reference: np.ndarray | torch.Tensor
    ) -> Callable[[], None]:
        """As [`add`], but without waiting for the device: the function that is returned waits and adds the counts.
        Errors are raised by either of them."""
        prediction, reference = (
            _as_integer_tensor("prediction", prediction),
            _as_integer_tensor("reference", reference),
        )
        if prediction.shape != reference.shape:
            raise ValueError(
                f"prediction has shape {tuple(prediction.shape)}, reference {tuple(reference.shape)}; "
                "expected the same."
            )
        reference, count = to_device(reference, prediction.device), len(self.classes)
        pair = _to_uint8(prediction), _to_uint8(reference)
        if None in pair:
            valid = reference != self.ignore_index
            prediction, reference = prediction[valid].long(), reference[valid].long()
            self._check_ids(prediction, reference)
            counted = start_copy(_count_pairs(prediction, reference, count))
        else:
            # All 256 x 256 pairs of values are counted first, ignored and unknown ones too. That is faster than to
            # mask or search the maps.
            counted = start_copy(_count_pairs(*pair, 256))

        def finish() -> None:
            counts = counted()
            if None not in pair:
                if 0 <= self.ignore_index < 256:
                    counts[self.ignore_index] = 0
                self._check_ids(counts.sum(0).nonzero(), counts.sum(1).nonzero())
            counts = counts[:count, :count].numpy()
            self.confusion[: len(counts), : len(counts)] += counts

        return finish

    def _check_ids(self, prediction: torch.Tensor, reference: torch.Tensor) -> None:
        """Refuse values that are not the id of a class; ignored pixels are not among them."""
        count = len(self.classes)
        for name, found in (("prediction", prediction), ("reference", reference)):
            if found.numel() and not 0 <= found.min() <= found.max() < count:
                raise ValueError(
                    f"{name} holds values from {found.min()} to {found.max()}; expected 0 to {count - 1}"
                    f"{f' or {self.ignore_index}' if name == 'reference' else ''}."
                )

    def add_batch(self, *, predictions: Iterable, references: Iterable) -> None:
        """Count several label maps; each pair as in [`add`]."""
        for prediction, reference in zip(predictions, references, strict=True):
            self.add(prediction=prediction, reference=reference)

    def reduce(self, accelerator: Accelerator) -> None:
        """Sum the counts of all processes. Every process calls it once, after its last `add`."""
        counts = torch.from_numpy(self.confusion).to(accelerator.device)
        self.confusion = accelerator.reduce(counts, reduction="sum").cpu().numpy()

    def compute(self, *, predictions: Iterable | None = None, references: Iterable | None = None) -> dict:
        """Mean IoU, pixel accuracy and the IoU per class, each from 0 to 1; nan where nothing was counted.

        Args:
            predictions, references (*optional*): label maps to be counted first, as in [`add_batch`].
        """
        if predictions is not None or references is not None:
            self.add_batch(predictions=predictions, references=references)
        true_positives = np.diag(self.confusion).astype(float)
        union = self.confusion.sum(0) + self.confusion.sum(1) - np.diag(self.confusion)
        with np.errstate(invalid="ignore"):
            iou = true_positives / union
            accuracy = true_positives.sum() / self.confusion.sum()
        in_mean = iou[[self.classes.index(name) for name in self.scored]]
        return {
            "mean_iou": float(np.nanmean(in_mean)) if np.isfinite(in_mean).any() else float("nan"),
            "overall_accuracy": float(accuracy),
            "per_class_iou": dict(zip(self.classes, iou.tolist(), strict=True)),
        }


def _as_integer_tensor(name: str, values: np.ndarray | torch.Tensor) -> torch.Tensor:
    """A label map as a tensor of an integer type that torch calculates with. It is copied only where necessary."""
    if not isinstance(values, torch.Tensor):
        values = torch.from_numpy(np.require(values, requirements=["C", "W"]))  # torch takes no other arrays
    if values.is_floating_point():
        raise ValueError(f"{name} holds {values.dtype}; expected the integer ids of classes.")
    return values.long() if values.dtype in (torch.uint16, torch.uint32, torch.uint64) else values


def _to_uint8(values: torch.Tensor) -> torch.Tensor | None:
    """The same integers as uint8, or None if one of them does not fit."""
    if values.dtype == torch.uint8:
        return values
    as_uint8 = values.to(torch.uint8)
    return as_uint8 if (as_uint8 == values).all() else None


def _count_pairs(prediction: torch.Tensor, reference: torch.Tensor, count: int) -> torch.Tensor:
    """How often each pair of ids, from 0 to `count` - 1, occurs: int64 (count, count), rows the reference."""
    dtype = torch.promote_types(reference.dtype, torch.int32)  # an index of a pair needs more than 8 bits
    index = prediction.to(dtype, copy=True).add_(reference.to(dtype), alpha=count)
    return torch.bincount(index.flatten(), minlength=count**2).view(count, count)
