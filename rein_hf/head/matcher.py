"""Mask2Former's bipartite matching of queries and target masks, for all decoder outputs and images together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch.nn import functional as F
from transformers.models.mask2former.modeling_mask2former import Mask2FormerHungarianMatcher


@dataclass(frozen=True)
class Targets:
    """The target masks of a batch, one image after the other.

    Args:
        masks (`(N, H, W)`): binary masks, in float32 or wider.
        classes (`(N,)`): class of each mask.
        counts: number of masks of each image.
    """

    masks: torch.Tensor
    classes: torch.Tensor
    counts: list[int]

    @classmethod
    def of_images(
        cls, mask_labels: list[torch.Tensor], class_labels: list[torch.Tensor], dtype: torch.dtype
    ) -> Targets:
        """From the masks (classes, H, W) and the classes (classes,) of each image."""
        counts = [len(classes) for classes in class_labels]
        return cls(torch.cat(mask_labels).to(dtype), torch.cat(class_labels).long(), counts)

    @cached_property
    def first(self) -> np.ndarray:
        """Index of the first mask of each image, and at the end the number of masks."""
        return np.cumsum([0, *self.counts])


@dataclass(frozen=True)
class Pairs:
    """The matching of O decoder outputs with M pairs of a query and a mask each, and N masks in the batch.

    Args:
        queries (`(O, M)`): index of each pair's query among all queries of the batch.
        masks (`(O, M)`): index of each pair's mask among all masks of the batch.
        of_mask (`(N, O)`): index of each mask's pair among all O * M pairs; 0 if the mask has none.
        places (`(O * M,)`): index of each pair in `of_mask`, flattened.
    """

    queries: torch.Tensor
    masks: torch.Tensor
    of_mask: torch.Tensor
    places: torch.Tensor

    @classmethod
    def of_matching(
        cls, matched: list[tuple[torch.Tensor, torch.Tensor]], targets: Targets, mask_logits: torch.Tensor
    ) -> Pairs:
        """From what [`ReinMatcher`] returns on the host. It goes to the device of `mask_logits` in one piece."""
        images, (_, m, *_) = len(targets.counts), mask_logits.shape
        outputs = len(matched) // images

        def of_batch(part: int, first: np.ndarray) -> np.ndarray:  # (O, M)
            rows = [pair[part].numpy() + first[index % images] for index, pair in enumerate(matched)]
            return np.concatenate(rows).reshape(outputs, -1)

        queries, masks = of_batch(0, np.arange(images) * m), of_batch(1, targets.first)
        of_mask = np.zeros((targets.first[-1], outputs), np.int64)
        of_mask[masks, np.arange(outputs)[:, None]] = np.arange(masks.size).reshape(masks.shape)
        places = masks * outputs + np.arange(outputs)[:, None]
        parts = [queries, masks, of_mask, places.ravel()]
        on_device = torch.from_numpy(np.concatenate([part.ravel() for part in parts]))
        on_device = on_device.to(mask_logits.device, non_blocking=True).split([part.size for part in parts])
        return cls(*(one.view(part.shape) for one, part in zip(on_device, parts, strict=True)))


class ReinMatcher(Mask2FormerHungarianMatcher):
    """Finds the stock matcher's assignment; a subclass because the stock one computes costs for one decoder output and
    image at a time, waits for the device at each, and copies the points for every query."""

    @torch.no_grad()
    def forward(
        self, outputs: Sequence[tuple[torch.Tensor, torch.Tensor]], targets: Targets, points: torch.Tensor
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """
        Args:
            outputs: mask logits (B, m, h, w) and class logits (B, m, K + 1) of each of O decoder outputs.
            targets: the target masks of the B images.
            points (`(O, B, P, 2)`): where masks are compared, for each decoder output and image; x and y from 0 to 1.

        Returns:
            For each image of the first decoder output, then for each of the second, and so on: the indices of the
            matched queries, ascending, and the indices of their masks among those of the image.
        """
        if not any(targets.counts):
            return [(torch.zeros(0, dtype=torch.int64),) * 2 for _ in range(len(outputs) * len(targets.counts))]
        costs = self.costs(outputs, targets, points).cpu().numpy()
        assigned = [
            linear_sum_assignment(cost[:, :count])
            for of_output in costs
            for cost, count in zip(of_output, targets.counts, strict=True)
        ]
        return [(torch.from_numpy(queries), torch.from_numpy(masks)) for queries, masks in assigned]

    def costs(self, outputs, targets: Targets, points: torch.Tensor) -> torch.Tensor:
        """Costs (O, B, m, n) of all pairs of a query and a mask of the same image. n is the largest number of masks of
        an image; what lies beyond the number of an image has no meaning."""
        device, counts = points.device, targets.counts
        image_of_mask = np.repeat(np.arange(len(counts)), counts)
        # index (B, n) of each image's masks; where an image has fewer, of any mask
        padded = np.minimum(targets.first[:-1, None] + np.arange(max(counts)), len(image_of_mask) - 1)
        indices = torch.from_numpy(np.concatenate([image_of_mask, padded.ravel()])).to(device, non_blocking=True)
        image_of_mask, padded = indices[: len(image_of_mask)], indices[len(image_of_mask) :].view(padded.shape)

        grid = grid_of(points)
        expected = sample_grid(targets.masks[:, None], grid.transpose(0, 1)[image_of_mask])[:, 0]  # (N, O, P)
        expected = expected[padded].permute(2, 0, 3, 1)  # (O, B, P, n)
        sums = []
        # output by output: the samples of one are a hundred times as many values as its costs
        for (masks, _), of_output, where in zip(outputs, expected, grid, strict=True):
            x = sample_grid(at_least_float32(masks), where[:, None])[:, :, 0]  # (B, m, P)
            # binary cross-entropy is softplus(x) - x y: one product, where the stock code has two
            cross_entropy = F.softplus(x).sum(dim=2, keepdim=True) - x @ of_output
            x.sigmoid_()
            sums.append((cross_entropy, x @ of_output, x.sum(dim=2, keepdim=True)))
        cross_entropy, common, predicted = (torch.stack(one) for one in zip(*sums, strict=True))
        dice = 1 - (2 * common + 1) / (predicted + expected.sum(dim=2)[:, :, None] + 1)
        probability = at_least_float32(torch.stack([classes for _, classes in outputs])).softmax(dim=-1)
        classes = targets.classes[padded][:, None].expand(*probability.shape[:3], -1)
        cost = self.cost_mask / self.num_points * cross_entropy + self.cost_dice * dice
        cost = cost - self.cost_class * probability.gather(3, classes)
        # a diverged query is matched last; scipy refuses costs that are infinite or NaN
        largest = torch.finfo(cost.dtype).max
        return cost.nan_to_num(nan=largest, posinf=largest, neginf=largest)


def at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in float32, or unchanged if its dtype is wider."""
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


def sample_points(maps: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """Bilinear samples (n, P) of maps (n, h, w) at points (n, P, 2), or (n, O, P) at points (n, O, P, 2). Points are x
    and y: (0, 0) is the upper left corner of a map's first pixel, (1, 1) the lower right corner of its last one."""
    grid = grid_of(points)
    if grid.dim() == 3:
        return sample_grid(maps[:, None], grid[:, None])[:, 0, 0]
    return sample_grid(maps[:, None], grid)[:, 0]


def grid_of(points: torch.Tensor) -> torch.Tensor:
    """Coordinates as `F.grid_sample` takes them, -1 to 1, of points from 0 to 1; contiguous."""
    return torch.mul(points, 2, out=torch.empty(points.shape, dtype=points.dtype, device=points.device)).sub_(1)


def sample_grid(maps: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
    """Bilinear samples of maps at coordinates as [`grid_of`] gives them."""
    return F.grid_sample(maps, grid, align_corners=False)
