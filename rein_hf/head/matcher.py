"""Mask2Former's bipartite matching of queries and target masks, waiting for the device only once per step."""

from __future__ import annotations

import torch
from scipy.optimize import linear_sum_assignment
from torch.nn import functional as F
from transformers.models.mask2former.modeling_mask2former import Mask2FormerHungarianMatcher


class ReinMatcher(Mask2FormerHungarianMatcher):
    """Finds the stock matcher's assignment; a subclass because the stock one waits for the device once per decoder
    output and image, and copies the points for every query."""

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
            outputs: mask logits (B, m, h, w) and class logits (B, m, K + 1) of each decoder output.
            mask_labels: for each image the binary masks of its classes, (classes, H, W).
            class_labels: for each image the class of each of these masks, (classes,).
            points: for each decoder output and image the points (1, P, 2) where masks are compared, x and y from 0 to
                1.

        Returns:
            For each image of the first decoder output, then for each of the second, and so on: the indices of the
            matched queries, ascending, and the indices of their masks.
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
        """Costs (m, classes) of all pairs of a query and a mask of one image."""
        masks, classes = at_least_float32(masks), at_least_float32(classes)
        x, y = sample_points(masks, points), sample_points(mask_labels.to(masks), points)
        # binary cross-entropy as softplus(x) - x y: one matrix product, where the stock code has two
        cross_entropy = (F.softplus(x).sum(dim=1, keepdim=True) - x @ y.T) / self.num_points
        x = x.sigmoid()
        dice = 1 - (2 * (x @ y.T) + 1) / (x.sum(dim=1, keepdim=True) + y.sum(dim=1) + 1)
        probability = classes.softmax(dim=-1)[:, class_labels]
        cost = self.cost_mask * cross_entropy + self.cost_dice * dice - self.cost_class * probability
        # a diverged query is matched last; scipy refuses costs that are infinite or NaN
        largest = torch.finfo(cost.dtype).max
        return cost.nan_to_num(nan=largest, posinf=largest, neginf=largest)


def at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in float32, or unchanged if its dtype is wider."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def sample_points(maps: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """Bilinear samples (n, P) of maps (n, h, w) at points (n, P, 2), or at (1, P, 2) for all maps. Points are x and y:
    (0, 0) is the upper left corner of a map's first pixel, (1, 1) the lower right corner of its last one."""
    grid = (2 * points - 1)[:, None].expand(len(maps), -1, -1, -1)
    return F.grid_sample(maps[:, None], grid, align_corners=False)[:, 0, 0]
