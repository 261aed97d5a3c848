"""YAML files as plain values: numbers, texts, lists and dictionaries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from .text import read_text


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The keys and values of a YAML file; an empty file has none.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no UTF-8, no YAML, or no dictionary, or a tag in it (`!!python/...`) asks for an object.
    """
    values = parse_yaml(read_text(path), path)
    if not isinstance(values, dict | None):
        raise ValueError(f"{path} holds {type(values).__name__} {str(values)[:40]!r}; expected lines of KEY: VALUE.")
    return values or {}


def parse_yaml(text: str | bytes, source: str | Path) -> Any:
    """The value of a YAML text. `source` is what messages call it.

    Raises:
        ValueError: as [`read_yaml`].
    """
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a date of month 13 is a ValueError
        raise ValueError(f"{source} is no plain YAML: {error}") from error
