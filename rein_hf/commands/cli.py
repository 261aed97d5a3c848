"""The command `rein-hf`: which verbs there are, and how each of them runs."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any, get_type_hints

from .. import __version__
from ..inference import is_out_of_memory
from .grammar import CommandParser


VERBS = {
    "train": "a recipe -> an adapter; rein-hf train --list shows the recipes that come with the package",
    "evaluate": "adapters on domains (and corruptions) -> table, JSON, plots, contact sheet",
    "predict": "photos -> overlays and label maps, and what Rein does inside",
    "demo": "adapters -> a page in the browser to try them on",
    "inspect": "data sets -> what is in them and what is wrong with them, before anything is trained",
    "assess": "backbones x tunings x seeds on targets -> table and figure",
    "submit": "a model -> label maps for a benchmark's server",
    "publish": "an adapter -> the Hub, with its card",
    "export": "an adapter -> one ONNX or .pt2 file, from image to label map",
    "convert": "the authors' checkpoints -> adapters, and back",
    "benchmark": "what Rein, the head and a training step cost",
    "describe": "what an adapter is, before its backbone is downloaded",
}

HELP = ("-h", "--help")


def main(argv: Sequence[str] | None = None) -> int:
    """The console command: a verb and its keys. Returns the exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in HELP:
        print("usage: rein-hf VERB --KEY VALUE ...\n")
        print("\n".join(f"  {verb:<10} {text}" for verb, text in VERBS.items()))
        print("\nrein-hf VERB --help lists the keys of a verb, with their defaults.")
        return 0
    if argv[0] == "--version":
        print(f"rein-hf {__version__}")
        return 0
    if argv[0] not in VERBS:
        close = difflib.get_close_matches(argv[0], VERBS, 1)
        hint = f" Did you mean {close[0]}?" if close else ""
        print(f"rein-hf: there is no verb {argv[0]!r}; expected one of {', '.join(VERBS)}.{hint}", file=sys.stderr)
        return 2
    return run(argv[0], argv[1:])


def run(verb: str, argv: Sequence[str] | None = None) -> int:
    """Runs a verb on the words of a command line, those of this process by default.

    Returns:
        The exit status: 1 if the verb's `main` returns how many things went wrong, 2 if a file or an argument is not
        what it should be, or there is not enough memory, else 0.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    module = importlib.import_module(f"{__package__}.{verb}")
    try:
        if set(argv) & set(HELP):
            print(help_text(module, verb, [word for word in argv if word not in HELP]))
            return 0
        if "--list" in argv and hasattr(module, "list_text"):
            print(module.list_text())
            return 0
        result = module.main(*parse(module, verb, argv))
    except (OSError, ValueError, FloatingPointError) as error:
        print(f"rein-hf {verb}: {one_line(error)}", file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        told = one_line(error) if str(error) else ""
        print(f"rein-hf {verb}: there is not enough memory. {told}".rstrip(), file=sys.stderr)
        return 2
    return int(isinstance(result, int) and result > 0)


def one_line(error: Exception) -> str:
    """The message of an error; further lines are kept where they are a list, indented by two."""
    first, *others = str(error).splitlines() or [type(error).__name__]
    return str(error) if all(line.startswith("  ") for line in others) else " ".join(str(error).split())


def require_at_least(args: Any, **least: int) -> None:
    """Refuses numbers that are too small; options that are None are not given.

    Args:
        args: the arguments of a verb.
        least: the least of an option, or of each number in its list, by its name.

    Raises:
        ValueError: a number is too small.
    """
    for option, smallest in least.items():
        value = getattr(args, option)
        if any(number < smallest for number in (value if isinstance(value, list) else [value]) if number is not None):
            text = " ".join(map(str, value)) if isinstance(value, list) else value
            raise ValueError(f"--{option} is {text}; expected {smallest} at least.")


def parse(module: ModuleType, verb: str, argv: list[str]) -> tuple[Any, ...]:
    """The arguments of a verb's `main`: by the verb's own `parse` if it has one, else the fields of their class."""
    return module.parse(argv) if hasattr(module, "parse") else _parser(module, verb).parse(argv)


def help_text(module: ModuleType, verb: str, argv: list[str]) -> str:
    """All keys of a verb with their defaults; `argv` may name a recipe, of which they are then."""
    return module.help_text(argv) if hasattr(module, "help_text") else _parser(module, verb).format_help()


def _parser(module: ModuleType, verb: str) -> CommandParser:
    return CommandParser(verb, get_type_hints(module.main)["args"], module.__doc__)


if __name__ == "__main__":
    sys.exit(main())
