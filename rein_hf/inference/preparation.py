"""What is computed of weights alone: once, and not for every image."""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedModel

from ..backbone import cast_frozen_weights, use_inference_blocks
from ..tuner import fix_weights


def prepare_for_inference(model: nn.Module, dtype: torch.dtype | None = None) -> nn.Module:
    """Makes a model predict faster, in place. Predictions stay the same: on a CPU bit for bit, on a GPU up to the
    order in which norms are added up.

    - What Rein computes of its weights alone, factors and object queries, is computed once for each adapter.
    - With a `dtype`, weights that autocast of this type would cast for every image are cast once, and the float32
      weights are gone; features that it would cast for several layers are cast once for all of them. Backbone and head
      compute under autocast of this type from then on.
    - On a GPU what a block of DINOv2 or DINOv3 adds to its residual stream is scaled, added, normalised and cast in
      one operation, where Triton is installed. The head's layers do that at every inference.

    The model can no longer be trained, and with a `dtype` no longer be saved. Adapters can still be loaded and
    switched. If weights are written into in another way, prepare the model anew.

    Args:
        model: a segmenter, with or without adapter.
        dtype (`torch.dtype`, *optional*): `torch.bfloat16` or `torch.float16`.

    Returns:
        The same model, in eval mode and without gradients.

    Raises:
        ValueError: `dtype` is another type, or the model was prepared in another one.

    Example:

    ```py
    model = prepare_for_inference(rein_hf.from_pretrained(adapter), torch.bfloat16).cuda()
    with torch.autocast("cuda", torch.bfloat16):
        labels = [rein_hf.segment(model, processor, photo) for photo in photos]
    ```
    """
    fix_weights(model.eval().requires_grad_(False))
    cast = [] if dtype is None else cast_frozen_weights(model, dtype)
    use_inference_blocks(model)
    for module in model.modules():
        if isinstance(module, PreTrainedModel) and cast:
            module.save_pretrained = refuse_to_save
    return model


def refuse_to_save(*args, **kwargs) -> None:
    """In the place of `save_pretrained` of a model whose weights were cast.

    Raises:
        ValueError: always.
    """
    raise ValueError(
        "This model's weights were cast to half precision (by prepare_for_inference with a type): they would be saved "
        "rounded. Save a model that was loaded anew."
    )
