"""Checkpoints that are either complete or absent, whatever kills the run that writes or deletes them.

A checkpoint is written into a hidden folder (`.partial`). When all of its files are there, a manifest with their sizes
and checksums is added, and the folder is renamed to `checkpoint-STEP`. Before a checkpoint is deleted, it is renamed
back into the hidden folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError

from ..data.spec import parse_spec
from ..files import atomic_write, sync_folder
from ..hub.backbone_path import path_from
from .lost_connection import is_lost_connection


MANIFEST = "manifest.json"
PARTIAL = ".partial"


def resume_point(output_dir: Path, recipe: dict, final: tuple[str, ...]) -> tuple[bool, Path | None]:
    """
    Prepares the folder of a run for its start or its continuation, and says from where it continues. Files that an
    interrupted run has left half written are removed.

    Args:
        output_dir: folder of the run.
        recipe (`dict`): values that shape the weights, as JSON represents them; they are kept as `recipe.json`,
            absolute paths among them as paths from this folder.
        final: names of weight files; a finished run leaves one of them.

    Returns:
        Whether the run has finished, and if not, the checkpoint to continue from, or None to start.

    Raises:
        ValueError: the folder holds a run of another recipe, or of an unknown one; all of its checkpoints are damaged.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    recipe = relative_paths(recipe, output_dir)
    discard_partial(output_dir)
    finished = any((output_dir / name).exists() for name in final)
    path = output_dir / "recipe.json"
    if not finished and not list_checkpoints(output_dir):
        write_json(path, recipe)
        return False, None
    if not path.exists():
        raise ValueError(f"{output_dir} holds a run, but no {path.name} to compare this one with.")
    if changed := diff_config(relative_paths(read_json(path), output_dir), recipe):
        raise ValueError(
            f"{output_dir} holds a run of another recipe: {changed}. Take another --output_dir, or remove this one; "
            f"if only a folder has moved, say so in {path}."
        )
    return finished, None if finished else latest_valid(output_dir)


def relative_paths(recipe: dict, folder: Path) -> dict:
    """A recipe whose backbone and data are named by paths from `folder` where they were absolute, so that the file
    tells nobody how a disk is laid out, and a run can be moved together with its data.

    Example:

    ```py
    >>> from pathlib import Path
    >>> from rein_hf.training.checkpoints import relative_paths
    >>> relative_paths({"backbone": "user/vit", "train": ["day=gta5:/data/GTA5#every=2"]}, Path("/data/runs/rein"))
    {'backbone': 'user/vit', 'train': ['day=gta5:../../GTA5#every=2']}

    ```
    """
    found = dict(recipe)
    if recipe.get("backbone"):
        found["backbone"] = _from_folder(recipe["backbone"], recipe["backbone"], folder)
    for key in ("train", "evaluate"):
        if recipe.get(key):
            found[key] = [_from_folder(spec, parse_spec(spec).path, folder) for spec in recipe[key]]
    return found


def _from_folder(text: str, path: str, folder: Path) -> str:
    """A text with a path in it, from `folder` if it is absolute and on the same drive."""
    if not os.path.isabs(path):
        return text
    relative = path_from(folder, path)
    return text if relative is None else text.replace(path, relative, 1)


def diff_config(before: dict, now: dict) -> str:
    """The differences between two dictionaries as a text for people; empty if they are equal."""
    keys = [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]
    return "; ".join(f"{key} was {before.get(key)!r}, is {now.get(key)!r}" for key in keys)


@contextmanager
def explain_disk_errors(output_dir: Path, name: str) -> Iterator[None]:
    """Turns an error while `name` is written into one that says what to do, and removes what was written of it.

    Raises:
        OSError: names `name`, the folder, the reason, the free space, and the checkpoints that are left.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        # on a full disk torch raises a RuntimeError, as it does when it is out of memory or has lost a process
        if isinstance(error, torch.OutOfMemoryError) or is_lost_connection(error):
            raise
        discard_partial(output_dir)
        free = shutil.disk_usage(output_dir).free / 1e9
        kept = ", ".join(path.name for path in list_checkpoints(output_dir)) or "none"
        raise OSError(
            f"{name} could not be written in {output_dir} ({type(error).__name__}: {error}); {free:.2f} GB are free "
            f"there. Nothing of it is left; checkpoints before it: {kept}. Make room, and run the same command again."
        ) from error


def write_manifest(folder: Path) -> None:
    """Writes `manifest.json`, the list of the files in a folder, and flushes all of them to the disk."""
    files = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        files[path.relative_to(folder).as_posix()] = {"size": path.stat().st_size, "sha256": _sha256(path, sync=True)}
    write_json(folder / MANIFEST, {"files": files})


def verify(folder: Path) -> str | None:
    """What is wrong with a folder that has a manifest, as a text that names the file; None if all files are intact."""
    path = folder / MANIFEST
    try:
        files = {name: (entry["size"], entry["sha256"]) for name, entry in read_json(path)["files"].items()}
    except FileNotFoundError:
        return f"{path} is missing"
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        return f"{path} is no list of files ({type(error).__name__}: {error})"
    for name, (size, sha256) in files.items():
        path = folder / name
        if not path.is_file():
            return f"{path} is missing"
        if path.stat().st_size != size:
            return f"{path} has {path.stat().st_size} bytes; expected {size}"
        if _sha256(path) != sha256:
            return f"{path} is not as it was written (its checksum differs)"
    return None


def list_checkpoints(output_dir: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    found = [path for path in Path(output_dir).glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted(found, key=_step)


def latest_valid(output_dir: Path) -> Path | None:
    """
    The newest undamaged checkpoint, or None if there is no checkpoint at all. Damaged newer ones are renamed to
    `damaged-checkpoint-STEP`, with a warning.

    Raises:
        ValueError: all checkpoints are damaged. A start from nothing would look like a continuation.
    """
    damages = {}
    for folder in reversed(list_checkpoints(output_dir)):
        damage = verify(folder)
        if damage is None:
            for damaged, why in damages.items():
                warnings.warn(f"{damaged.name} is damaged: {why}. Going on from {folder.name}.", stacklevel=2)
                aside = damaged.with_name(f"damaged-{damaged.name}")
                shutil.rmtree(aside, ignore_errors=True)
                damaged.rename(aside)
            return folder
        damages[folder] = damage
    if damages:
        raise ValueError(
            f"All checkpoints in {output_dir} are damaged: {'; '.join(damages.values())}. Put back the files, or "
            "remove these folders to start from the beginning."
        )
    return None


def publish(partial: Path, folder: Path) -> None:
    """Gives a completely written folder its final name; a folder of that name is replaced."""
    write_manifest(partial)
    if folder.exists():
        folder.rename(partial.with_name(f"replaced-{folder.name}"))
    partial.rename(folder)
    discard_partial(folder.parent)
    sync_folder(folder.parent)


def publish_files(partial: Path, folder: Path, last: tuple[str, ...]) -> None:
    """Moves the files of a partial folder into a folder that may hold others. The files named `last` are moved after
    all others, so their presence proves that all have arrived."""
    for path in sorted(partial.iterdir(), key=lambda path: path.name in last):
        _sha256(path, sync=True)
        os.replace(path, folder / path.name)
    discard_partial(folder)
    sync_folder(folder)


def delete_old(output_dir: Path, number: int | None, best: Path | None) -> None:
    """Deletes all checkpoints except the `number` newest ones and the best one. All are kept if `number` is None."""
    for folder in list_checkpoints(output_dir)[:-number] if number else []:
        if folder != best:
            delete_checkpoint(folder)


def delete_checkpoint(folder: Path) -> None:
    """Deletes a checkpoint so that a half-deleted one is never taken for a complete one."""
    renamed = partial_folder(folder)
    renamed.parent.mkdir(exist_ok=True)
    folder.rename(renamed)
    shutil.rmtree(renamed.parent)


def partial_folder(folder: Path) -> Path:
    """Where a folder is written before it gets its final name."""
    return folder.parent / PARTIAL / folder.name


def discard_partial(output_dir: Path) -> None:
    """Removes folders that an interrupted run has left without their final name."""
    shutil.rmtree(Path(output_dir) / PARTIAL, ignore_errors=True)


def read_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def write_json(path: Path, values: dict) -> None:
    with atomic_write(path) as partial:
        partial.write_text(json.dumps(values, indent=1, sort_keys=True), encoding="utf-8")


def _step(folder: Path) -> int:
    return int(folder.name.rpartition("-")[2])


def _sha256(path: Path, sync: bool = False) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
        if sync:
            os.fsync(file.fileno())
    return digest.hexdigest()
