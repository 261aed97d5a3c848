"""The dictionaries in a recipe, one for each tuning and `head`: which keys they may have, what becomes of them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypedDict, get_type_hints

from huggingface_hub.dataclasses import validate_typed_dict
from huggingface_hub.errors import StrictDataclassError
from peft import LoraConfig, PeftConfig

from ..adaptformer import AdaptFormerConfig
from ..files import suggestion
from ..head import head_of
from ..soma import SomaConfig
from ..soma.config import FREE as SOMA_FREE
from ..tuner import ReinConfig
from ..vpt import VPTConfig


# The paper's LoRA, 0.79M parameters in a DINOv2-L: the queries and values of every attention, and its keys too where
# a checkpoint has the three in one matrix.
LORA = {"r": 8, "lora_alpha": 8, "target_modules": r".*\.vit\..*\.(query|value|q_proj|v_proj|qkv)"}

_RECORDED = "it is recorded when the adapter is made"
_LIBRARY = "the library sets it"

# Fields of the configurations that a recipe cannot set, and why.
REFUSED_IN_ADAPTER = {
    **dict.fromkeys(("peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"), _RECORDED),
    "task_type": _LIBRARY,
    "inference_mode": "it would freeze the adapter",
}
REFUSED_IN_REIN = {**dict.fromkeys(("hidden_size", "num_hidden_layers", "base_config"), _RECORDED)}
REFUSED_IN_SOMA = {
    "lora_alpha": "it is r, since the scaling of SoMA is 1",
    **dict.fromkeys(
        (field.name for field in dataclasses.fields(LoraConfig) if field.name not in SOMA_FREE),
        "SoMA starts from the weights alone",
    ),
    "init_lora_weights": "SoMA starts from the smallest singular components",
    **REFUSED_IN_ADAPTER,
}
# Where a recipe has what [`rein_hf.head.heads.Head.refused`] of a head's configuration says.
REASONS_IN_RECIPES = {
    "backbone_config": "use backbone, patch_size and out_indices of the recipe",
    **dict.fromkeys(("id2label", "label2id", "num_labels"), "the sources name the classes"),
    "num_queries": "use num_queries of the recipe, which Rein's tokens follow",
}


def tuning_config(tuning: str, num_queries: int, arguments: dict[str, Any] | None = None) -> PeftConfig | None:
    """The configuration of a recipe's adapter: the paper's, with what the recipe changes in it.

    Args:
        tuning (`str`): one of `recipe.TUNINGS`; some have no adapter.
        num_queries (`int`): object queries of the head, and Rein's tokens unless `arguments` have `num_tokens`.
        arguments (`dict`, *optional*): those of [`ReinConfig`], of peft's `LoraConfig`, of [`AdaptFormerConfig`],
            [`VPTConfig`] or [`SomaConfig`] that the recipe gives.
    """
    given = arguments or {}
    if tuning == "rein":
        return ReinConfig(**{"num_tokens": num_queries, **given})
    if tuning == "adaptformer":
        return AdaptFormerConfig(**given)
    if tuning == "vpt":
        return VPTConfig(**given)
    if tuning == "soma":
        return SomaConfig(**given)
    return LoraConfig(**{**LORA, **given}) if tuning == "lora" else None


def check_sections(values: dict[str, Any]) -> None:
    """Refuses what the dictionaries of the tunings and `head` cannot hold, also where the recipe's tuning does not
    use them, and mends their numbers as [`mend_numbers`] does.

    Args:
        values: a recipe's keys and values, complete.

    Raises:
        ValueError: names the key, the reason, and a key that may have been meant.
    """
    head_type = (values["head"] or {}).get("model_type", "mask2former")
    kind = head_of(head_type, "head.model_type")
    refused = {key: REASONS_IN_RECIPES.get(key, reason) for key, reason in kind.refused.items()}
    _check_keys("head", values["head"], {**kind.keys, "model_type": str}, refused)
    head = {key: value for key, value in (values["head"] or {}).items() if key != "model_type"}
    with _named_in_errors("head"):
        kind.config(**{**kind.arguments, **head})

    num_queries, configs = values["num_queries"], {}
    for section, config, refused in (
        ("rein", ReinConfig, {**REFUSED_IN_ADAPTER, **REFUSED_IN_REIN}),
        ("lora", LoraConfig, REFUSED_IN_ADAPTER),
        ("adaptformer", AdaptFormerConfig, {**REFUSED_IN_ADAPTER, **REFUSED_IN_REIN}),
        ("vpt", VPTConfig, {**REFUSED_IN_ADAPTER, **REFUSED_IN_REIN}),
        ("soma", SomaConfig, REFUSED_IN_SOMA),
    ):
        given, kinds = values[section] or {}, get_type_hints(config)
        _check_keys(section, given, kinds, refused)
        with _named_in_errors(section):
            validate_typed_dict(TypedDict(section, kinds, total=False), given)
            configs[section] = tuning_config(section, num_queries, given)
    if configs["lora"].r < 1:  # which peft finds only when it is applied
        raise ValueError(f"lora.r is {configs['lora'].r}; expected a rank of at least 1.")
    if values["tuning"] == "rein":
        _check_rein(values["rein"] or {}, configs["rein"], num_queries, head_type)


def _check_rein(given: dict[str, Any], config: ReinConfig, num_queries: int, head_type: str) -> None:
    """Refuses keys of `rein` that do not fit each other, or the head."""
    if config.zero_init and "init_scale" in given:
        raise ValueError("rein.init_scale has no effect with rein.zero_init true, which leaves out the scale.")
    has_queries = head_of(head_type).classifies_masks
    if not has_queries and given.get("link_queries"):
        raise ValueError(f"rein.link_queries is true, but a head of {head_type} has no object queries to link.")
    if has_queries and config.link_queries and config.num_tokens != num_queries:
        raise ValueError(
            f"rein.num_tokens is {config.num_tokens}, but the model has {num_queries} object queries, which the "
            "tokens become. Set num_queries alone, or rein.link_queries false."
        )


def mend_numbers(values: dict[str, Any], kinds: Mapping[str, Any], prefix: str = "") -> None:
    """Makes numbers of what YAML reads otherwise than meant where a float is expected: 1e-4 as text, 1 as an int.
    Numbers that are not finite are refused; `prefix` comes before their keys in the message."""
    for key, value in values.items():
        kind = str(kinds[key])
        if "float" in kind and ("str" not in kind and isinstance(value, str) or type(value) is int):
            value = values[key] = float(value)
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{prefix}{key} is {value}; expected a finite number.")


def _check_keys(section: str, values: dict | None, kinds: Mapping[str, Any], refused: Mapping[str, str]) -> None:
    known = kinds.keys() - refused.keys()
    for key in values or {}:
        if key in refused:
            raise ValueError(f"{section}.{key} cannot be set in a recipe: {refused[key]}.")
        if key not in known:
            raise ValueError(f"unknown key {f'{section}.{key}'!r}{suggestion(key, known, f'{section}.')}")
    if values:
        mend_numbers(values, kinds, f"{section}.")


@contextmanager
def _named_in_errors(section: str) -> Iterator[None]:
    """Makes whatever a section's values raise a ValueError that names the section."""
    try:
        yield
    except (TypeError, ValueError, StrictDataclassError) as error:
        raise ValueError(f"{section}: {error}") from error
