"""The base model's configuration, kept in the configuration of an adapter of any method of peft.

[`ReinConfig`] has a field for it. Others get one here, so that [`rein_hf.from_pretrained`] can rebuild the segmenter
around a baseline (LoRA, ...) from its folder alone as well. peft itself leaves a field that it does not know unread,
with a warning.
"""

from __future__ import annotations

import copy
import json
import warnings
from dataclasses import field, make_dataclass
from functools import lru_cache
from pathlib import Path

from peft import PeftConfig
from peft.utils import CONFIG_NAME


def with_base_config(config: PeftConfig, base_config: dict) -> PeftConfig:
    """A copy of `config` that is saved with `base_config`."""
    config = copy.copy(config)
    if not hasattr(config, "base_config"):
        config.__class__ = _with_field(type(config))
    config.base_config = base_config
    return config


def read_adapter_config(folder: Path) -> PeftConfig:
    """The configuration of an adapter in a folder, with the `base_config` that it was saved with, or `None` for it.

    Raises:
        ValueError: the file is no JSON object, or names no method that peft knows.
    """
    path = folder / CONFIG_NAME
    try:
        values = json.loads(path.read_text())
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Unexpected keyword arguments")
            config = PeftConfig.from_pretrained(str(folder))
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} is no configuration of an adapter: {error}.") from error
    return with_base_config(config, values.get("base_config"))


@lru_cache
def _with_field(kind: type[PeftConfig]) -> type[PeftConfig]:
    return make_dataclass(kind.__name__, [("base_config", "dict | None", field(default=None))], bases=(kind,))
