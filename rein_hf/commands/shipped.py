"""Recipes, assessments and launchers that come with the package, by name; see [`rein_hf.files.shipped`]."""

from __future__ import annotations

import difflib
from pathlib import Path

from ..files.shipped import shipped_folder


def shipped_files(kind: str) -> dict[str, Path]:
    """The YAML files of one kind, by name without ending."""
    return {path.stem: path for path in sorted(shipped_folder(kind).glob("*.yaml"))}


def find_shipped(kind: str, name: str) -> Path:
    """The file that is meant by a path or, if there is none, by the name of one that comes with the package.

    Raises:
        FileNotFoundError: there is neither.
    """
    if Path(name).is_file():
        return Path(name)
    files = shipped_files(kind)
    if name in files:
        return files[name]
    stem = Path(name).name.removesuffix(".yaml")
    close = [stem] if stem in files else difflib.get_close_matches(stem, files, 1)
    hint = f"Did you mean the shipped {close[0]}?" if close else f"Shipped are {', '.join(files)}."
    raise FileNotFoundError(f"{name} is no file, and does not come with the package. {hint}")
