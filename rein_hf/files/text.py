"""Text files, in UTF-8 on every system, and what an unknown key in them may have meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path


def read_text(path: str | Path) -> str:
    """The text of a file in UTF-8, with or without the byte order mark that some editors and spreadsheets put first.

    Raises:
        OSError: it cannot be read.
        ValueError: its bytes are no UTF-8.

    Example:

    ```py
    >>> import tempfile
    >>> from pathlib import Path
    >>> from rein_hf.files import read_text
    >>> path = Path(tempfile.mkdtemp()) / "street.txt"
    >>> _ = path.write_bytes("Straße".encode("utf-8-sig"))
    >>> read_text(path)
    'Straße'

    ```
    """
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8: {error}. Save it in that encoding.") from error


def suggestion(key: str, known: Iterable[str], prefix: str = "") -> str:
    """The end of a sentence about an unknown key: the known key that is nearest, if one is near."""
    close = difflib.get_close_matches(str(key), sorted(known), n=1)
    return f", did you mean {prefix + close[0]!r}?" if close else "."
