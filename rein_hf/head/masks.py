"""Masks of Mask2Former's queries at less cost: mask embeddings, attention masks and mask logits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers.models.mask2former.modeling_mask2former import Mask2FormerMaskPredictor

from ..backbone.transforms import is_transformed
from .cast_weights import NO_CASTS, CastWeights


class MaskPredictor(Mask2FormerMaskPredictor):
    """The decoder's mask predictor; a subclass because the decoder needs attention masks but not the full masks."""

    def forward(
        self,
        outputs: torch.Tensor,
        pixel_embeddings: torch.Tensor | list[torch.Tensor],
        attention_mask_target_size: tuple[int, int] | None = None,
        casts: CastWeights = NO_CASTS,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """
        Args:
            outputs (`(m, B, q)`): normalised decoder output.
            pixel_embeddings: a list of one, (B, c, h, w) in the size of the attention mask; not read if there is to be
                none. A single tensor means that the stock decoder calls: then the stock forward runs.
            attention_mask_target_size (*optional*): height and width of the attention mask, if there is to be one.
            casts: of this module.

        Returns:
            Mask embeddings (B, m, c) and the attention mask (B, 1, m, height * width): what is added to the products
            of queries and keys, minus infinity at pixels that a query must not attend to. A query that would attend to
            nothing attends to everything.
        """
        if not isinstance(pixel_embeddings, list):
            return super().forward(outputs, pixel_embeddings, attention_mask_target_size)
        embeddings = outputs.transpose(0, 1)
        for block in self.mask_embedder.layers:
            linear, activation = block.layers
            embeddings = activation(casts.linear(linear, embeddings))
        if attention_mask_target_size is None:
            return embeddings, None
        with torch.no_grad():
            (pixels,) = pixel_embeddings
            # not `< 0`: for a logit just below zero the sigmoid rounds to exactly 0.5
            masked = (embeddings @ pixels.flatten(2)).sigmoid() < 0.5
            # true where a query attends: where it is not masked, and everywhere if all is masked
            attends = masked == masked.all(dim=-1, keepdim=True)
            return embeddings, attends.log().unsqueeze(1)  # 0 or minus infinity


def mask_logits(embeddings: Sequence[torch.Tensor], pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Mask logits (B, m, H, W) of every decoder output: the products of its mask embeddings (B, m, c) and the pixel
    embeddings (B, c, H, W)."""
    if (
        pixels.device.type == "cpu"
        and torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and not is_transformed(pixels, *embeddings)
    ):
        return _MaskProducts.apply(pixels, *embeddings)
    numbers = [one.shape[1] for one in embeddings]
    return torch.einsum("bmc,bchw->bmhw", torch.cat(embeddings, dim=1), pixels).split(numbers, dim=1)


class _MaskProducts(torch.autograd.Function):
    """The products of [`mask_logits`] with a cheaper backward pass. The loss only uses matched masks, about a tenth of
    all. The gradients of the others are zero, and the backward pass leaves them out of its products. It leaves none
    out when it is itself differentiated: the derivative of a gradient that is zero need not be zero."""

    @staticmethod
    def forward(ctx, pixels: torch.Tensor, *embeddings: torch.Tensor) -> tuple[torch.Tensor, ...]:
        ctx.save_for_backward(pixels, *embeddings)
        ctx.set_materialize_grads(False)
        flat = pixels.flatten(2).contiguous()  # otherwise every bfloat16 product copies it
        return tuple((one @ flat).unflatten(2, pixels.shape[2:]) for one in embeddings)

    @staticmethod
    def backward(ctx, *grads: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
        pixels, *embeddings = ctx.saved_tensors
        used = [(one, grad) for one, grad in zip(embeddings, grads, strict=True) if grad is not None]
        if not used:
            return (None,) * (1 + len(embeddings))
        if torch.is_grad_enabled():  # this backward pass is to be differentiated
            products = [(one.transpose(1, 2) @ grad.flatten(2)).view_as(pixels) for one, grad in used]
            flat = pixels.flatten(2).transpose(1, 2)
            return sum(products), *(None if grad is None else grad.flatten(2) @ flat for grad in grads)
        grad_pixels, grad_used = torch.empty_like(pixels), [torch.zeros_like(one) for one, _ in used]
        for image in range(len(pixels)):
            grad_masks = [grad[image].flatten(1) for _, grad in used]
            matched = [torch.linalg.vector_norm(rows, torch.inf, dim=1).nonzero()[:, 0] for rows in grad_masks]
            rows = torch.cat([rows[queries] for rows, queries in zip(grad_masks, matched, strict=True)])
            weights = torch.cat([one[image, queries] for (one, _), queries in zip(used, matched, strict=True)])
            torch.mm(weights.T, rows, out=grad_pixels[image].view(len(weights.T), -1))
            products = (rows @ pixels[image].flatten(1).T).split([len(queries) for queries in matched])
            for grad_embeddings, queries, product in zip(grad_used, matched, products, strict=True):
                grad_embeddings[image, queries] = product
        remaining = iter(grad_used)
        return grad_pixels, *(None if grad is None else next(remaining) for grad in grads)
