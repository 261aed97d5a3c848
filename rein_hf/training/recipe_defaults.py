"""What a recipe does that says nothing of it: the paper's values, when it is evaluated, to whom it reports."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from transformers.integrations import is_tensorboard_available


# A run is evaluated so many times, but not more often than this number of steps.
EVALUATIONS, LEAST_STEPS = 10, 200
# Images of each domain, evenly spread, at such an evaluation.
EVAL_LIMIT = 50
# `metric_for_best_model`: the mIoU of the domain that is a split of the source, where there is one.
VALIDATION = "validation"


def evaluation_defaults(given: Mapping[str, Any], max_steps: Any) -> dict[str, Any]:
    """How a recipe is evaluated while it trains if it names domains and does not say how: ten times and at the end, on
    some images of each domain. A recipe that loads its best checkpoint saves as often.

    Args:
        given: the recipe's values, of its file and the command line.
        max_steps: length of the run.

    Returns:
        Values of the keys that `given` leaves out.
    """
    if not given.get("evaluate") or "eval_strategy" in given:
        return {}
    steps = max(math.ceil(max_steps / EVALUATIONS), LEAST_STEPS) if isinstance(max_steps, int) else LEAST_STEPS
    values = {"eval_strategy": "steps", "eval_steps": steps, "eval_limit": EVAL_LIMIT}
    if given.get("load_best_model_at_end"):
        values["save_steps"] = given.get("eval_steps", steps)
    return {key: value for key, value in values.items() if key not in given}


def report_default() -> str:
    """The tracker of a recipe that names none: tensorboard if it is installed."""
    return "tensorboard" if is_tensorboard_available() else "none"


# The paper's recipe, and what transformers' Trainer needs to leave segmentation batches alone.
DEFAULTS = {
    "max_steps": 40_000,
    "learning_rate": 1e-4,
    "weight_decay": 0.05,
    "lr_scheduler_type": "polynomial",
    "lr_scheduler_kwargs": {"power": 0.9, "lr_end": 0.0},
    "max_grad_norm": 0.0,
    "train_sampling_strategy": "sequential",  # TrainingSamples is in random order already
    "remove_unused_columns": False,
    "logging_steps": 50,
    "save_total_limit": 2,
    "metric_for_best_model": VALIDATION,
    "logging_nan_inf_filter": False,  # it would hide such a loss from the log, and waits for the device at every step
    "report_to": report_default(),
    "hub_strategy": "end",  # the others push checkpoints, with pickled arguments
}

# Rein in a run of hundreds of steps, measured in recipes/assessments/README.md. As in the paper it needs thousands:
# its scale of 1e-3 grows slowly, and queries that are made from tokens begin nearly equal.
SHORT_RUN = {"rein": {"zero_init": True, "link_queries": False}, "adapter_lr_factor": 0.2}


def short_run_defaults(values: Mapping[str, Any]) -> dict[str, Any]:
    """What `short_run` of a recipe says where the recipe itself does not: Rein begins as the frozen backbone, the head
    has queries of its own, and the learning rate of Rein is a fifth of the head's."""
    if not values["short_run"] or values["tuning"] != "rein":
        return {}
    factor = values["adapter_lr_factor"]
    return {
        "rein": {**SHORT_RUN["rein"], **(values["rein"] or {})},
        "adapter_lr_factor": SHORT_RUN["adapter_lr_factor"] if factor is None else factor,
    }
