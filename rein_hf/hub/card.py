"""The model card of an adapter, made from a file of facts, measured results and the adapter's own files."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.utils import validate_repo_id

from ..files import read_yaml
from ..labels import CITYSCAPES_CLASSES
from .description import Description


METRICS = {"mean_iou": "mIoU", "overall_accuracy": "pixel accuracy"}  # key in results.json -> name on the card
# what a card says of the method, by the description's name of it
METHODS = {
    "Rein": "[Rein](https://arxiv.org/abs/2312.04265) (CVPR 2024) refines the features of a frozen vision transformer "
    "with a few\ntrained tokens.",
    "AdaptFormer": "[AdaptFormer](https://arxiv.org/abs/2205.13535) (NeurIPS 2022) trains a bottleneck beside every "
    "MLP of a\nfrozen vision transformer.",
    "VPT": "[VPT](https://arxiv.org/abs/2203.12119) (ECCV 2022) trains prompts among the tokens of every block of a "
    "frozen\nvision transformer.",
}
# what the card's example passes to `colorize` if the classes are not those of Cityscapes
PALETTE = ", rein_hf.labels.palette_of(model.config.id2label.values())"


@dataclass
class Facts:
    """What a card says and no file of the adapter holds. `license` and `license_name` are metadata of the Hub."""

    title: str
    summary: str
    recipe: str
    backbone: dict[str, str]  # id on the Hub, license
    license: str
    license_note: str
    training_data: list[dict[str, str]]  # name, description, license, and perhaps url
    limits: list[str]
    domains: dict[str, dict[str, str]]  # by evaluate.py's name: name, description, and perhaps split, url, hub_id
    license_name: str | None = None


def read_facts(path: Path) -> Facts:
    """A facts file.

    Raises:
        ValueError: a fact is missing, unknown or empty.
    """
    values = read_yaml(path)
    known = {field.name for field in fields(Facts)}
    missing = known - {"license_name"} - values.keys()
    if missing or values.keys() - known:
        raise ValueError(f"{path}: missing {sorted(missing)}, unknown {sorted(values.keys() - known)}.")
    facts = Facts(**values)
    needed = [("backbone", facts.backbone, ("id", "license"))]
    needed += [("training_data", data, ("name", "description", "license")) for data in facts.training_data]
    needed += [(f"domains.{name}", domain, ("name", "description")) for name, domain in facts.domains.items()]
    for name, found, keys in needed:
        if lacking := [key for key in keys if not found.get(key)]:
            raise ValueError(f"{path}: {name} has no {', '.join(lacking)}; found {found}.")
    if empty := [name for name in sorted(known - {"license_name", "domains"}) if not getattr(facts, name)]:
        raise ValueError(f"{path}: {', '.join(empty)} is empty.")
    validate_repo_id(facts.backbone["id"])
    return facts


def render_card(template: Path, repo: str, facts: Facts, results: dict[str, dict], about: Description) -> ModelCard:
    """The card of an adapter, parsed again from its text as huggingface_hub will parse it.

    Args:
        template: a file of Jinja.
        repo (`str`): the adapter's future Hub id.
        facts: from [`read_facts`].
        results: of `rein-hf evaluate`, by domain: `mean_iou`, `overall_accuracy` and `per_class_iou`, from 0 to 1.
        about: from [`describe`].

    Raises:
        ValueError: a domain was evaluated that the facts do not name, or nothing was counted in one.
    """
    if unknown := sorted(results.keys() - facts.domains.keys()):
        raise ValueError(f"Evaluated on {unknown}, of which the facts' domains say nothing: {sorted(facts.domains)}.")
    eval_results = []
    for domain, found in results.items():
        fact = facts.domains[domain]
        source = {
            "task_type": "image-segmentation",
            "dataset_type": fact.get("hub_id", domain),
            "dataset_name": fact["name"],
            "dataset_split": fact.get("split"),
            "source_url": fact.get("url"),
            "source_name": fact["name"] if fact.get("url") else None,
        }
        for metric, name in METRICS.items():
            if not _is_measured(found[metric]):
                raise ValueError(f"{domain}: {metric} is {found[metric]}; nothing was counted, leave the domain out.")
            value = round(100 * found[metric], 2)
            eval_results.append(EvalResult(metric_type=metric, metric_name=name, metric_value=value, **source))
    metadata = ModelCardData(
        base_model=facts.backbone["id"],
        datasets=[fact["hub_id"] for fact in facts.domains.values() if fact.get("hub_id")] or None,
        eval_results=eval_results or None,
        library_name="peft",
        license=facts.license,
        license_name=facts.license_name,
        model_name=repo.split("/")[-1],
        pipeline_tag="image-segmentation",
        tags=[
            about.method.lower(),
            "rein-hf",
            "dinov2",
            "mask2former",
            "semantic-segmentation",
            "domain-generalization",
        ],
    )
    classes = list(about.classes)
    measured = [found["per_class_iou"] for found in results.values()]  # a domain may have other classes
    names = dict.fromkeys([*classes, *(name for scores in measured for name in scores)])
    per_class = {name: [_percent(scores.get(name)) for scores in measured] for name in names}
    rank = f"rank {about.rank}" if about.rank else "full rank"
    card = ModelCard.from_template(
        metadata,
        template_path=str(template),
        repo=repo,
        title=facts.title,
        summary=facts.summary,
        recipe=facts.recipe,
        limits=facts.limits,
        license_note=facts.license_note,
        training_data=facts.training_data,
        backbone=facts.backbone["id"],
        backbone_license=facts.backbone["license"],
        size=f"{about.bytes / 1e6:.1f} MB",
        palette="" if about.classes == CITYSCAPES_CLASSES else PALETTE,
        crop=about.crop,
        classes=classes,
        method=about.method,
        what=METHODS[about.method],
        settings=about.settings
        or f"{about.num_tokens} tokens per block, {rank}, {'linked to' if about.linked else 'beside'} the queries",
        parameters=f"{about.rein_parameters:,} of {about.method}, {about.head_parameters:,} of the head",
        results=[
            {
                "name": facts.domains[domain]["name"],
                "description": facts.domains[domain]["description"],
                "metrics": [_percent(found[metric]) for metric in METRICS],
            }
            for domain, found in results.items()
        ],
        metrics=list(METRICS.values()),
        per_class={name: cells for name, cells in per_class.items() if any(cells)},
    )
    return ModelCard(str(card))


def _is_measured(share: float | None) -> bool:
    return share is not None and not math.isnan(share)


def _percent(share: float | None) -> str:
    """A share in percent; empty where nothing was counted."""
    return f"{100 * share:.2f}" if _is_measured(share) else ""
