"""The model card of an adapter, made from a file of facts, measured results and the adapter's own files."""

from __future__ import annotations

import math
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from .backbone_path import is_hub_id
from .description import Description
from .facts import Facts


METRICS = {"mean_iou": "mIoU", "overall_accuracy": "pixel accuracy"}  # key in results.json -> name on the card
# what a card says of the method, by the description's name of it
METHODS = {
    "Rein": "[Rein](https://arxiv.org/abs/2312.04265) (CVPR 2024) refines the features of a frozen vision transformer "
    "with a few\ntrained tokens.",
    "AdaptFormer": "[AdaptFormer](https://arxiv.org/abs/2205.13535) (NeurIPS 2022) trains a bottleneck beside every "
    "MLP of a\nfrozen vision transformer.",
    "VPT": "[VPT](https://arxiv.org/abs/2203.12119) (ECCV 2022) trains prompts among the tokens of every block of a "
    "frozen\nvision transformer.",
    "LoRA": "[LoRA](https://arxiv.org/abs/2106.09685) (ICLR 2022) trains products of two small matrices beside the "
    "linear\nlayers of a frozen vision transformer.",
}


def render_card(
    template: Path,
    repo: str,
    facts: Facts,
    results: dict[str, dict],
    about: Description,
    sample: str | None = "sample.jpg",
    scores: str = "",
) -> ModelCard:
    """The card of an adapter, parsed again from its text as huggingface_hub will parse it.

    Args:
        template: a file of Jinja.
        repo (`str`): the adapter's future Hub id, or its folder.
        facts: from [`read_facts`], or from [`known_facts`], of which some are empty.
        results: of `rein-hf evaluate`, by domain: `mean_iou`, `overall_accuracy` and `per_class_iou`, from 0 to 1;
            `how`, in what it differs from the protocol.
        about: from [`describe`].
        sample (`str`, *optional*): the picture, from the card's folder.
        scores (`str`): what is known of results where none are given.

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
            "dataset_args": {"evaluated": found["how"]} if found.get("how") else None,
        }
        for metric, name in METRICS.items():
            if not _is_measured(found[metric]):
                raise ValueError(f"{domain}: {metric} is {found[metric]}; nothing was counted, leave the domain out.")
            value = round(100 * found[metric], 2)
            eval_results.append(EvalResult(metric_type=metric, metric_name=name, metric_value=value, **source))
    metadata = ModelCardData(
        base_model=facts.backbone["id"] if is_hub_id(facts.backbone["id"]) else None,
        datasets=[fact["hub_id"] for fact in facts.domains.values() if fact.get("hub_id")] or None,
        eval_results=eval_results or None,
        library_name="peft",
        license=facts.license or None,
        license_name=facts.license_name,
        model_name=repo.split("/")[-1],
        pipeline_tag="image-segmentation",
        tags=[
            about.method.lower(),
            "rein-hf",
            *reversed(about.model_types),
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
        backbone=facts.backbone["id"] or facts.backbone["name"],
        backbone_license=facts.backbone["license"],
        size=f"{about.bytes / 1e6:.1f} MB",
        sample=sample,
        scores=scores,
        on_hub=is_hub_id(facts.backbone["id"]),
        crop=about.crop,
        classes=classes,
        method=about.method,
        what=METHODS.get(about.method, f"{about.method} is a method of [peft](https://github.com/huggingface/peft)."),
        settings=about.settings
        or f"{about.num_tokens} tokens per block, {rank}, {'linked to' if about.linked else 'beside'} the queries",
        parameters=f"{about.rein_parameters:,} of {about.method}, {about.head_parameters:,} of the head",
        results=[
            {
                "name": facts.domains[domain]["name"],
                "description": " ".join(filter(None, [facts.domains[domain]["description"], found.get("how")])),
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
