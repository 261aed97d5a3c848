"""README.md says what there is: its tree names every file, and its links and commands lead somewhere."""

import re
from fnmatch import fnmatch
from pathlib import Path

import pytest


README = Path("README.md").read_text(encoding="utf-8")
HOUSE = README.split("## The house")[1]


def named(folder: str) -> list[str]:
    """The entries of a folder in the tree: the lines below its own that are indented by two, or by four in a folder
    within."""
    entries, inner = [], ""
    for line in HOUSE.split(f"\n{folder}/")[1].split("\n")[1:]:
        if not line.startswith("  "):
            break
        name = line.split()[0]
        if not line.startswith("    "):
            inner = name if name.endswith("/") else ""
            entries.append(name)
        else:
            entries.append(inner + name)
    return entries


@pytest.mark.parametrize("folder", ["rein_hf", "recipes"])
def test_the_tree_names_every_file(folder):
    entries = named(folder)
    whole = [
        entry for entry in entries if entry.endswith("/") and sum(other.startswith(entry) for other in entries) == 1
    ]
    patterns = [entry + "*" if entry in whole else entry for entry in entries]
    files = [path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file()]
    files = [file for file in files if not re.search("__pycache__|__init__.py$|[.]png$", file)]
    assert [file for file in files if not any(fnmatch(file, pattern) for pattern in patterns)] == []
    assert [entry for entry in entries if not list(Path(folder).glob(entry.removesuffix("/")))] == []


def test_links_and_scripts_exist():
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    scripts = re.findall(r"(?:python |launch .*? |run )(recipes/\S+\.py)", README)
    modules = [name.replace(".", "/") + ".py" for name in re.findall(r"python -m ((?:recipes|tests)\.\w+)", README)]
    assert len(links) >= 4 and len(scripts) > 8 and len(modules) > 3
    assert [path for path in links + scripts + modules if not Path(path).is_file()] == []
