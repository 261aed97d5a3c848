"""Writing a file so that it is complete or not there at all, also after a crash."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Gives a temporary path in the same folder to write to. At the end of the block that file is renamed to `path`
    and replaces what was there; after an error it is removed, and what was there stays.

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
    # of this writer alone; with the suffix, by which image libraries choose the format
    partial = path.with_name(f".partial-{secrets.token_hex(4)}-{path.name}")
    try:
        yield partial
        with open(partial, "rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Writes a folder's entries to the disk, so that new names survive a crash. Does nothing on Windows, which cannot
    open folders."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
