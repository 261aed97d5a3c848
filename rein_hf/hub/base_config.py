"""The base model's configuration, kept in the configuration of an adapter of any method of peft.

[`ReinConfig`] has a field for it. The configurations of other methods get that field here, so that
[`rein_hf.from_pretrained`] can rebuild the segmenter around a baseline (LoRA, ...) from its folder alone, too.
"""

from __future__ import annotations

import copy
import json
from dataclasses import field, fields, make_dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from peft import PeftConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils import CONFIG_NAME

from ..labels import class_names_of
from .backbone_path import resolve_backbone


BASE_CONFIG = "base_config"


def with_base_config(config: PeftConfig, base_config: dict | None) -> PeftConfig:
    """A copy of `config` that is saved with `base_config`, without the paths in it from which models were loaded."""
    config = copy.copy(config)
    if not hasattr(config, BASE_CONFIG):
        config.__class__ = _with_field(type(config))
    config.base_config = without_paths(base_config)
    return config


def without_paths(config: Any) -> Any:
    """A model's configuration, as a dictionary, without `_name_or_path`: its own and those of the models inside."""
    if not isinstance(config, dict):
        return config
    return {key: without_paths(value) for key, value in config.items() if key != "_name_or_path"}


def read_adapter_config(folder: Path) -> PeftConfig:
    """The configuration of an adapter in a folder, with the `base_config` that it was saved with, or `None` for it.
    Other keys that its method does not know come from a newer version; they are left out, with peft's warning. The
    path of a backbone that counts from the folder becomes absolute.

    Raises:
        ValueError: the file is no JSON object in UTF-8, or names no method that peft knows; the classes in it are not
            numbered from 0, each with a name of its own.
    """
    path = folder / CONFIG_NAME
    try:
        values = json.loads(path.read_text(encoding="utf-8-sig"))
        kind, base_config = PEFT_TYPE_TO_CONFIG_MAPPING[values["peft_type"]], values.get(BASE_CONFIG)
        if BASE_CONFIG not in {known.name for known in fields(kind)}:
            values.pop(BASE_CONFIG, None)
        config = kind.from_peft_type(**values)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} is no configuration of an adapter ({type(error).__name__}): {error}.") from error
    if isinstance(base_config, dict) and base_config.get("backbone_config"):
        class_names_of(base_config.get("id2label"), f"{path}: base_config.id2label")
    config.base_model_name_or_path = resolve_backbone(config.base_model_name_or_path, folder)
    return with_base_config(config, base_config)


@lru_cache
def _with_field(kind: type[PeftConfig]) -> type[PeftConfig]:
    return make_dataclass(kind.__name__, [(BASE_CONFIG, "dict | None", field(default=None))], bases=(kind,))
