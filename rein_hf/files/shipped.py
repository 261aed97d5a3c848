"""The folders of files that come with the package: recipes, assessments, launchers, the template of cards.

In an installed package they lie beside the rooms; in a clone they are `recipes/*` and `hub_cards`
(`[tool.setuptools.package-dir]` of `pyproject.toml` says which is which).
"""

from __future__ import annotations

from pathlib import Path


PACKAGE = Path(__file__).parents[1]

# The folders, from the root of a clone.
FOLDERS = {
    "configs": "recipes/configs",
    "assessments": "recipes/assessments",
    "accelerate": "recipes/accelerate",
    "hub_cards": "hub_cards",
}


def shipped_folder(kind: str) -> Path:
    """The folder of one kind of files, a key of `FOLDERS`."""
    installed = PACKAGE / kind
    return installed if installed.is_dir() else PACKAGE.parent / FOLDERS[kind]
