"""Weight decay that changes over a run."""

from __future__ import annotations

import math

from transformers import TrainerCallback


def annealed_weight_decay(start: float, end: float, step: int, max_steps: int) -> float:
    """The weight decay of a step, counted from 0, on half a cosine from `start` to `end` over `max_steps` steps."""
    return end + (start - end) * (1 + math.cos(math.pi * step / max_steps)) / 2


class WeightDecayAnnealing(TrainerCallback):
    """Sets the weight decay of each step, on half a cosine from `start` at the first step to `end` after the last one.
    It depends on the number of the step alone, so that a run that continues has the same.

    Args:
        start, end (`float`): weight decay of parameter groups whose `weight_decay_factor` is 1, see [`param_groups`].
    """

    def __init__(self, start: float, end: float):
        self.start, self.end = start, end

    def on_pre_optimizer_step(self, args, state, control, optimizer=None, **kwargs) -> None:
        decay = annealed_weight_decay(self.start, self.end, state.global_step, state.max_steps)
        for group in optimizer.param_groups:
            group["weight_decay"] = decay * group["weight_decay_factor"]
