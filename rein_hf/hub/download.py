"""An adapter downloaded from the Hub: all of it of one commit, and its weights as the Hub announced them."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

from huggingface_hub import snapshot_download
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from transformers.utils import CONFIG_NAME as MODEL_CONFIG_NAME
from transformers.utils import cached_file
from transformers.utils.hub import extract_commit_hash

from ..files import check_no_pointer
from .errors import say_no_such_folder


BACKBONE_FOLDER = "backbone"  # beside an adapter's files: the backbone that it was saved with


def download_adapter(pretrained: str | os.PathLike, revision: str | None = None, **hub) -> Path | None:
    """The local folder of an adapter, downloaded if need be: `adapter_config.json` and `adapter_model.safetensors`.

    Args:
        pretrained: local folder or Hub id.
        revision (`str`, *optional*): branch, tag or commit.
        hub: `token`, `cache_dir`, `local_files_only`, `subfolder`.

    Returns:
        The folder; `None` if there is no `adapter_config.json`.

    Raises:
        OSError: nothing can be found there; the weights are missing.
        ValueError: the downloaded weights are not those that the Hub announced; the weights are a pointer of git-lfs.
    """
    config = _cached_file(pretrained, CONFIG_NAME, revision, **hub)
    if config is None:
        return None
    # the weights of the same commit, even if somebody uploads in between
    commit = extract_commit_hash(config, None) or revision
    weights = _cached_file(pretrained, SAFETENSORS_WEIGHTS_NAME, commit, **hub)
    if weights is None:
        raise OSError(f"{pretrained} has an {CONFIG_NAME} but no {SAFETENSORS_WEIGHTS_NAME}; an adapter is both.")
    check_no_pointer(Path(weights))
    _verify_sha256(Path(weights), pretrained)
    return Path(config).parent


def find_backbone(pretrained: str | os.PathLike, folder: Path, **hub) -> Path | None:
    """The local folder of the backbone that was saved with an adapter, downloaded if need be.

    Args:
        pretrained: local folder or Hub id of the adapter.
        folder: from [`download_adapter`].
        hub: `token`, `cache_dir`, `local_files_only`.

    Returns:
        The folder; `None` if the adapter was saved without backbone.
    """
    if not Path(pretrained).is_dir():
        commit = extract_commit_hash(str(folder / CONFIG_NAME), None)
        name, quietly = f"{BACKBONE_FOLDER}/{MODEL_CONFIG_NAME}", {"_raise_exceptions_for_connection_errors": False}
        if _cached_file(pretrained, name, commit, **quietly, **hub):
            # as a folder: of a repository with an adapter, transformers would load the backbone that the adapter names
            patterns = [f"{BACKBONE_FOLDER}/*.json", f"{BACKBONE_FOLDER}/*.safetensors"]
            snapshot_download(str(pretrained), revision=commit, allow_patterns=patterns, **hub)
    local = folder / BACKBONE_FOLDER
    return local if (local / MODEL_CONFIG_NAME).is_file() else None


def _cached_file(pretrained: str | os.PathLike, name: str, revision: str | None, **hub) -> str | None:
    with say_no_such_folder(pretrained):
        return cached_file(pretrained, name, revision=revision, _raise_exceptions_for_missing_entries=False, **hub)


def _verify_sha256(weights: Path, pretrained: str | os.PathLike) -> None:
    """Compares the weights with their checksum. huggingface_hub checks only the size of what it downloads; but
    `weights` is a link to a file in its cache whose name is the SHA-256 that the Hub announced. A file in a plain
    folder is no such link, and is not checked."""
    announced = Path(os.readlink(weights)).name if weights.is_symlink() else ""
    if not re.fullmatch("[0-9a-f]{64}", announced):
        return
    found = hashlib.sha256(weights.read_bytes()).hexdigest()
    if found != announced:
        raise ValueError(
            f"{pretrained}: {weights.name} has SHA-256 {found}, but the Hub announced {announced}: it was damaged on "
            f"the way or on the disk. Download it again: hf download {pretrained} --force-download"
        )
