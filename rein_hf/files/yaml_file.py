"""Values written by hand in YAML: plain ones, by key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The keys and values of a YAML file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no YAML, or not keys with values, or a tag in it (`!!python/...`) asks for an object.
    """
    values = parse_yaml(Path(path).read_bytes(), path)
    if not isinstance(values, dict | None):
        raise ValueError(f"{path} holds {type(values).__name__} {str(values)[:40]!r}; expected lines of KEY: VALUE.")
    return values or {}


def parse_yaml(text: str | bytes, source: str | Path) -> Any:
    """What a YAML text says: numbers, texts, lists and dictionaries. `source` is where it is from.

    Raises:
        ValueError: as [`read_yaml`].
    """
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a date of month 13 is a ValueError
        raise ValueError(f"{source} is no plain YAML: {error}") from error
