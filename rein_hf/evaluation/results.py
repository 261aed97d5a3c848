"""The results of a run in a JSON file that is written after every entry, so that an interrupted run can go on."""

from __future__ import annotations

import json
import math
from pathlib import Path

from ..files import atomic_write, read_text


class Results:
    """
    Nested dictionaries that are kept in a JSON file. A nan is `null` there.

    Args:
        path (`Path`): the file. It is replaced as a whole, never written in part.
        resume (`bool`): begin with the entries that the file holds.
        writes (`bool`): whether this process writes the file.

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
                self.values = _none_to_nan(json.loads(read_text(path)))
            except ValueError as error:
                raise ValueError(f"{path} is no JSON: {error}.") from error
            if not isinstance(self.values, dict):
                raise ValueError(f"{path} holds a {type(self.values).__name__}; expected the results of a run.")

    def has(self, *keys: str) -> bool:
        """Whether there is an entry at `keys`, one key for each level."""
        entry = self.values
        for key in keys:
            if key not in entry:
                return False
            entry = entry[key]
        return True

    def put(self, values: dict, *keys: str) -> None:
        """Merge `values` into the dictionary at `keys`, and write the file."""
        entry = self.values
        for key in keys:
            entry = entry.setdefault(key, {})
        entry.update(values)
        if self.writes:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(self.path) as partial:
                text = json.dumps(_nan_to_none(self.values), indent=1, allow_nan=False)
                partial.write_text(text, encoding="utf-8")

    def put_settings(self, settings: dict) -> None:
        """Write down what the results of a run depend on, as an entry "settings", without what is None or False.

        Raises:
            ValueError: the run that is resumed had other settings, so that its results are other ones.
        """
        settings = {name: value for name, value in settings.items() if value is not None and value is not False}
        kept = self.values.get("settings", settings)
        if kept != settings:
            raise ValueError(
                f"{self.path} says that the results to resume from were made with {kept}, but this run asks for "
                f"{settings}. Give the same options, or write into another folder."
            )
        self.put({"settings": settings})

    def put_origins(self, kind: str, origins: dict[str, dict]) -> None:
        """Write down what the results that are kept under names come from, as entries of `kind`.

        Args:
            kind (`str`): "models" or "domains".
            origins: by the names of some of them, as JSON, without None.

        Raises:
            ValueError: the results to resume from come from something else of this name.
        """
        for name, origin in origins.items():
            kept = self.values.get(kind, {}).get(name, origin)
            if kept != origin:
                raise ValueError(
                    f"{self.path} says that the results to resume from come from {name!r} of its {kind} as {kept}; "
                    f"now that is {origin}. Write into another folder."
                )
        self.put(origins, kind)


def _nan_to_none(value):
    """The same values with None for every nan, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _nan_to_none(item) for key, item in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value


def _none_to_nan(value):
    """The same values with nan for every None."""
    if isinstance(value, dict):
        return {key: _none_to_nan(item) for key, item in value.items()}
    return math.nan if value is None else value
