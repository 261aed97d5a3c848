"""Mean IoU from one streaming confusion matrix per domain, with the interface of `evaluate`'s metrics.

`evaluate.load("mean_iou")` needs the Hub and keeps every label map in an Arrow file; this keeps K x K counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from accelerate import Accelerator


class MeanIoU:
    """
    Intersection over union of each class and its mean.

    Args:
        classes (`Sequence[str]`): names of the K classes, by id.
        ignore_index (`int`): label of pixels that do not count.
        scored (`Sequence[str]`, *optional*): the classes whose IoU makes the mean, where a data set does not have all
            of them; pixels predicted as others are wrong nevertheless. All by default.

    A class that is neither in a label nor in a prediction has no IoU (nan) and no part in the mean.

    Example:

    ```py
    >>> import numpy as np
    >>> from rein_hf.metrics import MeanIoU
    >>> metric = MeanIoU(["road", "sky"])
    >>> metric.add(prediction=np.array([[0, 0], [1, 1]]), reference=np.array([[0, 1], [1, 255]]))
    >>> metric.compute()
    {'mean_iou': 0.5, 'overall_accuracy': 0.6666666666666666, 'per_class_iou': {'road': 0.5, 'sky': 0.5}}

    ```
    """

    def __init__(self, classes: Sequence[str], ignore_index: int = 255, scored: Sequence[str] | None = None):
        self.classes = list(classes)
        self.ignore_index = ignore_index
        self.scored = self.classes if scored is None else list(scored)
        if unknown := set(self.scored) - set(self.classes):
            raise ValueError(f"scored names {sorted(unknown)}; expected some of the classes {self.classes}.")
        self.confusion = np.zeros((len(self.classes), len(self.classes)), dtype=np.int64)

    def add(self, *, prediction: np.ndarray | torch.Tensor, reference: np.ndarray | torch.Tensor) -> None:
        """Count one label map.

        Args:
            prediction, reference: integer maps (H, W) of one shape; rows of the confusion matrix are the reference.

        Raises:
            ValueError: shapes differ, or a value is neither a class nor, in the reference, `ignore_index`.
        """
        prediction, reference = np.asarray(prediction), np.asarray(reference)
        if prediction.shape != reference.shape:
            raise ValueError(
                f"prediction has shape {prediction.shape}, reference {reference.shape}; expected the same."
            )
        valid = reference != self.ignore_index
        prediction, reference = prediction[valid].astype(np.int64), reference[valid].astype(np.int64)
        count = len(self.classes)
        for name, values in (("prediction", prediction), ("reference", reference)):
            if values.size and not 0 <= values.min() <= values.max() < count:
                raise ValueError(
                    f"{name} holds values from {values.min()} to {values.max()}; expected 0 to {count - 1}"
                    f"{f' or {self.ignore_index}' if name == 'reference' else ''}."
                )
        self.confusion += np.bincount(reference * count + prediction, minlength=count**2).reshape(count, count)

    def add_batch(self, *, predictions: Iterable, references: Iterable) -> None:
        """Count several label maps; each pair as in [`add`]."""
        for prediction, reference in zip(predictions, references, strict=True):
            self.add(prediction=prediction, reference=reference)

    def reduce(self, accelerator: Accelerator) -> None:
        """Sum the counts of all processes; call it on each of them once, after the last `add`."""
        counts = torch.from_numpy(self.confusion).to(accelerator.device)
        self.confusion = accelerator.reduce(counts, reduction="sum").cpu().numpy()

    def compute(self) -> dict:
        """Mean IoU, pixel accuracy and the IoU per class, each from 0 to 1; nan where nothing was counted."""
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
