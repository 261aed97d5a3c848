"""Where an adapter's backbone is: a Hub id, or a folder that is found from the adapter's own folder.

A file of an adapter names a backbone on the disk by a path that begins with `./` or `../` and counts from the
adapter's folder. So it tells nobody how the disk is laid out above both of them, both can be moved together, and it is
never taken for a Hub id. Adapters saved by earlier versions name a path that counts from the working directory, or an
absolute one; they are found as before.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from peft.utils import CONFIG_NAME

from ..files import atomic_write


FROM_THE_ADAPTER = ("./", "../")
NAME_OF_BACKBONE = "base_model_name_or_path"


def relative_backbone(named: str | os.PathLike, folder: str | os.PathLike) -> str:
    """How an adapter in `folder` names its backbone.

    Args:
        named: Hub id, or folder of the backbone.
        folder: of the adapter; it need not be there yet.

    Returns:
        A Hub id as it is; the path of a folder, from the adapter's, with slashes on every system. On Windows a folder
        on another drive stays absolute, since no relative path leads there.

    Example:

    ```py
    >>> from rein_hf.hub.backbone_path import relative_backbone
    >>> relative_backbone("recipes/demo/vit", "outputs/adapter"), relative_backbone("user/vit", "outputs/adapter")
    ('../../recipes/demo/vit', 'user/vit')

    ```
    """
    if not os.path.isdir(named) and not os.path.isabs(named):
        return str(named)
    path = path_from(folder, named)
    if path is None:
        return str(named)
    return path if path.startswith("../") or path == ".." else f"./{path}"


def path_from(folder: str | os.PathLike, path: str | os.PathLike) -> str | None:
    """A path as it counts from a folder, with slashes; `None` if it is on another drive."""
    try:
        return Path(os.path.relpath(os.path.realpath(path), os.path.realpath(folder))).as_posix()
    except ValueError:
        return None


def resolve_backbone(named: str | None, folder: str | os.PathLike) -> str | None:
    """The backbone that the adapter in `folder` names, as it can be loaded from any working directory: a Hub id as it
    is, a folder by its absolute path. A path that leads nowhere is returned as it is."""
    if not isinstance(named, str) or not named.startswith(FROM_THE_ADAPTER):
        return named
    found = os.path.join(os.path.realpath(folder), named)
    return os.path.realpath(found) if os.path.isdir(found) else named


def is_lost_path(named: str | os.PathLike) -> bool:
    """Whether a backbone's name, from [`resolve_backbone`], is a path from an adapter's folder that leads nowhere."""
    return isinstance(named, str) and named.startswith(FROM_THE_ADAPTER) and not os.path.isdir(named)


def is_hub_id(named: str | None) -> bool:
    """Whether a backbone's name is an id on the Hub, and no folder here."""
    if not named or os.path.isdir(named) or named.startswith((".", "~")):
        return False
    try:
        validate_repo_id(named)
    except HFValidationError:
        return False
    return True


def write_relative_backbone(folder: Path, final: Path | None = None) -> None:
    """Makes the adapter in a folder name its backbone from there or, if the folder will be renamed, from `final`."""
    path = folder / CONFIG_NAME
    content = path.read_text(encoding="utf-8")
    values = json.loads(content)
    named = values.get(NAME_OF_BACKBONE)
    if not named:
        return
    values[NAME_OF_BACKBONE] = relative_backbone(resolve_backbone(named, folder), final or folder)
    if values[NAME_OF_BACKBONE] != named:
        with atomic_write(path) as partial:
            partial.write_text(json.dumps(values, indent=2, sort_keys=True), encoding="utf-8")
