"""The facts of a checkpoint that its card states and no file of the adapter holds: a YAML file of `hub_cards/`."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

from huggingface_hub.utils import validate_repo_id

from ..files import read_yaml


@dataclass
class Facts:
    """What a card says and no file of the adapter holds. `license` and `license_name` are metadata of the Hub."""

    title: str
    summary: str
    recipe: str
    backbone: dict[str, str]  # id on the Hub, license; where there is no id yet, its name
    license: str
    license_note: str
    training_data: list[dict[str, str]]  # name, description, license, and perhaps url
    limits: list[str]
    domains: dict[str, dict[str, str]]  # by evaluate.py's name: name, description, and perhaps split, url, hub_id
    license_name: str | None = None


def read_facts(path: Path) -> Facts:
    """A facts file.

    Raises:
        ValueError: a fact is missing, unknown or empty.
    """
    values = read_yaml(path)
    known = {field.name for field in fields(Facts)}
    missing = known - {"license_name"} - values.keys()
    if missing or values.keys() - known:
        raise ValueError(f"{path}: missing {sorted(missing)}, unknown {sorted(values.keys() - known)}.")
    facts = Facts(**values)
    needed = [("backbone", facts.backbone, ("id", "license"))]
    needed += [("training_data", data, ("name", "description", "license")) for data in facts.training_data]
    needed += [(f"domains.{name}", domain, ("name", "description")) for name, domain in facts.domains.items()]
    for name, found, keys in needed:
        if lacking := [key for key in keys if not found.get(key)]:
            raise ValueError(f"{path}: {name} has no {', '.join(lacking)}; found {found}.")
    if empty := [name for name in sorted(known - {"license_name", "domains"}) if not getattr(facts, name)]:
        raise ValueError(f"{path}: {', '.join(empty)} is empty; write it into the file.")
    validate_repo_id(facts.backbone["id"])
    return facts
