"""What documents in Markdown hold: headings, blocks of code, commands, tables, sentences."""

from __future__ import annotations

import dataclasses
import importlib
import re
import shlex
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import get_type_hints

from accelerate.commands.launch import launch_command_parser
from transformers import HfArgumentParser

from rein_hf.commands import cli
from rein_hf.commands.grammar import CommandParser, spelled


FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"(?:\w+=\S+ )*(?:python |make |rein-hf |accelerate launch .*(?:[.]py|rein_hf))")
# words that stand for what a reader puts in their place
PLACEHOLDERS = {"RECIPE": "recipes/configs/streets_demo-vit_256.yaml", "T": "rein", "S": "0"}


def code_blocks(text: str, language: str) -> list[str]:
    """The blocks of code of a language; "" for those that name none."""
    return [textwrap.dedent(body) for _, name, body in FENCE.findall(text) if name == language]


def prose(text: str) -> str:
    """The text without its blocks of code."""
    return FENCE.sub("", text)


def anchors(text: str) -> set[str]:
    """What links to the headings end with, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(text), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def sections(text: str) -> dict[str, str]:
    """The texts below the headings of the second level, by heading."""
    titles = re.split(r"^## (.+)$", text, flags=re.MULTILINE)
    return dict(zip(titles[1::2], titles[2::2], strict=True))


def tables(text: str) -> list[list[list[str]]]:
    """The rows of each table, of each row the cells; the first row is the heads of the columns."""
    found = re.findall(r"(?:^\|.*\|\n)+", prose(text) + "\n", re.MULTILINE)
    rows = [[[cell.strip() for cell in line[1:-1].split("|")] for line in table.splitlines()] for table in found]
    return [[row for row in table if not set("".join(row)) <= set("-")] for table in rows]


def sentences(text: str) -> set[str]:
    """Sentences and rows of tables that are long enough to say something."""
    paragraphs = re.split(r"\n\s*\n|\n(?= *(?:[-|]|\d\.) ?)", prose(text))
    found = {s for paragraph in paragraphs for s in re.split(r"(?<=[.:;?]) ", " ".join(paragraph.split()))}
    return {sentence for sentence in found if len(sentence) >= 50 and set(sentence) - set("|-")}


def commands(text: str) -> Iterator[list[str]]:
    """The words of each command in blocks of bash, without comments and assignments of the environment."""
    for block in code_blocks(text, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(re.sub(r"(^|\s)#.*", "", line))  # a # within a word is no comment
            while words and re.fullmatch(r"\w+=\S*", words[0]):
                words.pop(0)
            if words:
                yield words


def inline_commands(text: str) -> Iterator[list[str]]:
    """The words of each command in the prose, which may leave out arguments that are needed."""
    for span in re.findall(r"`((?:[^`\n]|\n(?!\n))+)`", prose(text)):
        if COMMAND.match(span):
            yield [word for word in shlex.split(span) if not re.fullmatch(r"[A-Z_]+=\S*", word)]


def header_commands(path: Path) -> Iterator[list[str]]:
    """The words of each command in the comments of a YAML file."""
    lines = re.findall(r"^# ?(.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    for line in re.sub(r"\\\n", " ", "\n".join(lines)).splitlines():
        line = line.removeprefix("Command:").strip()
        if COMMAND.match(line):
            yield [word for word in shlex.split(line) if not re.fullmatch(r"[A-Z_]+=\S*", word)]


def check_command(words: list[str], whole: bool) -> None:
    """Refuses a command that its program would refuse.

    Args:
        whole: whether it has all that it needs; if not, its flags alone are looked at.

    Raises:
        AssertionError, OSError, SystemExit, ValueError: a program, target, flag or value is unknown, or a file is
            missing.
    """
    words = [PLACEHOLDERS.get(word, word) for word in words]
    program, arguments = words[0], words[1:]
    if program == "make":
        assert all(re.search(rf"^{target}:", Path("Makefile").read_text(), re.MULTILINE) for target in arguments)
    elif program == "accelerate":
        assert arguments[0] == "launch"
        launch = launch_command_parser().parse_args(arguments[1:])
        assert launch.config_file is None or Path(launch.config_file).is_file()
        if launch.module:
            assert launch.training_script.startswith("rein_hf.commands.")
            _check_verb(launch.training_script.rpartition(".")[2], launch.training_script_args, whole)
        else:
            _check_script(launch.training_script, launch.training_script_args, whole)
    elif program == "rein-hf":
        assert arguments[0] in cli.VERBS or arguments[0] in cli.HELP
        _check_verb(arguments[0], arguments[1:], whole)
    elif program == "python":
        if arguments[0] == "-m":
            arguments = [arguments[1].replace(".", "/") + ".py", *arguments[2:]]
        _check_script(arguments[0], arguments[1:], whole)
    elif program == "pip":
        extras = re.findall(r"\.\[(\w+)\]", " ".join(arguments))
        assert all(re.search(rf"^{extra} = \[", Path("pyproject.toml").read_text(), re.MULTILINE) for extra in extras)
    elif program == "cp":
        assert Path(arguments[0]).exists()
    else:
        assert program in ("hf", "export"), words


def _check_verb(verb: str, arguments: list[str], whole: bool) -> None:
    if verb in cli.HELP or set(arguments) & {*cli.HELP, "--list"} or not (whole or arguments):
        return
    module = importlib.import_module(f"rein_hf.commands.{verb}")
    if verb == "train":
        if "--data" in arguments:  # a reader's own folder, which is not here: what it stands for
            place = arguments.index("--data")
            assert len(arguments) > place + 1
            arguments = [*arguments[:place], *arguments[place + 2 :], "--train", "[DATA]", "--evaluate", "[DATA]"]
        module.parse(arguments)
        return
    parser = CommandParser(verb, get_type_hints(module.main)["args"])
    keys = {spelled(word).partition("=")[0] for word in arguments if word.startswith("--")}
    assert keys <= set(parser._option_string_actions)
    if whole:
        parser.parse(arguments)


def _check_script(script: str, arguments: list[str], whole: bool) -> None:
    if script == "pytest.py":
        if arguments[:1] == ["-m"]:
            assert f'"{arguments[1]}: ' in Path("pyproject.toml").read_text(encoding="utf-8")  # one of its markers
            arguments = arguments[2:]
        assert all(Path(argument).exists() for argument in arguments)
        return
    verb = re.search(r'run\("(\w+)"\)', Path(script).read_text(encoding="utf-8"))
    if verb:  # a script of recipes/, which hands on
        _check_verb(verb[1], arguments, whole)
        return
    module = importlib.import_module(script.removesuffix(".py").replace("/", "."))
    kind = get_type_hints(module.main).get("args")
    parser = HfArgumentParser(kind if dataclasses.is_dataclass(kind) else [])
    assert {word for word in arguments if word.startswith("--")} <= set(parser._option_string_actions)
    if whole:
        parser.parse_args_into_dataclasses(arguments)
