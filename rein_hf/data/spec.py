"""The description of a domain in one line, in a recipe or on a command line:

    [NAME=][LAYOUT:]PATH[@SPLIT][#OPTION=VALUE...]

    gta5:data/GTA5                                    a download of `rein_hf.data.layouts`, as it was packed
    cityscapes:data/cityscapes@train#every=16         each 16th image of a split
    acdc:data/acdc@val#size=native                    evaluated at its own size, not the protocol's
    camvid=../shared/data/camvid@test                 a folder of your own, see `rein_hf.data.folders`
    hub:user/dataset@train#image=photo#label=mask     a data set of the Hub or a folder of parquet files

Names of folders may hold "@", "#" and "=" as well: of all ways to read a description, the one counts whose path is the
longest that exists. So `data@home` is that folder if there is one, else the split `home` of the folder `data`. If no
path exists, "#" begins the options and the last "@" before it the split.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


PREFIX = re.compile(r"(?:(?P<name>[\w.+-]+)=)?(?:(?P<layout>\w{2,}):)?(?P<rest>.+)", re.DOTALL)
SUFFIX = re.compile(r"(?:@(?P<split>[\w.+-]+))?(?P<options>(?:#.*)?)", re.DOTALL)


@dataclass(frozen=True)
class DomainSpec:
    """The parts of a domain's description; `None` for what it does not say. `options` is in the order written."""

    path: str
    name: str | None
    layout: str | None
    split: str | None
    options: dict[str, str]


def parse_spec(spec: str) -> DomainSpec:
    """The parts of a description, as at the top of this file.

    Raises:
        ValueError: it is not of that form; an option comes twice.
    """
    readings = list(_readings(spec))
    existing = [reading for reading in readings if _exists(reading["path"])]
    usual = next((reading for reading in readings if "#" not in reading["path"]), None)
    chosen = max(existing, key=lambda reading: len(reading["path"]), default=usual)
    if chosen is None:
        raise ValueError(f"Domain {spec!r} is not of the form [NAME=][LAYOUT:]PATH[@SPLIT][#OPTION=VALUE...].")
    options = {}
    for part in chosen["options"].split("#")[1:]:
        key, equals, value = part.partition("=")
        if not equals:
            raise ValueError(f"Domain {spec!r} has the option {part!r}; expected OPTION=VALUE.")
        if key in options:
            raise ValueError(f"Domain {spec!r} has the option {key!r} twice.")
        options[key] = value
    return DomainSpec(chosen["path"], chosen["name"], chosen["layout"], chosen["split"], options)


def _readings(spec: str) -> Iterator[dict[str, str | None]]:
    """All ways to read a description, the one with the most parts first."""
    prefixes = [match.groupdict() for match in [PREFIX.fullmatch(spec)] if match]
    prefixes.append({"name": None, "layout": None, "rest": spec})
    for prefix in prefixes:
        rest = prefix.pop("rest")
        for end in [*(match.start() for match in re.finditer("[@#]", rest)), len(rest)]:
            suffix = SUFFIX.fullmatch(rest[end:])
            if end and suffix:
                yield {"path": rest[:end], **prefix, **suffix.groupdict()}


def _exists(path: str) -> bool:
    try:
        return Path(path).exists()
    except (OSError, ValueError):  # too long a name, or a zero byte in it
        return False
