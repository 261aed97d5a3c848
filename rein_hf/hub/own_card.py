"""The card that an adapter has as soon as it is saved: what its own files and those of its run say.

It has the form of a published card. What only a person knows (licence, origin of the data, limits) is not in it;
`rein-hf publish --init` begins the file of facts that says it.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME

from ..files import atomic_write
from ..files.shipped import shipped_folder
from .backbone_path import is_hub_id
from .card import render_card
from .description import CARD_NAME, Description, describe_folder
from .facts import Facts


TEMPLATE = shipped_folder("hub_cards") / "template.md"

# In a card of this file: it may be written anew. A card without it is a person's, and stays.
MARK = "<!-- Written by rein-hf when the adapter was saved. Without this line it is never overwritten. -->"

TUNINGS = {"rein": "Rein", "lora": "LoRA", "adaptformer": "AdaptFormer", "vpt": "VPT", "soma": "SoMA"}


def write_own_card(folder: Path, final: Path | None = None, run: Path | None = None, repo: str | None = None) -> None:
    """Writes `README.md` beside an adapter, unless a person has written one there.

    Args:
        folder: of the adapter.
        final (*optional*): what the folder will be renamed to.
        run (*optional*): folder of the run that trains it.
        repo (`str`, *optional*): its Hub id, if it will have one.
    """
    path = folder / CARD_NAME
    needed = [folder / name for name in (CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME)]
    if not all(file.is_file() for file in needed) or path.exists() and not is_own_card(path):
        return
    about = describe_folder(folder)
    if not about.classes:  # of a bare backbone: nothing here segments
        return
    final = final or folder
    run = run or final
    facts = known_facts(final, about, run)
    name = repo or f"path/to/{final.resolve().name}"
    sample = _last_picture(run) if run == final else None
    card = render_card(TEMPLATE, name, facts, {}, about, sample, _scores_in_training(run) if run == final else "")
    with atomic_write(path) as partial:
        partial.write_text(f"{card}\n{MARK}\n", encoding="utf-8")


def is_own_card(path: Path) -> bool:
    """Whether a card is one of this file, or the empty one that peft writes."""
    text = path.read_text(encoding="utf-8", errors="replace")
    return MARK in text or "# Model Card for Model ID" in text and text.count("[More Information Needed]") > 30


def known_facts(folder: Path, about: Description, run: Path | None = None, domains: tuple[str, ...] = ()) -> Facts:
    """What is known of an adapter before a person adds to it; what is not is empty.

    Args:
        folder: of the adapter.
        about: from [`describe`].
        run: folder with the `recipe.json` of the run that trained it; `folder` by default.
        domains: what it was evaluated on.
    """
    recipe, run = _read_json((run or folder) / "recipe.json"), run or folder
    tuning = TUNINGS.get(recipe.get("tuning"), about.method)
    hub_id, name = backbone_name(about, recipe)
    sources = recipe.get("images") or {}
    trained_on = f", trained on {_listed(list(sources))}" if sources else ""
    return Facts(
        title=f"{tuning} on {name}" + (f", {_listed(list(sources))}" if sources else ""),
        summary=f"Semantic segmentation in {len(about.classes)} classes: {_listed(list(about.classes))}{trained_on}.",
        recipe=_recipe_in_words(recipe, folder, run),
        backbone={"id": hub_id, "name": name, "license": ""},
        license="",
        license_note="",
        training_data=[
            {"name": name, "description": f"{count} images." if count else "A stream.", "license": ""}
            for name, count in sources.items()
        ],
        limits=[],
        domains={name: {"name": name, "description": ""} for name in domains},
    )


def backbone_name(about: Description, recipe: dict[str, Any]) -> tuple[str, str]:
    """The Hub id of a backbone, empty for a folder, and the last part of either, which tells nothing of the disk."""
    named = about.base or recipe.get("backbone") or "unknown"
    return named if is_hub_id(about.base) else "", Path(named).name


def _recipe_in_words(recipe: dict[str, Any], folder: Path, run: Path) -> str:
    """What `recipe.json` says of the training, and which step the weights are of."""
    if not recipe:
        return ""
    state = _read_json(run / "trainer_state.json")
    checkpoint = re.fullmatch(r"checkpoint-(\d+)", folder.name)
    step = int(checkpoint[1]) if checkpoint else state.get("global_step") or recipe["max_steps"]
    if recipe.get("load_best_model_at_end") and not checkpoint:
        step = state.get("best_global_step") or step
    of = "" if step == recipe["max_steps"] else f" (the weights are of step {step:,})"
    return (
        f"rein-hf train, tuning {recipe['tuning']}, {recipe['max_steps']:,} steps{of} of "
        f"{recipe['total_batch_size']} crops of {recipe['crop']}x{recipe['crop']} pixels, learning rate "
        f"{recipe['learning_rate']:g}, seed {recipe['seed']}"
    )


def _scores_in_training(run: Path) -> str:
    """The last evaluation of a run, in words; empty if there was none."""
    entries = [
        entry for entry in _read_json(run / "trainer_state.json").get("log_history", ()) if "eval_miou" in entry
    ]
    if not entries:
        return ""
    last = entries[-1]
    names = [key[len("eval_") : -len("_miou")] for key in last if re.fullmatch("eval_.+_miou", key)]
    return f"mIoU in percent at step {last['step']:,} of the training, perhaps of a part of the images: " + ", ".join(
        f"{name} {last[f'eval_{name}_miou']:.2f}" for name in names
    )


def _last_picture(run: Path) -> str | None:
    """The newest sheet of validation pictures, from the folder of a run."""
    sheets = sorted(run.glob("validation/step_*.png"))
    return sheets[-1].relative_to(run).as_posix() if sheets else None


def _read_json(path: Path) -> dict[str, Any]:
    """A file of a run, if it is there and whole: a card is no reason to stop."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _listed(names: list[str], most: int = 6) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
