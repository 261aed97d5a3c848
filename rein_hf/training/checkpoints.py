"""Checkpoints of a run that are whole or not there, whatever kills it.

A checkpoint is written in a hidden folder beside the others, gets a list of its files with their sizes and checksums,
and takes its name last, by a rename. One that is deleted loses its name first.
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

from safetensors import SafetensorError

from ..files import atomic_write, sync_folder


MANIFEST = "manifest.json"
PARTIAL = ".partial"


def resume_point(output_dir: Path, recipe: dict, final: tuple[str, ...]) -> tuple[bool, Path | None]:
    """
    Makes the folder of a run ready to begin or to go on, without what an interrupted run has left half written.

    Args:
        output_dir: of the run.
        recipe (`dict`): what shapes its weights, as JSON has it; kept as `recipe.json`.
        final: names of files of which a finished run leaves one.

    Returns:
        Whether the run has finished, and if not the checkpoint to go on from, if there is one.

    Raises:
        ValueError: the run there is of another recipe, or of an unknown one; all of its checkpoints are damaged.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    discard_partial(output_dir)
    finished = any((output_dir / name).exists() for name in final)
    path = output_dir / "recipe.json"
    if not finished and not list_checkpoints(output_dir):
        write_json(path, recipe)
        return False, None
    if not path.exists():
        raise ValueError(f"{output_dir} holds a run, but no {path.name} to compare this one with.")
    if changed := diff_config(read_json(path), recipe):
        raise ValueError(
            f"{output_dir} holds a run of another recipe: {changed}. Take another --output_dir, or remove this one; "
            f"if only a folder has moved, say so in {path}."
        )
    return finished, None if finished else latest_valid(output_dir)


def diff_config(before: dict, now: dict) -> str:
    """What differs between two dictionaries, for people; empty if nothing does."""
    keys = [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]
    return "; ".join(f"{key} was {before.get(key)!r}, is {now.get(key)!r}" for key in keys)


@contextmanager
def explain_disk_errors(output_dir: Path, name: str) -> Iterator[None]:
    """Says what to do where `name` cannot be written in a folder; what there is of it is removed.

    Raises:
        OSError: naming both, the reason and the free space.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:  # torch raises the second on a full disk
        discard_partial(output_dir)
        free = shutil.disk_usage(output_dir).free / 1e9
        kept = ", ".join(path.name for path in list_checkpoints(output_dir)) or "none"
        raise OSError(
            f"{name} could not be written in {output_dir} ({type(error).__name__}: {error}); {free:.2f} GB are free "
            f"there. Nothing of it is left; checkpoints before it: {kept}. Make room, and run the same command again."
        ) from error


def write_manifest(folder: Path) -> None:
    """Writes the list of the files in a folder to its `manifest.json`, and all of them to the disk itself."""
    files = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        files[path.relative_to(folder).as_posix()] = {"size": path.stat().st_size, "sha256": _sha256(path, sync=True)}
    write_json(folder / MANIFEST, {"files": files})


def verify(folder: Path) -> str | None:
    """What is wrong with a sealed folder, naming the file; None if it is as it was sealed."""
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
    The newest checkpoint that is whole, or None if there is no checkpoint. Damaged newer ones are set aside as
    `damaged-checkpoint-N`, with a warning.

    Raises:
        ValueError: all are damaged. Starting again from nothing would look like going on.
    """
    found = {}
    for folder in reversed(list_checkpoints(output_dir)):
        reason = verify(folder)
        if reason is None:
            for damaged, why in found.items():
                warnings.warn(f"{damaged.name} is damaged: {why}. Going on from {folder.name}.", stacklevel=2)
                aside = damaged.with_name(f"damaged-{damaged.name}")
                shutil.rmtree(aside, ignore_errors=True)
                damaged.rename(aside)
            return folder
        found[folder] = reason
    if found:
        raise ValueError(
            f"All checkpoints in {output_dir} are damaged: {'; '.join(found.values())}. Put back the files, or remove "
            "these folders to start from the beginning."
        )
    return None


def publish(partial: Path, folder: Path) -> None:
    """Gives a whole partial folder its name, in place of what has it already."""
    write_manifest(partial)
    if folder.exists():
        folder.rename(partial.with_name(f"replaced-{folder.name}"))
    partial.rename(folder)
    discard_partial(folder.parent)
    sync_folder(folder.parent)


def publish_files(partial: Path, folder: Path, last: tuple[str, ...]) -> None:
    """Moves the files of a partial folder into one that holds others, those named `last` after all others: where
    they are, the others are."""
    for path in sorted(partial.iterdir(), key=lambda path: path.name in last):
        _sha256(path, sync=True)
        os.replace(path, folder / path.name)
    discard_partial(folder)
    sync_folder(folder)


def delete_old(output_dir: Path, number: int | None, best: Path | None) -> None:
    """Deletes all checkpoints but the newest ones and, besides, the best one. All are kept if `number` is None."""
    for folder in list_checkpoints(output_dir)[:-number] if number else []:
        if folder != best:
            delete_checkpoint(folder)


def delete_checkpoint(folder: Path) -> None:
    """Deletes a folder so that no half of it can be taken for whole."""
    doomed = partial_folder(folder)
    doomed.parent.mkdir(exist_ok=True)
    folder.rename(doomed)
    shutil.rmtree(doomed.parent)


def partial_folder(folder: Path) -> Path:
    """Where a folder is written before it has its name."""
    return folder.parent / PARTIAL / folder.name


def discard_partial(output_dir: Path) -> None:
    """Removes what an interrupted run has left of a folder that has no name yet."""
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
