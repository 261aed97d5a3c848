"""The `Accelerator` of an evaluation, also in a process that has trained or evaluated in another precision before."""

from __future__ import annotations

from accelerate import Accelerator
from accelerate.state import AcceleratorState


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
