"""Mask2Former's loss as the authors' configuration trains with it.

What differs from transformers' `Mask2FormerLoss`:
- decoder outputs are supervised in the decoder's order, the initial one first, so that the random points drawn from a
  seed are the reference's;
- the number of masks is averaged over the processes; transformers divides that average by the number of processes
  again, which makes mask and dice losses grow with it;
- images without any valid pixel give a mask and dice loss of zero instead of an error, and count as one mask in the
  normalisation, as in the reference;
- matching and losses are computed in float32 at least, whatever autocast does around them.
"""

from __future__ import annotations

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from transformers.models.mask2former.modeling_mask2former import Mask2FormerLoss


class ReinCriterion(Mask2FormerLoss):
    """The paper's loss; a subclass of the stock criterion for the reasons at the top of this file.

    Args:
        config (`Mask2FormerConfig`): weights and numbers of points.
        weight_dict (`dict[str, float]`): weight of each loss, `model.weight_dict`.
    """

    def forward(
        self,
        masks_queries_logits: torch.Tensor,
        class_queries_logits: torch.Tensor,
        mask_labels: list[torch.Tensor],
        class_labels: list[torch.Tensor],
        auxiliary_predictions: list[dict[str, torch.Tensor]] | None = None,
    ) -> dict[str, torch.Tensor]:
        """
        Args:
            masks_queries_logits (`(B, m, h, w)`), class_queries_logits (`(B, m, K + 1)`): the last decoder output.
            mask_labels: per image the binary masks of its classes, (classes, H, W).
            class_labels: per image the class of each mask, (classes,).
            auxiliary_predictions: the outputs before the last one, the initial one first; same two keys.

        Returns:
            Unweighted losses by transformers' names: `loss_cross_entropy`, `loss_mask`, `loss_dice`, and the same with
            `_0`, `_1`, ... for the outputs before the last one.
        """
        last = {"masks_queries_logits": masks_queries_logits, "class_queries_logits": class_queries_logits}
        outputs = {f"_{index}": output for index, output in enumerate(auxiliary_predictions or [])} | {"": last}
        num_masks = self.get_num_masks(class_labels, device=masks_queries_logits.device)
        losses = {}
        with torch.autocast(masks_queries_logits.device.type, enabled=False):
            for suffix, output in outputs.items():
                masks, classes = (_at_least_float32(output[key]) for key in last)
                indices = self.matcher(masks, classes, mask_labels, class_labels)
                found = self.loss_masks(masks, mask_labels, indices, num_masks)
                found |= self.loss_labels(classes, class_labels, indices)
                losses |= {name + suffix: loss for name, loss in found.items()}
        return losses

    def loss_masks(self, masks_queries_logits, mask_labels, indices, num_masks) -> dict[str, torch.Tensor]:
        if not any(len(queries) for queries, _ in indices):
            zero = masks_queries_logits.sum() * 0  # keeps the graph: every rank of a parallel run goes backward
            return {"loss_mask": zero, "loss_dice": zero.clone()}
        return super().loss_masks(masks_queries_logits, mask_labels, indices, num_masks)

    def get_num_masks(self, class_labels: list[torch.Tensor], device: torch.device) -> torch.Tensor:
        """Masks per process, at least one: a 0-dim tensor. An image without any counts as one, as in the reference."""
        num_masks = torch.tensor(float(sum(max(len(classes), 1) for classes in class_labels)), device=device)
        if PartialState._shared_state:
            num_masks = reduce(num_masks, reduction="mean")
        return num_masks.clamp(min=1)


def _at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()
