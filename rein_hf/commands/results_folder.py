"""The folder that the results of `rein-hf predict` and `rein-hf submit` go to: whether they can, and what is there."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from ..evaluation import is_comment_of_maps
from ..inference.photos import printable
from ..inference.video import comment_of_video, is_video
from ..views import comment_of


def check_folders(folders: set[Path]) -> None:
    """Refuses, before anything is loaded, folders that cannot be made or written to."""
    for folder in sorted(folders):
        there = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
        what = "is not a folder" if not there.is_dir() else "cannot be written to"
        if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
            name = printable(folder)
            raise ValueError(f"--output_dir: results would go to {name}, but {printable(there)} {what}; give another.")


def check_results(files: Iterable[Path], verb: str) -> None:
    """Refuses, before anything is loaded, to replace what no earlier run has written: photos or labels of the user's
    own may have the names of results."""
    if others := [file for file in files if file.exists() and not is_comment_of_maps(comment_of_result(file))]:
        more = f", nor {'is' if len(others) == 2 else 'are'} {len(others) - 1} more" if len(others) > 1 else ""
        raise ValueError(
            f"{printable(others[0])} is there and is not a result of rein-hf {verb}{more}; give another --output_dir."
        )


def comment_of_result(file: Path) -> str | None:
    """What a picture or a video says of where it comes from; `None` if nothing."""
    return comment_of_video(file) if is_video(file) else comment_of(file)
