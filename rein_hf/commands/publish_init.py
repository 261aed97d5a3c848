"""The beginning of a file of facts, for `publish.py`: what is known of an adapter, and which facts a person adds."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

import rein_hf

from ..files import atomic_write
from ..hub import Facts, known_facts


# What rein-hf evaluate left, where rein-hf train says to put it.
RESULTS = ("results.json", "evaluation/results.json")

# What a person writes into the file, and how.
QUESTIONS = {
    "title": "",
    "summary": "what it is for, in a sentence or two",
    "recipe": "how it was trained, so that others could do it again",
    "backbone": "id: on the Hub; license: as its own card says",
    "license": "of the weights: an id of https://huggingface.co/docs/hub/repositories-licenses, or other",
    "license_name": "where license is other: a short name for it; else remove this line",
    "license_note": "what a user may do with it, in a sentence",
    "training_data": "description, license, and perhaps url, of each source",
    "domains": "what rein-hf evaluate measured; description, and perhaps split, url, hub_id, of each",
    "limits": "what it should not be used for, where it fails: a list of sentences",
}


def write_facts(folder: Path, output: Path, results: dict[str, dict]) -> list[str]:
    """Writes what is known of an adapter as a file of facts.

    Args:
        folder: of the adapter.
        output: the file; it must not be there.
        results: of `rein-hf evaluate`, by domain.

    Returns:
        The facts that are still empty, which [`rein_hf.hub.read_facts`] refuses.

    Raises:
        FileExistsError: the file is there.
    """
    if output.exists():
        raise FileExistsError(f"{output} is there already, and perhaps has facts of yours; give another --facts FILE.")
    facts = known_facts(folder, rein_hf.describe(folder), domains=tuple(results))
    del facts.backbone["name"]  # of a folder, which others could not download
    lines = [
        "# Facts of one checkpoint, begun by rein-hf publish --init. Write in what is empty; the card states it all.",
        "# The keys are explained in rein_hf.hub.Facts.",
    ]
    for key, question in QUESTIONS.items():
        lines += ["", f"# {question}"] if question else [""]
        text = yaml.safe_dump({key: getattr(facts, key)}, sort_keys=False, allow_unicode=True, width=110)
        lines.append(text.strip())
    output.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(output) as partial:
        partial.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return list(empty_facts(facts))


def empty_facts(facts: Facts) -> list[str]:
    """Names of the facts that a person still has to write."""
    empty = [key for key in QUESTIONS if key not in ("license_name", "domains") and not getattr(facts, key)]
    parts = {"backbone": [("", facts.backbone)]}
    parts["training_data"] = [(source["name"], source) for source in facts.training_data]
    parts["domains"] = list(facts.domains.items())
    for key, entries in parts.items():
        for name, entry in entries:
            empty += [".".join(filter(None, (key, name, field))) for field, value in entry.items() if not value]
    return empty


def found_results(folder: Path) -> list[str]:
    """The `results.json` beside an adapter that tell of it: by the folder's path, or of it alone."""
    found = []
    for path in (folder / name for name in RESULTS):
        if path.is_file() and _names(path, folder):
            found.append(str(path))
    return found


def _names(path: Path, folder: Path) -> bool:
    try:
        models = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError:
        return False
    return isinstance(models, dict) and any(Path(name).resolve() == folder.resolve() for name in models)
