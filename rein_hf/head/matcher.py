"""Which query answers for which mask: Mask2Former's bipartite matching, with one wait for the device in a step."""

from __future__ import annotations

import torch
from scipy.optimize import linear_sum_assignment
from torch.nn import functional as F
from transformers.models.mask2former.modeling_mask2former import Mask2FormerHungarianMatcher


class ReinMatcher(Mask2FormerHungarianMatcher):
    """The stock matcher's assignment; a subclass because that one waits for the device at every decoder output and
    image, and copies the points for every query."""

    @torch.no_grad()
    def forward(
        self,
        outputs: list[tuple[torch.Tensor, torch.Tensor]],
        mask_labels: list[torch.Tensor],
        class_labels: list[torch.Tensor],
        points: list[list[torch.Tensor]],
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """
        Args:
            outputs: of each decoder output the mask logits (B, m, h, w) and the class logits (B, m, K + 1).
            mask_labels: per image the binary masks of its classes, (classes, H, W).
            class_labels: per image the class of each mask, (classes,).
            points: per decoder output and image the points to compare at, (1, P, 2).

        Returns:
            Matched queries, ascending, and their masks, for every image of the first output, of the second and so on.
        """
        costs = [
            self.costs(masks[image], classes[image], mask_labels[image], class_labels[image], where)
            for (masks, classes), of_output in zip(outputs, points, strict=True)
            for image, where in enumerate(of_output)
        ]
        on_host = torch.cat(costs, dim=1).cpu()
        assigned = [linear_sum_assignment(cost) for cost in on_host.split([cost.shape[1] for cost in costs], dim=1)]
        return [(torch.from_numpy(queries), torch.from_numpy(masks)) for queries, masks in assigned]

    def costs(self, masks, classes, mask_labels, class_labels, points) -> torch.Tensor:
        """Cost (m, classes) of each pair of a query and a mask of one image."""
        masks, classes = at_least_float32(masks), at_least_float32(classes)
        x, y = sample_points(masks, points), sample_points(mask_labels.to(masks), points)
        # binary cross entropy is softplus(x) - x y: one product where the stock code has two
        cross_entropy = (F.softplus(x).sum(dim=1, keepdim=True) - x @ y.T) / self.num_points
        x = x.sigmoid()
        dice = 1 - (2 * (x @ y.T) + 1) / (x.sum(dim=1, keepdim=True) + y.sum(dim=1) + 1)
        probability = classes.softmax(dim=-1)[:, class_labels]
        cost = self.cost_mask * cross_entropy + self.cost_dice * dice - self.cost_class * probability
        # a diverged query is matched last; infinities would be refused
        largest = torch.finfo(cost.dtype).max
        return cost.nan_to_num(nan=largest, posinf=largest, neginf=largest)


def at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    """In float32, or in the wider type that it has."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def sample_points(maps: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """Values (n, P) of maps (n, h, w), interpolated bilinearly at points (n, P, 2), or (1, P, 2) for all maps alike,
    where (0, 0) is the upper left corner of the first pixel and (1, 1) the lower right one of the last."""
    grid = (2 * points - 1)[:, None].expand(len(maps), -1, -1, -1)
    return F.grid_sample(maps[:, None], grid, align_corners=False)[:, 0, 0]
