"""The precision of an evaluation, also in a process that has trained or evaluated in another one before."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn

from ..inference import compile_segmenter, prepare_for_inference
from ..inference.compiled import GRAPH_ONLY


AUTOCAST_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def accelerator_for(mixed_precision: str) -> Accelerator:
    """An `Accelerator` of a precision.

    accelerate keeps one precision per process and refuses another one. A process that trains and then evaluates, or
    evaluates twice, may need both; transformers' `TrainingArguments` make accelerate forget it in the same way.
    Accelerators made before share the new precision and should not be used any more.

    Args:
        mixed_precision (`str`): "no", "bf16" or "fp16".
    """
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != mixed_precision:
        AcceleratorState._reset_state()  # the processes stay connected: they are in PartialState
    return Accelerator(mixed_precision=mixed_precision)


def move_to(
    accelerator: Accelerator, model: nn.Module, compiled: bool = False, cuda_graphs: bool = False
) -> nn.Module:
    """A segmenter on the device of an accelerator, prepared for inference in the accelerator's mixed precision; see
    [`rein_hf.inference.prepare_for_inference`].

    Args:
        accelerator: from [`accelerator_for`].
        model: from [`rein_hf.from_pretrained`]; it is changed in place.
        compiled (`bool`): compile it too, see [`rein_hf.inference.compile_segmenter`].
        cuda_graphs (`bool`): or record CUDA graphs of it, see there.

    Raises:
        ValueError: both are asked for; or graphs, and the accelerator has no GPU.
    """
    if compiled and cuda_graphs:
        raise ValueError("--compile and --cuda_graphs are both true; what is compiled has CUDA graphs. Leave one out.")
    model = prepare_for_inference(model, AUTOCAST_TYPES.get(accelerator.mixed_precision)).to(accelerator.device)
    if cuda_graphs:
        return compile_segmenter(model, backend=GRAPH_ONLY)
    return compile_segmenter(model) if compiled else model
