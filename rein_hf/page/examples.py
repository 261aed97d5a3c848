"""Photos that a page offers to those who have none at hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..images import IMAGE_SUFFIXES, is_hidden, open_image
from .bounds import encode_picture


MAX_EXAMPLES = 12
THUMBNAIL = 160


@dataclass(frozen=True)
class Example:
    """A photo on the server.

    Args:
        name (`str`): its file's name without suffix, which the page shows.
        path: of the file; no visitor sees it.
        thumbnail (`str`): a data URI.
    """

    name: str
    path: Path
    thumbnail: str


def find_examples(sources: Sequence[str | Path]) -> tuple[Example, ...]:
    """The example photos in files and folders, folders without their subfolders, in the order of their names.

    Args:
        sources: of files and folders.

    Raises:
        FileNotFoundError: one is not there.
        ValueError: a folder holds no photo; a file is none; there are more than 12.
    """
    files: list[Path] = []
    for source in map(Path, sources):
        if source.is_dir():
            found = sorted(path for path in source.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
            found = [path for path in found if path.is_file() and not is_hidden(path)]
            if not found:
                raise ValueError(f"{source} holds no photo; expected files that end in {', '.join(IMAGE_SUFFIXES)}.")
            files += found
        elif source.is_file():
            files.append(source)
        else:
            raise FileNotFoundError(f"{source} is not there; expected a photo, or a folder of photos, as an example.")
    if len(files) > MAX_EXAMPLES:
        raise ValueError(f"{len(files)} example photos are given; expected {MAX_EXAMPLES} at most.")
    return tuple(Example(path.stem, path, _thumbnail(path)) for path in files)


def _thumbnail(path: Path) -> str:
    picture = open_image(path)
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    return encode_picture(picture, "JPEG", quality=80)
