"""The logits that label maps are made of, from a model that may be compiled, which is the fastest for many images."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from ..head import class_and_mask_logits, head_of
from .cuda_graphs import GraphedInference, OfOneModel


# On a GPU the compiled model is one CUDA graph, whose kernels are launched together and not one by one from Python.
MODES = {"cuda": "reduce-overhead"}
# CUDA graphs of the kernels that there are, without a compiler. The backend of torch that has this name takes weights
# for inputs and copies all of them at every call.
GRAPH_ONLY = "cudagraphs"


def predict_logits(model: nn.Module, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """What scores are computed from, by the compiled model if there is one.

    Args:
        model: a segmenter with or without adapter, in eval mode.
        pixel_values (`(B, 3, H, W)`): normalised images.

    Returns:
        `class_queries_logits` (B, m, K + 1) and `masks_queries_logits` (B, m, h, w) of the last decoder output; of a
        head that classifies pixels only its logits (B, K, h, w).
    """
    compiled = vars(model).get("compiled_logits")
    return _logits(model, pixel_values) if compiled is None else compiled(pixel_values)


def _logits(model: nn.Module, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
    if head_of(model.config.model_type).classifies_masks:
        return class_and_mask_logits(model, pixel_values)
    return (model(pixel_values=pixel_values).logits,)


def compile_segmenter(model: nn.Module, mode: str | None = None, backend: str = "inductor") -> nn.Module:
    """Compiles in place what inference computes with a model, from pixels to logits, as one graph without breaks.

    All that predicts with the model uses it from then on: [`segment`], [`slide_inference`], [`evaluate_domain`].
    Training, and `model(...)` itself, do not. Adapters can be switched; each is compiled when it is used first.

    - With torch's own backend the first image takes a minute or more. With the second size of images sizes become
      symbols, which takes as long again; each further size then takes a moment. That pays off for hundreds of images.
      A hierarchical backbone is compiled for every size anew, since torch cannot express the windows of its attention
      in symbols.
    - `backend="cudagraphs"` compiles nothing: on a GPU it records the kernels of the second image of a size, in about
      the time of three images, and launches all of them at once for later ones. Results are the same bit for bit.
      Hooks of the model's modules do not run then, and weights that are loaded or written into are seen.

    Args:
        model: from [`rein_hf.from_pretrained`], in eval mode, on its device, and prepared already if it is to be
            ([`prepare_for_inference`]).
        mode (`str`, *optional*): of `torch.compile` with its own backend. By default "reduce-overhead" on a GPU, which
            means CUDA graphs.
        backend (`str`): of `torch.compile`; or "cudagraphs", see above.

    Returns:
        The same model.

    Raises:
        ValueError: the model is in training mode; `mode` is none of torch.compile, or is given with a backend that has
            none; CUDA graphs are asked for, and the model is not on a GPU.

    Example:

    ```py
    model, processor = rein_hf.from_pretrained(adapter).cuda(), AutoImageProcessor.from_pretrained(adapter)
    compile_segmenter(model)
    with torch.autocast("cuda", torch.bfloat16):
        labels = [segment(model, processor, photo) for photo in photos]
    ```
    """
    if model.training:
        raise ValueError("The model is in training mode; expected model.eval() before it is compiled for inference.")
    check_mode(mode, backend)
    if backend == GRAPH_ONLY:
        model.compiled_logits = GraphedInference(model, partial(_logits, model))
        return model
    if backend == "inductor":
        mode = mode or MODES.get(next(model.parameters()).device.type)
    dynamic = False if model.config.backbone_config.in_stages else None
    compiled = torch.compile(_logits, fullgraph=True, dynamic=dynamic, mode=mode, backend=backend)
    model.compiled_logits = _CompiledLogits(model, compiled)
    return model


class _CompiledLogits(OfOneModel):
    def __init__(self, model: nn.Module, compiled: Callable) -> None:
        self.model, self.compiled = model, compiled

    def __call__(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        torch.compiler.cudagraph_mark_step_begin()
        # a CUDA graph writes over what it returned the last time
        return tuple(logits.clone() for logits in self.compiled(self.model, pixel_values))


def check_mode(mode: str | None, backend: str) -> None:
    """
    Raises:
        ValueError: a mode is given that torch does not know, or with a backend that has none.
    """
    if mode is not None and backend != "inductor":
        raise ValueError(
            f"mode is {mode!r} and backend {backend!r}; a mode has an effect with backend='inductor' alone."
        )
    if mode is not None and mode not in (modes := torch._inductor.list_mode_options()):
        raise ValueError(f"mode is {mode!r}; expected one of {', '.join(modes)}, the modes of torch.compile.")
