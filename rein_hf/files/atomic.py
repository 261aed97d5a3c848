"""Files that are whole or not there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """The name to write a file under, beside its own. It gets its own at the end of the block, in the place of what
    has it already; after an error nothing is left of it, and what was there stays.

    Example:

    ```py
    >>> import tempfile
    >>> from pathlib import Path
    >>> from rein_hf.files import atomic_write
    >>> path = Path(tempfile.mkdtemp()) / "numbers.txt"
    >>> with atomic_write(path) as partial:
    ...     _ = partial.write_text("1 2 3")
    >>> path.read_text()
    '1 2 3'

    ```
    """
    partial = path.with_name(f".partial-{path.name}")  # with its ending, which libraries of pictures go by
    try:
        yield partial
        with open(partial, "rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Names are on the disk when the folder is. Windows has no such thing, and no need of it."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
