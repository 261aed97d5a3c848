"""The paper's comparison in one command: every backbone, tuned in every way, with every seed, on every target.

    python -m recipes.assess --assessment recipes/assessments/streets.yaml --output_dir OUT/assess

A cell is one training run of `recipes/train.py` and its evaluation. Its numbers go to `OUTPUT_DIR/cells/NAME.json`;
after each the table (`table.md`) and the figure (`figure.png`: mIoU over the parameters trained in the backbone) are
drawn anew. Run again, it goes on where it was. Runs under `accelerate launch` too, all processes at one cell.

An assessment is a YAML file:

    recipe: recipes/configs/streets_demo-vit_256.yaml
    backbones: {demo-vit: recipes/demo/vit}            # name: the recipe's `backbone`, or a dictionary of its keys
    tunings: {frozen: frozen, rein: rein, lora: lora}  # name: the recipe's `tuning`, or a dictionary of its keys
    seeds: [0, 1]
    targets: [streets=DATA/streets@held_out, camvid=DATA/camvid]
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from pathlib import Path

import torch
import yaml
from accelerate import Accelerator
from transformers import AutoImageProcessor, HfArgumentParser

import rein_hf
from recipes import train
from rein_hf.backbone import backbone_of
from rein_hf.data import load_domain
from rein_hf.evaluation import evaluate_domain
from rein_hf.plots import plot_assessment
from rein_hf.results import Results
from rein_hf.yaml_file import read_yaml


KEYS = {"recipe": str, "backbones": dict, "tunings": dict, "seeds": list, "targets": list}


@dataclass
class AssessmentArguments:
    assessment: str = field(metadata={"help": "YAML file, see the top of this file."})
    output_dir: str = field(metadata={"help": "Where runs, cells, table and figure go."})


def main(args: AssessmentArguments) -> list[dict]:
    """The numbers of all cells."""
    plan, output_dir, cells = read_plan(args.assessment), Path(args.output_dir), []
    # seed by seed: what there is of an unfinished grid can be compared
    for seed, backbone, tuning in itertools.product(plan["seeds"], plan["backbones"], plan["tunings"]):
        name = f"{backbone}_{tuning}_seed{seed}"
        keys = as_keys("backbone", plan["backbones"][backbone]) | as_keys("tuning", plan["tunings"][tuning])
        cell = run_cell(name, plan, {**keys, "seed": seed}, output_dir)
        cells.append({"backbone": backbone, "tuning": tuning, "seed": seed, **cell})
        if Accelerator().is_main_process:
            text = table(cells)
            (output_dir / "table.md").write_text(text + "\n")
            plot_assessment(points(cells), "average mIoU (%)", output_dir / "figure.png")
            print(text)
    return cells


def read_plan(path: str) -> dict:
    """The assessment in a YAML file.

    Raises:
        ValueError: a key is missing, unknown or of another kind.
    """
    plan = read_yaml(path)
    if plan.keys() != KEYS.keys():
        raise ValueError(f"{path} has {list(plan)}; expected the keys {sorted(KEYS)}.")
    for key, kind in KEYS.items():
        if not isinstance(plan[key], kind) or not plan[key]:
            raise ValueError(f"{path}: {key} is {plan[key]!r}; expected a {kind.__name__} that is not empty.")
    return plan


def as_keys(key: str, value: str | dict) -> dict:
    return value if isinstance(value, dict) else {key: value}


def run_cell(name: str, plan: dict, keys: dict, output_dir: Path) -> dict:
    """Train and evaluate one cell, or read what an earlier run has left of it: `trained` parameters of the backbone
    and mIoU by target as `scores`."""
    results = Results(output_dir / "cells" / f"{name}.json", resume=True, writes=Accelerator().is_main_process)
    if not results.has("scores"):
        run = output_dir / "runs" / name
        overrides = {**keys, "output_dir": str(run)}
        argv = [part for key, value in overrides.items() for part in (f"--{key}", yaml.safe_dump(value))]
        recipe, training = train.parse([plan["recipe"], *argv])
        train.main(recipe, training)
        trained = trained_in_backbone(train.build_model(recipe, id2label={0: "any"}))
        accelerator = Accelerator(mixed_precision=training.mixed_precision)
        model = rein_hf.from_pretrained(run).to(accelerator.device)
        processor, scores = AutoImageProcessor.from_pretrained(run), {}
        for domain in map(load_domain, plan["targets"]):
            metric = evaluate_domain(model, processor, domain, accelerator)[domain.name]
            scores[domain.name] = metric.compute()["mean_iou"]
        results.put({"trained": trained, "scores": scores})
    return results.values


def trained_in_backbone(model: torch.nn.Module) -> int:
    """Parameters that train in the backbone; those of the head, which trains in all ways alike, do not count."""
    return sum(parameter.numel() for parameter in backbone_of(model).parameters() if parameter.requires_grad)


def rows(cells: list[dict]) -> list[dict]:
    """The cells of one backbone and tuning together: mean over the seeds of each score and of their average, and the
    average of each seed."""
    found = []
    groups = {}
    for cell in cells:
        groups.setdefault((cell["backbone"], cell["tuning"]), []).append(cell)
    for key, group in groups.items():
        scores = {name: math.fsum(c["scores"][name] for c in group) / len(group) for name in group[0]["scores"]}
        averages = [math.fsum(cell["scores"].values()) / len(cell["scores"]) for cell in group]
        found.append(
            {
                "backbone": key[0],
                "tuning": key[1],
                "trained": group[0]["trained"],
                "scores": scores,
                "average": math.fsum(averages) / len(averages),
                "averages": averages,
            }
        )
    return found


def table(cells: list[dict]) -> str:
    """mIoU in percent as markdown: a row for each backbone and tuning, a column for each target, and their average,
    followed by that of each seed where there are several."""
    targets, summed = list(cells[0]["scores"]), rows(cells)
    lines = ["| " + " | ".join(["backbone", "tuning", "trained in it", *targets, "average"]) + " |"]
    lines.append("|---" * (4 + len(targets)) + "|")
    for row in summed:
        seeds = ", ".join(f"{100 * value:.1f}" for value in row["averages"])
        average = f"{100 * row['average']:.1f}" + (f" ({seeds})" if len(row["averages"]) > 1 else "")
        scores = [f"{100 * row['scores'][target]:.1f}" for target in targets]
        lines.append(
            "| " + " | ".join([row["backbone"], row["tuning"], f"{row['trained']:,}", *scores, average]) + " |"
        )
    return "\n".join(lines)


def points(cells: list[dict]) -> list[dict]:
    """What [`plot_assessment`] draws."""
    return [
        {
            "group": row["backbone"],
            "name": row["tuning"],
            "x": row["trained"],
            "ys": [100 * y for y in row["averages"]],
        }
        for row in rows(cells)
    ]


if __name__ == "__main__":
    main(*HfArgumentParser(AssessmentArguments).parse_args_into_dataclasses())
