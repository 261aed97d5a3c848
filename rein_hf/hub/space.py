"""The Space of an adapter: the page of `rein-hf demo`, rendered from the facts of its model card."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.utils import validate_repo_id
from jinja2 import Environment, StrictUndefined

from ..files import read_text
from .card import Facts
from .description import Description


# The version that the page was tested with; the Space runs on it.
GRADIO = "6.31.0"
FILES = ("README.md", "app.py", "requirements.txt")
EXAMPLES = "examples"


def render_space(
    templates: Path, repo: str, facts: Facts, about: Description, version: str, examples: Mapping[str, bytes]
) -> dict[str, bytes]:
    """The files of a Space that shows one adapter.

    Args:
        templates: folder of README.md, app.py and requirements.txt, in Jinja.
        repo (`str`): the adapter's Hub id.
        facts: from [`read_facts`].
        about: from [`describe`].
        version (`str`): of rein-hf, which the Space installs.
        examples: photos (JPEG) that the page offers, by the names of their files without suffix.

    Returns:
        Content by path.

    Raises:
        ValueError: an example's name would not do as one of a file.
    """
    validate_repo_id(repo)
    metadata: dict[str, Any] = {
        "title": facts.title[:60],  # the Hub shows no more
        "sdk": "gradio",
        "sdk_version": GRADIO,
        "app_file": "app.py",
        "license": facts.license,
        "models": [repo, facts.backbone["id"]],
        "tags": ["semantic-segmentation", "rein-hf", about.method.lower()],
    }
    values = {
        "metadata": yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True).strip(),
        "repo": repo,
        "title": facts.title,
        "summary": facts.summary,
        "method": about.method,
        "limits": facts.limits,
        "license_note": facts.license_note,
        "version": version,
        "gradio": GRADIO,
    }
    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True)
    files = {name: environment.from_string(read_text(templates / name)).render(values).encode() for name in FILES}
    for name, content in examples.items():
        if not name or name.startswith(".") or "/" in name or "\\" in name:
            raise ValueError(f"{name!r} is the name of an example photo; expected one of a file, without folders.")
        files[f"{EXAMPLES}/{name}.jpg"] = content
    return files


def push_space(api: HfApi, space: str, files: Mapping[str, bytes], title: str, private: bool = False) -> str:
    """Uploads the files of a Space, which is made if it is not there; returns the commit's address."""
    api.create_repo(space, repo_type="space", space_sdk="gradio", private=private or None, exist_ok=True)
    operations = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=body) for name, body in files.items()]
    commit = api.create_commit(space, operations, commit_message=f"The page of {title}", repo_type="space")
    return commit.commit_url
