"""Which files of some folders are photos to segment, and where their results go; results themselves are no photos.

A video is one that is named; those in folders are passed over.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from ..images import IMAGE_SUFFIXES, is_hidden
from .video import is_video


# What the names of results end in, those of a photo and that of a video.
ENDINGS = ("label.png", "color.png", "overlay.jpg", "confidence.png", "explain.jpg")
VIDEO_ENDING = "overlay.mp4"


class Photo(NamedTuple):
    """A file, and where its results go: `target` with an underscore and one of `ENDINGS` after it.
    Or a video, whose result ends in `VIDEO_ENDING`."""

    file: Path
    target: Path

    def result(self, ending: str) -> Path:
        return self.target.with_name(f"{self.target.name}_{ending}")

    def results(self, endings: Sequence[str]) -> list[Path]:
        """The files that are written for a photo, of these endings, or for a video."""
        return [self.result(ending) for ending in ([VIDEO_ENDING] if is_video(self.file) else endings)]


def find_photos(inputs: list[str], output_dir: Path) -> tuple[list[Photo], list[Path]]:
    """The files named, and those in the folders named and their subfolders that end like images.

    What a run into `output_dir` writes is not taken for a photo.

    Returns:
        The photos, and the files in the folders that are none.

    Raises:
        FileNotFoundError: an input is not there, or there is no photo at all.
        ValueError: two photos, or two videos, have the same stem, so that one's results would replace the other's.
    """
    candidates: dict[Path, Photo] = {}  # by absolute path: a file that is named twice is one photo
    skipped = []
    for path in map(Path, inputs):
        if not path.exists():
            raise FileNotFoundError(f"--input {printable(path)} does not exist.")
        for file in files_below(path, output_dir) if path.is_dir() else [path]:
            if path.is_dir() and not is_photo(file):
                skipped.append(file)
            else:
                stem = (file.relative_to(path) if path.is_dir() else Path(file.name)).with_suffix("")
                candidates.setdefault(Path(os.path.abspath(file)), Photo(file, output_dir / stem))
    endings = (*ENDINGS, VIDEO_ENDING)
    results = {os.path.abspath(photo.result(ending)) for file, photo in candidates.items() for ending in endings}
    photos = [photo for file, photo in candidates.items() if str(file) not in results]
    skipped = [file for file in skipped if Path(os.path.abspath(file)) not in candidates]  # named by another input
    skipped += [photo.file for file, photo in candidates.items() if str(file) in results]
    if not photos:
        raise FileNotFoundError(
            f"--input {' '.join(map(printable, inputs))} holds no image ({', '.join(IMAGE_SUFFIXES)})"
            f"{skipped_files(skipped)}."
        )
    count = Counter(photo.results(ENDINGS)[0] for photo in photos)
    if twice := [printable(photo.file) for photo in photos if count[photo.results(ENDINGS)[0]] > 1]:
        raise ValueError(
            f"--input holds several files of the same stem: {twice[:6]}. Their results would be the same."
        )
    return photos, skipped


def is_photo(file: Path) -> bool:
    """Whether a file in a folder is taken for a photo; a link that leads nowhere is, so that it is not passed over."""
    named = not is_hidden(file) and file.suffix.lower() in IMAGE_SUFFIXES
    return named and (file.is_file() or not file.exists())  # no pipes, nor sockets


def files_below(folder: Path, output_dir: Path) -> Iterator[Path]:
    """The files of a folder and its subfolders, links to folders included, in the order of their names; but not those
    in hidden folders, nor in `output_dir` if that is one of the subfolders.

    Raises:
        OSError: a folder cannot be read.
    """

    def stop(error: OSError) -> None:
        raise error

    seen = {folder.resolve(), output_dir.resolve()}
    for root, folders, files in os.walk(folder, onerror=stop, followlinks=True):
        yield from (Path(root, name) for name in sorted(files))
        entered = []
        for name in sorted(folders):
            path = Path(root, name)
            if not is_hidden(path) and path.resolve() not in seen:  # links may lead in a circle
                seen.add(path.resolve())
                entered.append(name)
        folders[:] = entered


def skipped_files(skipped: list[Path]) -> str:
    """The files that are no photos, of each folder the first ones by name."""
    if not skipped:
        return ""
    names = ", ".join(file.name for file in skipped[:3]) + (", ..." if len(skipped) > 3 else "")
    return f"; {len(skipped)} other file{'' if len(skipped) == 1 else 's'} skipped ({names})"


def printable(text: str | Path) -> str:
    """Names of files may hold bytes that are no text."""
    return str(text).encode("utf-8", "backslashreplace").decode("utf-8")
