"""The paper's loss for Mask2Former's head, and the loss of heads that classify pixels.

What differs from transformers' `Mask2FormerLoss`:
- the decoder outputs are supervised in the decoder's order, the initial output first, so that with the same seed the
  same random points are drawn as in the reference implementation;
- the number of masks is averaged over the processes. Transformers divides this average by the number of processes once
  more, so that its mask and dice losses grow with the number of processes;
- an image without any valid pixel has a mask and dice loss of zero, where transformers raises an error, and counts as
  one mask in the normalisation, as in the reference;
- matching and losses are computed in float32 or wider, also under autocast;
- the losses of all decoder outputs are computed together, in few operations, and so are the matching costs, for which
  the program waits for the device once per step;
- neither points nor target masks are copied for every query.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from torch.nn import functional as F
from transformers import Mask2FormerConfig
from transformers.models.mask2former.modeling_mask2former import Mask2FormerLoss

from ..labels import IGNORE
from ..tuner import without_autocast
from .matcher import Pairs, ReinMatcher, Targets, at_least_float32, grid_of, sample_grid, sample_points


def pixel_loss(outputs, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None) -> torch.Tensor:
    """Cross-entropy of a head that classifies pixels, in float32, for the stock Trainer's `compute_loss_func`.

    The loss is averaged over all pixels, as in the authors' framework; pixels of no class count with a loss of zero.
    Transformers averages over labelled pixels. That is NaN for images without any, and depends on how a batch is split
    into micro-batches.

    Args:
        outputs: has `logits` (B, K, H, W).
        labels (`(B, H, W)`): class ids; 255 for pixels of no class.
        num_items_in_batch (*optional*): number of pixels of the whole step, in all its micro-batches and processes; of
            `labels` by default.
    """
    with without_autocast(labels.device.type):
        loss = F.cross_entropy(at_least_float32(outputs.logits), labels, ignore_index=IGNORE, reduction="sum")
    return loss / (labels.numel() if num_items_in_batch is None else num_items_in_batch)


class Points(NamedTuple):
    """Random points for O decoder outputs, x and y from 0 to 1.

    Args:
        matching: (O, B, P, 2), where predicted and target masks are compared for the matching.
        candidates: (O, M, 3P, 2) for M matched masks; the loss uses the 3P / 4 points where the prediction is the most
            uncertain.
        random: (O, M, P / 4, 2), which the loss uses as they are.
    """

    matching: torch.Tensor
    candidates: torch.Tensor
    random: torch.Tensor

    @classmethod
    def draw(cls, outputs: int, rows: Sequence[int], numbers: Sequence[int], device: torch.device) -> Points:
        """All in one operation. The generator of a CPU draws the same as in a loop over the outputs, and for each the
        fields in their order; `rows` (B, M, M) and `numbers` (P, 3P, P / 4) are their sizes."""
        sizes = [row * number for row, number in zip(rows, numbers, strict=True)]
        drawn = torch.rand(outputs, sum(sizes), 2, device=device).split(sizes, dim=1)
        parts = zip(drawn, rows, numbers, strict=True)
        return cls(*(part.unflatten(1, (row, number)) for part, row, number in parts))


class ReinCriterion(Mask2FormerLoss):
    """The paper's loss; a subclass of the stock criterion for the reasons at the top of this file.

    Args:
        config (`Mask2FormerConfig`): gives the loss weights and the numbers of points.
        weight_dict (`dict[str, float]`): weight of each loss, `model.weight_dict`.

    Attributes:
        averages (`(2,)`, *optional*): the average of [`totals`] over all micro-batches and processes of a step. A
            trainer that knows it sets it for the step; the mean of the losses of these batches is then the loss that
            all their images would have as one batch. While it is None, the number of masks is averaged over the
            processes, and the class loss is the mean of the batch.
    """

    def __init__(self, config: Mask2FormerConfig, weight_dict: dict[str, float]) -> None:
        super().__init__(config, weight_dict)
        self.num_queries = config.num_queries
        self.averages: torch.Tensor | None = None
        stock = self.matcher
        self.matcher = ReinMatcher(stock.cost_class, stock.cost_mask, stock.cost_dice, stock.num_points)

    # a compiled model ends before the loss: the matching is on the host, and the rest depends on what it found
    @torch.compiler.disable
    def forward(
        self,
        masks_queries_logits: torch.Tensor,
        class_queries_logits: torch.Tensor,
        mask_labels: list[torch.Tensor] | torch.Tensor,
        class_labels: list[torch.Tensor] | torch.Tensor,
        auxiliary_predictions: list[dict[str, torch.Tensor]] | None = None,
    ) -> dict[str, torch.Tensor]:
        """
        Args:
            masks_queries_logits (`(B, m, h, w)`), class_queries_logits (`(B, m, K + 1)`): the last decoder output.
            mask_labels: for each image the binary masks of its classes, (classes, H, W); one size for all images. Or
                one tensor (B, classes, H, W), if all images have as many masks.
            class_labels: for each image the class of each of these masks, (classes,); or one tensor (B, classes).
            auxiliary_predictions: the decoder outputs before the last one, the initial output first, as dictionaries
                with the keys `masks_queries_logits` and `class_queries_logits`.

        Returns:
            Unweighted losses by transformers' names: `loss_cross_entropy`, `loss_mask` and `loss_dice` of the last
            decoder output, and the same names with `_0`, `_1`, ... for the outputs before it.

        Raises:
            ValueError: the masks of two images differ in size, or the numbers of images, masks and classes differ.
        """
        mask_labels, class_labels = list(mask_labels), list(class_labels)
        _check_labels(mask_labels, class_labels, batch=len(masks_queries_logits))
        auxiliary = [(o["masks_queries_logits"], o["class_queries_logits"]) for o in auxiliary_predictions or []]
        outputs = [*auxiliary, (masks_queries_logits, class_queries_logits)]
        suffixes = [*(f"_{index}" for index in range(len(auxiliary))), ""]
        if self.averages is None:
            num_masks, share = self.get_num_masks(class_labels, device=masks_queries_logits.device), 1.0
        else:
            num_masks, share = self.averages[0], self.totals(class_labels)[1] / self.averages[1]
        dtype = torch.promote_types(masks_queries_logits.dtype, torch.float32)
        with without_autocast(masks_queries_logits.device.type):
            matched = sum(min(len(classes), masks_queries_logits.shape[1]) for classes in class_labels)
            random = self.num_points - int(self.importance_sample_ratio * self.num_points)
            numbers = (self.num_points, int(self.num_points * self.oversample_ratio), random)
            rows = (len(class_labels), matched, matched)
            at_once = outputs_at_once(len(outputs), masks_queries_logits.device)
            points = [
                Points(*(one.to(dtype) for one in Points.draw(at_once, rows, numbers, masks_queries_logits.device)))
                for _ in range(0, len(outputs), at_once)
            ]
            targets = Targets.of_images(mask_labels, class_labels, dtype)
            matched = self.matcher(outputs, targets, torch.cat([drawn.matching for drawn in points]))
            pairs = Pairs.of_matching(matched, targets, outputs[0][0])
            losses = self._mask_losses([masks for masks, _ in outputs], targets, pairs, points, num_masks)
            losses["loss_cross_entropy"] = share * self._class_losses([one for _, one in outputs], targets, pairs)
        names = [name + suffix for name in losses for suffix in suffixes]
        parts = [loss for of_outputs in losses.values() for loss in of_outputs.unbind()]
        # copies: the model multiplies its weights into them, which autograd forbids for parts of one tensor
        return dict(zip(names, torch._foreach_add(parts, 0.0), strict=True))

    def _mask_losses(
        self,
        masks: list[torch.Tensor],
        targets: Targets,
        pairs: Pairs,
        points: list[Points],
        num_masks: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        """Mask loss and dice loss (O,) of O decoder outputs, from their mask logits (B, m, h, w)."""
        if not pairs.queries.shape[1]:
            # part of the graph: all processes of a run must go backward
            zeros = torch.stack([at_least_float32(one).sum() * 0 for one in masks])
            return {"loss_mask": zeros, "loss_dice": zeros}
        matched = [one.flatten(0, 1)[queries] for one, queries in zip(masks, pairs.queries, strict=True)]
        matched = at_least_float32(torch.stack(matched))
        with torch.no_grad():
            parts = matched.split([len(drawn.matching) for drawn in points])
            where = torch.cat(list(map(self._choose_points, parts, points)))  # (O, M, P, 2)
            # in the order of the masks: the other way round the masks, which are larger, would be copied
            labels = sample_points(targets.masks, where.flatten(0, 1)[pairs.of_mask])  # (N, O, P)
            labels = labels.flatten(0, 1)[pairs.places].unflatten(0, where.shape[:2])
        logits = sample_points(matched.flatten(0, 1), where.flatten(0, 1)).view_as(labels)
        cross_entropy = F.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(dim=2)
        probabilities = logits.sigmoid()
        dice = 1 - (2 * (probabilities * labels).sum(dim=2) + 1) / (probabilities.sum(2) + labels.sum(2) + 1)
        return {"loss_mask": cross_entropy.sum(dim=1) / num_masks, "loss_dice": dice.sum(dim=1) / num_masks}

    def _choose_points(self, masks: torch.Tensor, points: Points) -> torch.Tensor:
        """Where the losses of masks (O, M, h, w) are computed, (O, M, P, 2): the most uncertain candidates, and random
        points."""
        # not `sample_points`, which would first copy the candidates: they are the largest tensor of a loss
        grid = grid_of(points.candidates).flatten(0, 1)[:, None]
        uncertainty = sample_grid(masks.flatten(0, 1)[:, None], grid)[:, 0, 0].abs_()
        del grid
        number = self.num_points - points.random.shape[2]
        chosen = uncertainty.topk(number, dim=1, largest=False, sorted=False).indices.view(*masks.shape[:2], -1)
        # x and y as one complex number: both are gathered by one index
        uncertain = torch.view_as_real(torch.view_as_complex(points.candidates).gather(2, chosen))
        return torch.cat([uncertain, points.random], dim=2)

    def _class_losses(self, classes: list[torch.Tensor], targets: Targets, pairs: Pairs) -> torch.Tensor:
        """Cross-entropy (O,) of the class logits (B, m, K + 1) of O decoder outputs: for matched queries with the
        classes of their masks, for all others with "no object"."""
        logits = at_least_float32(torch.stack(classes)).flatten(1, 2)
        expected = torch.full_like(logits[..., 0], self.num_labels, dtype=torch.int64)
        expected.scatter_(1, pairs.queries, targets.classes[pairs.masks])
        weight = self.empty_weight.to(logits.dtype)
        losses = F.cross_entropy(logits.transpose(1, 2), expected, weight=weight, reduction="none")
        return losses.sum(dim=1) / weight[expected].sum(dim=1)

    def totals(self, class_labels: list[torch.Tensor]) -> tuple[float, float]:
        """By what the losses of a batch are divided: mask and dice losses by its number of masks, where an image
        without any counts as one; the class loss by the sum of the weights of the target classes of all queries."""
        matched = sum(min(len(classes), self.num_queries) for classes in class_labels)
        masks = sum(max(len(classes), 1) for classes in class_labels)
        return float(masks), matched + self.eos_coef * (len(class_labels) * self.num_queries - matched)

    def get_num_masks(self, class_labels: list[torch.Tensor], device: torch.device) -> torch.Tensor:
        """Average number of masks per process, at least one, a 0-dim tensor. An image without masks counts as one, as
        in the reference."""
        num_masks = torch.full((), self.totals(class_labels)[0], device=device)
        if PartialState._shared_state:
            num_masks = reduce(num_masks, reduction="mean")
        return num_masks.clamp(min=1)


def outputs_at_once(outputs: int, device: torch.device) -> int:
    """For how many decoder outputs points are drawn and chosen together: on a CPU for one, as memory that is larger
    than its cache costs it more than further operations."""
    return 1 if device.type == "cpu" else outputs


def _check_labels(mask_labels: list[torch.Tensor], class_labels: list[torch.Tensor], batch: int) -> None:
    if not len(mask_labels) == len(class_labels) == batch:
        raise ValueError(
            f"mask_labels are of {len(mask_labels)} images and class_labels of {len(class_labels)}; expected {batch}, "
            "as many as pixel_values has."
        )
    sizes = {tuple(masks.shape[-2:]) for masks in mask_labels}
    if len(sizes) > 1:
        raise ValueError(f"mask_labels have the sizes {sorted(sizes)}; expected one: pad them as the images are.")
    numbers = [(len(masks), len(classes)) for masks, classes in zip(mask_labels, class_labels, strict=True)]
    if any(masks != classes for masks, classes in numbers):
        raise ValueError(
            f"numbers of masks and of class_labels of each image are {numbers}; expected the same number."
        )
