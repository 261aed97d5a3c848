"""Numbers of a run in a JSON file that is whole after every entry, so that an interrupted run can go on."""

from __future__ import annotations

import json
import math
from pathlib import Path

from ..files import atomic_write


class Results:
    """
    Nested dictionaries in a file.

    Args:
        path (`Path`): the file; it is written beside and renamed.
        resume (`bool`): begin with what it holds.
        writes (`bool`): whether this process is the one that writes.

    Raises:
        ValueError: the file to resume from is no JSON object.

    Example:

    ```py
    >>> import tempfile
    >>> from pathlib import Path
    >>> from rein_hf.evaluation import Results
    >>> path = Path(tempfile.mkdtemp()) / "results.json"
    >>> Results(path).put({"camvid": 0.5}, "rein")
    >>> Results(path, resume=True).has("rein", "camvid")
    True

    ```
    """

    def __init__(self, path: Path, resume: bool = False, writes: bool = True):
        self.path, self.writes = path, writes
        self.values: dict = {}
        if resume and path.is_file():
            try:
                self.values = _with_nan(json.loads(path.read_text()))
            except ValueError as error:
                raise ValueError(f"{path} is no JSON: {error}.") from error
            if not isinstance(self.values, dict):
                raise ValueError(f"{path} holds a {type(self.values).__name__}; expected the results of a run.")

    def has(self, *keys: str) -> bool:
        place = self.values
        for key in keys:
            if key not in place:
                return False
            place = place[key]
        return True

    def put(self, values: dict, *keys: str) -> None:
        """Merge `values` into the dictionary at `keys`, and write the file."""
        place = self.values
        for key in keys:
            place = place.setdefault(key, {})
        place.update(values)
        if self.writes:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(self.path) as partial:
                partial.write_text(json.dumps(_without_nan(self.values), indent=1, allow_nan=False))


def _without_nan(value):
    """None for every nan: JSON has no number for what was not counted."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value


def _with_nan(value):
    if isinstance(value, dict):
        return {key: _with_nan(item) for key, item in value.items()}
    return math.nan if value is None else value
