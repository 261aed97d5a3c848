"""How all verbs read a command line: transformers' `HfArgumentParser`, with short errors and a grouped `--help`.

`--key value`, `--key=value` and `--key-with-hyphens` are the same for every key. A key that is true or false may stand
alone. A list is several words.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

from transformers import HfArgumentParser


# How argparse begins to say that keys are missing.
REQUIRED = "the following arguments are required: "

# Which heading of `--help` a key stands under. It means the same in all verbs.
GROUPS = {
    "what and where": "model input domains train backbone checkpoint assessment repo facts sample output_dir",
    "windows and sizes": "crop stride size short_side limit largest image_size batch_size",
    "how it runs": "bf16 device threads workers seed resume repeats",
}


def group_of(name: str) -> str:
    """The heading that a key stands under."""
    return next((title for title, names in GROUPS.items() if name in names.split()), "more")


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Every key with its default, and without its spelling with hyphens, which is the same key."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28, width=110)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        names = [name for name in action.option_strings if "-" not in name[2:]]
        kind = {0: "", "?": " [true|false]", "+": " X ..."}.get(action.nargs, f" {_type_name(action)}")
        return ", ".join(names) + kind

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        if action.required or action.default is argparse.SUPPRESS:
            return text + " (required)" * action.required
        said = re.search(r"\bdefault:|\bby default\b", text)
        return text if action.default is None and said else f"{text} (default: {shown(action.default)})"


class CommandParser(HfArgumentParser):
    """The parser of one verb: the fields of a dataclass, each of which is a key.

    Raises:
        ValueError: in the place of argparse's exit: a key is unknown or missing, or a value is of another type.
    """

    def __init__(
        self,
        verb: str,
        kind: type | tuple[type, ...],
        description: str | None = None,
        group_of: Callable[[str], str] = group_of,
        groups: Iterable[str] = (*GROUPS, "more"),
        usage: str | None = None,
    ) -> None:
        self.group_of, self.groups = group_of, dict.fromkeys(groups)
        super().__init__(
            kind,
            prog=f"rein-hf {verb}",
            usage=usage or f"rein-hf {verb} --KEY VALUE ...",
            description=description,
            formatter_class=HelpFormatter,
            allow_abbrev=False,
        )
        self.words: list[str] = []

    def _parse_dataclass_field(self, parser: argparse.ArgumentParser, field: dataclasses.Field) -> None:
        title = self.group_of(field.name)
        if self.groups[title] is None:
            self.groups[title] = self.add_argument_group(title)
        HfArgumentParser._parse_dataclass_field(self.groups[title], field)

    def format_help(self) -> str:
        """The keys under their headings, which have a fixed order."""
        order = {id(group): place for place, group in enumerate(self.groups.values())}
        self._action_groups.sort(key=lambda group: order.get(id(group), -1))
        return super().format_help()

    def parse(self, argv: Sequence[str]) -> tuple[Any, ...]:
        """The dataclass of the words of a command line, in a tuple."""
        self.words = [spelled(word) for word in argv]
        *parsed, unknown = self.parse_args_into_dataclasses(
            self.words, return_remaining_strings=True, look_for_args_file=False
        )
        if unknown:
            key = unknown[0].partition("=")[0]
            if not key.startswith("--"):
                self.error(f"unexpected {key!r}; expected --KEY VALUE, see {self.prog} --help.")
            self.error(self._unknown(key))
        return tuple(parsed)

    def _unknown(self, key: str) -> str:
        return unknown_key(key, (name for name in self._option_string_actions if "-" not in name[2:]))

    def error(self, message: str) -> NoReturn:
        if message.startswith(REQUIRED):
            message = self._missing(message.removeprefix(REQUIRED).split(", "))
        raise ValueError(message)

    def _missing(self, names: Iterable[str]) -> str:
        """The message about missing keys, each given with all its spellings; or what may be the reason."""
        given = (word.partition("=")[0] for word in self.words if word.startswith("--"))
        if unknown := next((key for key in given if key not in self._option_string_actions), None):
            return self._unknown(unknown)
        message = missing_keys(name.partition("/")[0] for name in names)
        if self.words and not self.words[0].startswith("-"):
            return f"{self.words[0]!r} has no key before it. {message[0].upper()}{message[1:]}"
        return message


def missing_keys(keys: Iterable[str]) -> str:
    """The message about keys that must be given."""
    return f"these keys are required: {', '.join(keys)}; --help explains them."


def spelled(word: str) -> str:
    """A word of a command line, with underscores in the place of the hyphens of a key."""
    if not word.startswith("--") or len(word) == 2:
        return word
    key, equals, value = word[2:].partition("=")
    return f"--{key.replace('-', '_')}{equals}{value}"


def unknown_key(key: str, known: Iterable[str]) -> str:
    """The message about a key that there is not, with the one that may have been meant."""
    close = difflib.get_close_matches(key, known, 1)
    return f"unknown key {key}." + (f" Did you mean {close[0]}?" if close else "")


def shown(value: Any) -> str:
    """A default, as it would be written at a command line."""
    if isinstance(value, list | tuple):
        return " ".join(map(str, value)) or "none"
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def _type_name(action: argparse.Action) -> str:
    return {int: "N", float: "X", dict: "{KEY: VALUE}"}.get(action.type, "TEXT")
