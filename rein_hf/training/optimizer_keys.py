"""Keys of a recipe that say how weights are trained: learning rates by part, weight decay, the moving average."""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass(kw_only=True)
class OptimizerArguments:
    """What a recipe may say of its optimizer beside transformers' arguments. `None` is the paper's: a tenth of the
    learning rate for a backbone that trains in full, the whole rate for all else, constant weight decay, no average.

    The parts of a model: the backbone's own weights; the adapter, which is all that a method trains in a backbone that
    is frozen otherwise (a LoRA's biases, too), and Rein's query content; the head, everything else.
    """

    backbone_lr_factor: float | None = None
    adapter_lr_factor: float | None = None
    head_lr_factor: float | None = None
    adapter_weight_decay_factor: float | None = None
    weight_decay_end: float | None = dataclasses.field(
        default=None, metadata={"help": "The weight decay goes to it over the run, along a cosine."}
    )
    ema_decay: float | None = dataclasses.field(
        default=None,
        metadata={"help": "Of a moving average of the trained weights, which is what is evaluated and saved: 0.9998."},
    )
    ema_start: float | None = None

    def factors(self) -> dict[str, float]:
        """Arguments of [`param_groups`]: the factors that are given."""
        names = (field.name for field in dataclasses.fields(OptimizerArguments) if field.name.endswith("_factor"))
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


def ema_start_step(ema_start: float | None, max_steps: int) -> int:
    """The number of steps after which the moving average starts as a copy of the weights."""
    if ema_start is None:
        return 0
    return round(ema_start * max_steps) if ema_start < 1 else int(ema_start)


def check_optimizer_keys(values: dict[str, Any]) -> None:
    """Refuses values of [`OptimizerArguments`] that make no sense, or would have no effect.

    Args:
        values: a recipe's keys and values, complete.

    Raises:
        ValueError: names the key, its value, and what is expected.
    """
    for part in ("backbone", "adapter", "head"):
        factor = values[f"{part}_lr_factor"]
        if factor is not None and factor <= 0:
            raise ValueError(f"{part}_lr_factor is {factor}; expected a number above 0.")
    for key in ("adapter_weight_decay_factor", "weight_decay_end"):
        if values[key] is not None and values[key] < 0:
            raise ValueError(f"{key} is {values[key]}; expected 0 at least.")
    decay, end = values["weight_decay"], values["weight_decay_end"]
    if end is not None and end == decay:
        raise ValueError(f"weight_decay_end has no effect: weight_decay is {decay} already.")
    if values["adapter_weight_decay_factor"] is not None and not decay and not end:
        raise ValueError("adapter_weight_decay_factor has no effect: weight_decay is 0.")
    decay, start, steps = values["ema_decay"], values["ema_start"], values["max_steps"]
    if decay is not None and not 0 < decay < 1:
        raise ValueError(f"ema_decay is {decay}; expected a number between 0 and 1, such as 0.9998.")
    if start is not None and (start < 0 or start > 1 and start != int(start)):
        raise ValueError(f"ema_start is {start}; expected a number of steps, or a share of max_steps below 1.")
    if decay is not None and ema_start_step(start, steps) >= steps:
        raise ValueError(
            f"ema_start is {start:g}, but the run ends after max_steps {steps}: there would be nothing to average. "
            "Expected a step before its end, or a share of max_steps below 1."
        )
