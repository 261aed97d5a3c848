"""Publishes an adapter on the Hub, with a card of facts and measured results.

    rein-hf publish --init --model OUT/rein --facts NAME.yaml    # begins the file of facts with what is known
    rein-hf publish --model OUT/rein --repo USER/NAME --facts NAME.yaml \\
        --evaluation EVALUATION/results.json --sample overlay.png [--push true]

Renders the card and shows what would be uploaded; with `--push true` uploads it (log in first: `hf auth login`). Of
the adapter's folder three files are uploaded: the configuration, without any local path in it, the weights
(safetensors) and the image processor.
"""

from __future__ import annotations

import io
import json
import math
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.utils import validate_repo_id
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from PIL import Image
from transformers import AutoImageProcessor
from transformers.utils import IMAGE_PROCESSOR_NAME

import rein_hf

from ..files.shipped import shipped_folder
from ..hub import Facts, push_space, read_facts, render_card, render_space
from ..hub.own_card import TEMPLATE
from ..images import open_image
from ..labels import SUBSETS
from .cli import run
from .grammar import missing_keys
from .publish_init import found_results, write_facts


SPACE_TEMPLATES = shipped_folder("hub_cards") / "space"
FILES = (CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME, IMAGE_PROCESSOR_NAME)
SAMPLE_WIDTH = 1280


@dataclass
class PublishArguments:
    facts: str | None = field(
        default=None, metadata={"help": "Facts of this checkpoint, a YAML file; with --init the one to be written."}
    )
    repo: str | None = field(default=None, metadata={"help": "USER/NAME on the Hub; has no place beside --init."})
    sample: str | None = field(
        default=None,
        metadata={"help": "Picture for the card, e.g. an overlay of rein-hf predict; has no place beside --init."},
    )
    evaluation: list[str] = field(
        default_factory=list,
        metadata={"help": "results.json of rein-hf evaluate. With --init those in the adapter's folder by default."},
    )
    init: bool = field(default=False, metadata={"help": "Write a file of facts with what is known, and nothing else."})
    model: str | None = field(
        default=None,
        metadata={"help": "Adapter: folder that rein-hf train left. Beside --adapter: its name in --evaluation."},
    )
    adapter: str | None = field(
        default=None, metadata={"help": "The folder, where --model is its name in --evaluation."}
    )
    card: str | None = field(default=None, metadata={"help": "Write the card to this file, to look at it."})
    space: str | None = field(
        default=None, metadata={"help": "USER/NAME of a Space, too: the page of rein-hf demo, with this adapter."}
    )
    space_examples: list[str] = field(default_factory=list, metadata={"help": "Photos that the Space offers."})
    private: bool = field(default=False, metadata={"help": "Make a new repository private."})
    push: bool = field(default=False, metadata={"help": "Upload."})


def main(args: PublishArguments) -> dict[str, int]:
    """Returns the bytes of every file that is, or would be, uploaded; none with `--init`.

    Raises:
        ValueError: a key is missing, or has no place beside `--init`; a fact, a file or a result is wrong.
        OSError: a file is missing; with `--init`, the file of facts is there already.
    """
    folder, name_in_results = (args.adapter, args.model) if args.adapter else (args.model, None)
    check_keys(args, folder)
    if args.init:
        return init(args, Path(folder), name_in_results)
    validate_repo_id(args.repo)
    facts, adapter = read_facts(Path(args.facts)), Path(folder)
    files = adapter_files(adapter)
    files[CONFIG_NAME] = published_config(files[CONFIG_NAME], facts)
    results = read_results(args.evaluation, name_in_results, adapter)
    card = render_card(TEMPLATE, args.repo, facts, results, rein_hf.describe(adapter))
    files |= {"README.md": str(card).encode(), "sample.jpg": sample_picture(Path(args.sample))}
    space = space_files(args, facts, rein_hf.describe(adapter))
    if args.card:
        Path(args.card).write_bytes(files["README.md"])
    sizes = {name: len(body) for name, body in files.items()}
    stays = sorted(path.name + "/" * path.is_dir() for path in adapter.iterdir() if path.name not in files)
    for name, size in sizes.items():
        print(f"{size:>12,} bytes  {name}")
    print(f"{sum(sizes.values()):>12,} bytes  in all, to {args.repo}. Stays here: {', '.join(stays) or 'nothing'}.")
    for name, body in space.items():
        print(f"{len(body):>12,} bytes  {name}, to the Space {args.space}")
    if not args.push:
        print("Nothing uploaded; add --push true.")
        return sizes
    api = HfApi()
    if not api.repo_exists(facts.backbone["id"]):
        raise ValueError(f"{args.facts}: the backbone {facts.backbone['id']} is not on the Hub; upload it first.")
    card.validate()  # by the Hub, before there is a repository
    api.create_repo(args.repo, private=args.private or None, exist_ok=True)
    operations = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=body) for name, body in files.items()]
    commit = api.create_commit(args.repo, operations, commit_message=f"Publish {facts.title}")
    print(f"Uploaded: {commit.commit_url}")
    if space:
        print(f"Space: {push_space(api, args.space, space, facts.title, args.private)}")
    return sizes


def check_keys(args: PublishArguments, folder: str | None) -> None:
    """Refuses a command line without what it needs, or with keys that would have no effect."""
    needed = {"model": folder, "facts": args.facts}
    others = {"repo": args.repo, "sample": args.sample}
    if not args.init:
        needed |= others
    if missing := [f"--{name}" for name, value in needed.items() if not value]:
        raise ValueError(missing_keys(missing))
    others |= {"card": args.card, "private": args.private, "push": args.push}
    if args.init and (without_effect := [f"--{name}" for name, value in others.items() if value]):
        raise ValueError(
            f"{', '.join(without_effect)} would have no effect beside --init, which writes --facts alone."
        )


def init(args: PublishArguments, folder: Path, name_in_results: str | None) -> dict[str, int]:
    """Writes the file of facts, and says what to do with it."""
    evaluation = args.evaluation or found_results(folder)
    empty = write_facts(folder, Path(args.facts), read_results(evaluation, name_in_results, folder))
    found = f", of {', '.join(evaluation)} the domains" if evaluation else ""
    print(f"{args.facts}: what {folder} says{found}. Still empty: {', '.join(empty) or 'nothing'}.")
    words = ["--model", str(folder), "--repo", "USER/NAME", "--facts", args.facts]
    words += ["--evaluation", *evaluation] if evaluation else []
    print(f"Next: write these in, then rein-hf publish {shlex.join(words)} --sample PICTURE")
    return {}


def adapter_files(folder: Path) -> dict[str, bytes]:
    """The content of the files that are published.

    Raises:
        FileNotFoundError: one is missing.
        ValueError: one lies outside the folder; the image processor is another.
    """
    files = {}
    for name in FILES:
        path = folder / name
        if not path.is_file():
            raise FileNotFoundError(f"{folder} has no {name}; expected what rein-hf train leaves: {', '.join(FILES)}.")
        if path.resolve().parent != folder.resolve():
            raise ValueError(f"{path} is a link to {path.resolve()}, outside the folder; copy the file instead.")
        files[name] = path.read_bytes()
    processor = AutoImageProcessor.from_pretrained(folder)
    if not isinstance(processor, rein_hf.ReinImageProcessor):
        raise ValueError(
            f"{folder / IMAGE_PROCESSOR_NAME} is a {type(processor).__name__}, which squeezes masks through 384x384; "
            "expected a ReinImageProcessor: rein_hf.build_image_processor().save_pretrained(FOLDER)."
        )
    return files


def space_files(args: PublishArguments, facts: Facts, about: rein_hf.Description) -> dict[str, bytes]:
    """The files of the Space that is asked for; none if none is.

    Raises:
        ValueError: its name is not one of the Hub, or there are photos but no Space.
    """
    if not args.space:
        if args.space_examples:
            raise ValueError("--space_examples has photos for a Space; found no --space USER/NAME.")
        return {}
    validate_repo_id(args.space)
    examples = {Path(path).stem: sample_picture(Path(path)) for path in args.space_examples}
    if len(examples) < len(args.space_examples):
        raise ValueError("--space_examples has several photos of one name; give each a name of its own.")
    return render_space(SPACE_TEMPLATES, args.repo, facts, about, rein_hf.__version__, examples)


def published_config(content: bytes, facts: Facts) -> bytes:
    """adapter_config.json with the backbone's Hub id in the place of every local path."""
    config = json.loads(content)
    config["base_model_name_or_path"] = facts.backbone["id"]
    inner = config["base_config"]
    while isinstance(inner, dict):
        inner.pop("_name_or_path", None)
        inner = inner.get("backbone_config")
    return json.dumps(config, indent=2, sort_keys=True).encode()


def read_results(paths: list[str], model: str | None, adapter: Path) -> dict[str, dict]:
    """What rein-hf evaluate measured of the adapter, by domain; groups of a domain's images are left out.

    Raises:
        ValueError: the adapter is not, or a domain is twice, in the files.
    """
    results = {}
    for path in paths:
        models, settings = _read_json(Path(path)), Path(path).with_name("settings.json")
        written = _read_json(settings) if settings.is_file() else {}
        named = [model] if model else [name for name in models if Path(name).resolve() == adapter.resolve()]
        if len(named) != 1 or named[0] not in models:
            raise ValueError(
                f"{path} holds {sorted(models)}; expected {model or adapter}. Give the folder as --adapter, its "
                "name there as --model."
            )
        for domain, found in models[named[0]].items():
            if not isinstance(found, dict) or "mean_iou" not in found or "/" in domain:
                continue
            if domain in results:
                raise ValueError(f"{path}: {domain} is in another --evaluation as well.")
            results[domain] = found | {"how": how_measured(written, domain)}
    return results


def how_measured(written: dict[str, dict], domain: str) -> str:
    """In what an evaluation differs from the protocol, for a card, by what its settings.json says."""
    settings, origin = written.get("settings", {}), written.get("domains", {}).get(domain, {})
    remarks = []
    if settings.get("limit", math.inf) < origin.get("images", math.inf):
        remarks.append(f"{settings['limit']} of {origin.get('images', 'its')} images")
    if {"crop", "stride"} & settings.keys():
        sides = (f"{word} {settings[key]}" for key, word in (("crop", "of"), ("stride", "every")) if key in settings)
        remarks.append(f"windows {' '.join(sides)} pixels")
    if "size" in origin:
        remarks.append(f"seen at {origin['size']}")
    if "scored" in settings:
        remarks.append(f"mean over the {len(SUBSETS[settings['scored']])} classes of {settings['scored']}")
    return f"({'; '.join(remarks)})" if remarks else ""


def _read_json(path: Path) -> dict[str, dict]:
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(
            f"{path} is no JSON in UTF-8 ({error}); expected a results.json of rein-hf evaluate."
        ) from error
    if not isinstance(found, dict) or not all(isinstance(results, dict) for results in found.values()):
        raise ValueError(f"{path} holds no results by model and domain; expected a results.json of rein-hf evaluate.")
    return found


def sample_picture(path: Path) -> bytes:
    """A JPEG of moderate size, upright, without what the camera wrote into the file (places among them)."""
    picture = open_image(path)
    picture.thumbnail((SAMPLE_WIDTH, SAMPLE_WIDTH))
    content = io.BytesIO()
    Image.frombytes("RGB", picture.size, picture.tobytes()).save(content, "JPEG", quality=88)
    return content.getvalue()


if __name__ == "__main__":
    sys.exit(run("publish"))
