"""Which keys a recipe may have: a decision about every field of transformers' `TrainingArguments`.

Each field (of transformers 5.23) is in exactly one of `USABLE`, `REFUSED` and `COMPUTED`; a test compares the three
with transformers' own list. `NEEDS` names the keys that have an effect only together with another.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch

from ..images import default_workers


# Fields that do what transformers documents.
USABLE = frozenset(
    """
    output_dir per_device_train_batch_size max_steps seed full_determinism use_cpu
    learning_rate lr_scheduler_type lr_scheduler_kwargs warmup_steps weight_decay adam_beta1 adam_beta2 adam_epsilon
    max_grad_norm
    bf16 fp16 tf32 activation_checkpointing activation_checkpointing_kwargs gradient_checkpointing
    gradient_checkpointing_kwargs torch_compile torch_compile_backend torch_compile_mode torch_empty_cache_steps
    logging_strategy logging_steps logging_first_step log_on_each_node log_level log_level_replica disable_tqdm
    report_to run_name project trackio_space_id trackio_bucket_id trackio_static_space_id skip_memory_metrics
    eval_strategy eval_steps eval_delay eval_on_start metric_for_best_model load_best_model_at_end
    save_strategy save_steps save_total_limit save_on_each_node
    push_to_hub hub_private_repo hub_model_id hub_revision
    accelerator_config dataloader_num_workers dataloader_pin_memory dataloader_prefetch_factor
    dataloader_multiprocessing_context
    ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph ddp_backend ddp_timeout
    """.split()
)

_EVALUATION = "evaluation segments whole images one by one, in windows, and sums confusion matrices"
_SAMPLES = "samples come in an order of their own, drawn by `seed`, so that a run can continue at the same sample"
_TOKENS = "it is for language models"
_LAUNCHER = (
    "say it to the launcher: accelerate launch --config_file {}.yaml -m rein_hf.commands.train RECIPE "
    "(rein-hf train --list says where the file lies)"
)
_UNREAD = "neither transformers nor this library reads it"

# Fields that a recipe may repeat with the value that holds anyway, but not change: they would have no effect, or
# another one than they promise.
REFUSED: dict[str, str] = {
    "optim": "the optimizer is AdamW with the paper's parameter groups",
    "optim_args": "AdamW has learning_rate, weight_decay, adam_beta1, adam_beta2 and adam_epsilon",
    "optim_target_modules": "AdamW trains all trainable parameters",
    "label_smoothing_factor": "the losses are the head's own and know no smoothing",
    "average_tokens_across_devices": "losses are always divided by what is in the whole step, over all processes",
    "auto_find_batch_size": "it would change the batch of the recipe; use per_device_train_batch_size",
    "bf16_full_eval": "evaluation uses the precision of training",
    "fp16_full_eval": "evaluation uses the precision of training",
    "use_liger_kernel": _TOKENS,
    "liger_kernel_config": _TOKENS,
    "use_cache": _TOKENS,
    "neftune_noise_alpha": _TOKENS,
    "include_num_input_tokens_seen": _TOKENS,
    "length_column_name": _TOKENS,
    "debug": "its hooks cannot follow the head; a loss that is not finite stops the run and saves its batch",
    "logging_nan_inf_filter": "a loss that is not finite stops the run before it is logged",
    "per_device_eval_batch_size": _EVALUATION,
    "prediction_loss_only": _EVALUATION,
    "eval_do_concat_batches": _EVALUATION,
    "eval_use_gather_object": _EVALUATION,
    "eval_accumulation_steps": _EVALUATION,
    "include_for_metrics": _EVALUATION,
    "batch_eval_metrics": _EVALUATION,
    "greater_is_better": "the best checkpoint is that of the greatest mIoU",
    "save_only_model": "a run continues from its checkpoints, which need the optimizer and the random states",
    "enable_jit_checkpoint": "a run that it ends would be taken for finished; no signal harms the checkpoints, which "
    "are written every save_steps",
    "ignore_data_skip": "an interrupted run continues at the same sample",
    "restore_callback_states_from_checkpoint": "no callback of a run has a state",
    "hub_strategy": "only the final model is pushed; transformers pickles its arguments beside a pushed checkpoint",
    "hub_always_push": "only the final model is pushed",
    "hub_token": "a token does not belong in a recipe or on a command line; log in with `hf auth login`",
    "data_seed": "`seed` draws the samples as well",
    "dataloader_drop_last": "a run has exactly max_steps times total_batch_size samples",
    "dataloader_persistent_workers": "a run reads its samples in a single pass, in which workers persist anyway",
    "dataloader_in_order": _SAMPLES,
    "train_sampling_strategy": _SAMPLES,
    "remove_unused_columns": "the collator makes the batches, and needs all columns",
    "label_names": "the collator makes the batches, whose labels have fixed names",
    "parallelism_config": _LAUNCHER.format("fsdp2"),
    "fsdp": _LAUNCHER.format("fsdp2"),
    "fsdp_config": _LAUNCHER.format("fsdp2"),
    "deepspeed": _LAUNCHER.format("deepspeed_zero2"),
    "do_train": _UNREAD,
    "do_eval": "use eval_strategy, or evaluate afterwards with rein-hf evaluate",
    "do_predict": "use rein-hf predict",
    "resume_from_checkpoint": "the same command continues the run in output_dir by itself",
    "local_rank": "the launcher numbers the processes",
}

# Fields whose values follow from others, whatever a recipe says.
COMPUTED: dict[str, str] = {
    "gradient_accumulation_steps": "it follows from total_batch_size, per_device_train_batch_size and the number of "
    "processes; give one of the first two",
    "num_train_epochs": "max_steps is the length of a run",
}

# What `accelerator_config`, a dictionary, may hold. The rest of accelerate's would change the batch or the samples.
ACCELERATOR_CONFIG = frozenset({"non_blocking"})

# Keys that have an effect only with certain values of another key: that key, these values, and a test of all values.
_ADAPTS = ("tuning", "a method with an adapter", lambda values: values["tuning"] not in ("frozen", "full"))
_EVALUATES = ("eval_strategy", "steps or epoch", lambda values: values["eval_strategy"] != "no")
_SAVES = ("save_strategy", "steps, epoch or best", lambda values: values["save_strategy"] != "no")
_REPORTS = ("report_to", "a tracker", lambda values: values["report_to"] not in (None, "none", [], ["none"]))
_TRACKIO = (
    "report_to",
    "trackio",
    lambda values: any(name in (values["report_to"] or []) for name in ("trackio", "all")),
)
_PUSHES = ("push_to_hub", "true", lambda values: values["push_to_hub"])
_WORKERS = ("dataloader_num_workers", "1 or more", lambda values: values["dataloader_num_workers"] > 0)
_CHECKPOINTING = (
    "activation_checkpointing",
    "true",
    lambda values: values["activation_checkpointing"] or values["gradient_checkpointing"],
)
NEEDS: dict[str, tuple[str, str, Callable[[Mapping[str, Any]], Any]]] = {
    "rein": ("tuning", "rein", lambda values: values["tuning"] == "rein"),
    "short_run": ("tuning", "rein", lambda values: values["tuning"] == "rein"),
    "lora": ("tuning", "lora", lambda values: values["tuning"] == "lora"),
    "adaptformer": ("tuning", "adaptformer", lambda values: values["tuning"] == "adaptformer"),
    "vpt": ("tuning", "vpt", lambda values: values["tuning"] == "vpt"),
    "soma": ("tuning", "soma", lambda values: values["tuning"] == "soma"),
    "num_queries": (
        "head.model_type",
        "mask2former, or tuning rein",
        lambda values: (values["head"] or {}).get("model_type") != "upernet" or values["tuning"] == "rein",
    ),
    "backbone_lr_factor": ("tuning", "full", lambda values: values["tuning"] == "full"),
    **dict.fromkeys(("adapter_lr_factor", "adapter_weight_decay_factor"), _ADAPTS),
    "ema_start": ("ema_decay", "a number", lambda values: values["ema_decay"] is not None),
    "eval_steps": ("eval_strategy", "steps", lambda values: values["eval_strategy"] == "steps"),
    "eval_delay": _EVALUATES,
    "eval_limit": (
        "eval_strategy",
        "steps or epoch",
        lambda values: values["eval_strategy"] != "no" or values["eval_on_start"],
    ),
    "eval_pictures": _EVALUATES,
    "metric_for_best_model": _EVALUATES,
    "load_best_model_at_end": _EVALUATES,
    "save_steps": ("save_strategy", "steps", lambda values: values["save_strategy"] == "steps"),
    "save_total_limit": _SAVES,
    "save_on_each_node": _SAVES,
    "logging_steps": ("logging_strategy", "steps", lambda values: values["logging_strategy"] == "steps"),
    "run_name": _REPORTS,
    **dict.fromkeys(("project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"), _TRACKIO),
    **dict.fromkeys(("hub_private_repo", "hub_model_id", "hub_revision"), _PUSHES),
    **dict.fromkeys(("dataloader_prefetch_factor", "dataloader_multiprocessing_context"), _WORKERS),
    **dict.fromkeys(("activation_checkpointing_kwargs", "gradient_checkpointing_kwargs"), _CHECKPOINTING),
    "warmup_steps": (
        "lr_scheduler_type",
        "another than constant (constant_with_warmup has one)",
        lambda values: values["lr_scheduler_type"] not in ("constant", "reduce_lr_on_plateau", "greedy"),
    ),
}


def check_trainer_keys(given: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Refuses fields of `TrainingArguments` that would have no effect in a recipe, or change its batch.

    Args:
        given: the values of the recipe's file and of the command line.
        defaults: for every key the value that holds where none is given.

    Raises:
        ValueError: names the key, its value, the reason, and what to use instead.
    """
    for key, value in given.items():
        if key in COMPUTED or key in REFUSED and value != defaults[key]:
            shown = "given" if key == "hub_token" else repr(value)
            raise ValueError(f"{key} is {shown}, but cannot be set in a recipe: {(COMPUTED | REFUSED)[key]}.")
    config = given.get("accelerator_config")
    if config is not None and not (isinstance(config, Mapping) and config.keys() <= ACCELERATOR_CONFIG):
        raise ValueError(
            f"accelerator_config is {config!r}; expected a dictionary with the keys {sorted(ACCELERATOR_CONFIG)}: "
            "others would change the batch or its samples."
        )


def check_needs(
    file: Mapping[str, Any], given: Mapping[str, Any], overridden: Collection[str], defaults: Mapping[str, Any]
) -> None:
    """Refuses keys that have no effect because of another key's value. A key of the recipe's file may lose its effect
    by the command line: `--tuning lora` leaves a recipe's `rein` alone.

    Args:
        file: the values of the recipe's file.
        given: those values with the command line's in their place.
        overridden: the keys that the command line gives.
        defaults: for every key the value that holds where none is given.

    Raises:
        ValueError: names the key, the other key, its value, and the values that it would need.
    """
    for key, (other, expected, has_effect) in NEEDS.items():
        value = given.get(key)
        is_said = value not in (None, False) or value == 0 and defaults[key] != 0 and value is not False
        if not is_said or has_effect({**defaults, **given}):
            continue
        if key in overridden or not has_effect({**defaults, **file}):
            found = f" is {given.get(other, defaults[other])!r}" if other in defaults else ""
            raise ValueError(f"{key} has no effect: {other}{found}; it needs {expected}.")


def check_evaluation(values: Mapping[str, Any]) -> None:
    """Refuses an evaluation of nothing, or at no step.

    Args:
        values: a recipe's keys and values, complete.

    Raises:
        ValueError: names the key, its value, and what it would need.
    """
    evaluates = [key for key in ("eval_strategy", "eval_on_start") if values.get(key, "no") not in ("no", False)]
    if evaluates and not values["evaluate"]:
        raise ValueError(f"{evaluates[0]} is {values[evaluates[0]]!r}, but evaluate names no domain to evaluate on.")
    if values.get("save_strategy") == "best" and "eval_strategy" not in evaluates:
        raise ValueError("save_strategy is 'best', but eval_strategy is 'no': no checkpoint would be the best.")
    # a run is one epoch, in which the Trainer counts where it evaluates at the end of epochs
    last, unit = (values["max_steps"], "step(s)") if values.get("eval_strategy") == "steps" else (1, "epoch")
    if "eval_strategy" in evaluates and (values.get("eval_delay") or 0) > last:
        raise ValueError(
            f"eval_delay is {values['eval_delay']:g}, but the run has {last} {unit}: nothing would be evaluated. "
            f"Expected {last} at most, or eval_strategy 'no'."
        )


def data_workers(values: Mapping[str, Any]) -> dict[str, int]:
    """How many processes read samples, for a recipe that does not say it; nothing for one that does."""
    if "dataloader_num_workers" in values:
        return {}
    on_cpu = values.get("use_cpu", not torch.accelerator.is_available())
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("WORLD_SIZE", 1)))
    return {"dataloader_num_workers": default_workers("cpu" if on_cpu else "cuda", processes)}
