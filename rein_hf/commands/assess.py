"""Compares ways of tuning as the paper does, in one command: all backbones, tunings and seeds on all targets.

    rein-hf assess --assessment streets --output_dir OUT/assess

A cell is one backbone, tuning and seed: a training run of `rein-hf train` and its evaluation. Its numbers are
written to `OUTPUT_DIR/cells/NAME.json`. After each cell the table (`table.md`) and the figure (`figure.png`: mIoU over
the number of parameters trained in the backbone) are written again. The same command continues an interrupted
assessment; cells of another recipe or of other targets are refused. It also runs under `accelerate launch`, with all
processes at one cell.

An assessment is a YAML file:

    recipe: recipes/configs/streets_demo-vit_256.yaml
    backbones: {demo-vit: recipes/demo/vit}            # name: the recipe's `backbone`, or a dictionary of its keys
    tunings: {frozen: frozen, rein: rein, lora: lora}  # name: the recipe's `tuning`, or a dictionary of its keys
    seeds: [0, 1]
    targets: [streets=DATA/streets@held_out, camvid=DATA/camvid]
    only: {lora: [demo-vit]}                           # may be left out: tunings that some backbones alone have
"""

from __future__ import annotations

import itertools
import json
import math
import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
import yaml
from accelerate import PartialState
from transformers import AutoImageProcessor, TrainingArguments

import rein_hf

from ..backbone import backbone_of
from ..data import load_domains
from ..evaluation import Results, accelerator_for, evaluate_domain, move_to
from ..files import atomic_write, read_yaml
from ..training import RecipeArguments, config_fixed_on_resume
from ..training.checkpoints import diff_config
from ..views.plots import plot_assessment
from . import train
from .cli import run
from .shipped import find_shipped


KEYS = {"recipe": str, "backbones": dict, "tunings": dict, "seeds": list, "targets": list}
OPTIONAL_KEYS = {"only": dict}


@dataclass
class AssessmentArguments:
    assessment: str = field(metadata={"help": "YAML file, or the name of one that comes with the package; see above."})
    output_dir: str = field(metadata={"help": "Folder for runs, cells, table and figure."})


def main(args: AssessmentArguments) -> list[dict]:
    """Trains and evaluates all cells that are not there yet, and returns the numbers of all."""
    plan, output_dir, cells = read_plan(find_shipped("assessments", args.assessment)), Path(args.output_dir), []
    # seed by seed, so that the cells of an unfinished assessment can be compared
    for seed, (backbone, tuning) in itertools.product(plan["seeds"], cells_of(plan)):
        name = f"{backbone}_{tuning}_seed{seed}"
        arguments = cell_recipe(plan, backbone, tuning, seed, output_dir / "runs" / name)
        cell = run_cell(output_dir / "cells" / f"{name}.json", plan["targets"], *arguments)
        cells.append({"backbone": backbone, "tuning": tuning, "seed": seed, **cell})
        if PartialState().is_main_process:
            text = results_table(cells)
            with atomic_write(output_dir / "table.md") as partial:
                partial.write_text(text + "\n", encoding="utf-8")
            plot_assessment(figure_points(cells), "average mIoU (%)", output_dir / "figure.png")
            print(text)
    return cells


def read_plan(path: str | Path) -> dict:
    """Reads an assessment's YAML file.

    Raises:
        ValueError: a key is missing or unknown, or its value has another type; `only` names a tuning or a backbone
            that is not there.
    """
    plan = read_yaml(path)
    if plan.keys() - OPTIONAL_KEYS.keys() != KEYS.keys():
        raise ValueError(f"{path} has {list(plan)}; expected the keys {sorted(KEYS)}, and perhaps only.")
    for key, kind in (KEYS | OPTIONAL_KEYS).items():
        if key in plan and (not isinstance(plan[key], kind) or not plan[key]):
            raise ValueError(f"{path}: {key} is {plan[key]!r}; expected a {kind.__name__} that is not empty.")
    for tuning, backbones in plan.get("only", {}).items():
        if tuning not in plan["tunings"]:
            raise ValueError(f"{path}: only names the tuning {tuning!r}; expected one of {list(plan['tunings'])}.")
        if not isinstance(backbones, list) or not backbones or not set(backbones) <= plan["backbones"].keys():
            raise ValueError(f"{path}: only.{tuning} is {backbones!r}; expected some of {list(plan['backbones'])}.")
    return plan


def cells_of(plan: dict) -> list[tuple[str, str]]:
    """The backbones with their tunings: each with each, but for those that `only` names some backbones for."""
    only = plan.get("only", {})
    return [
        (backbone, tuning)
        for backbone, tuning in itertools.product(plan["backbones"], plan["tunings"])
        if backbone in only.get(tuning, plan["backbones"])
    ]


def cell_recipe(
    plan: dict, backbone: str, tuning: str, seed: int, run: Path
) -> tuple[RecipeArguments, TrainingArguments]:
    """The recipe of one cell, which is trained in the folder `run`."""
    # each target is evaluated in full afterwards
    keys = {"seed": seed, "output_dir": str(run), "eval_strategy": "no"}
    for key, value in (("backbone", plan["backbones"][backbone]), ("tuning", plan["tunings"][tuning])):
        keys |= value if isinstance(value, dict) else {key: value}
    return train.parse([plan["recipe"], *(part for key in keys for part in (f"--{key}", yaml.safe_dump(keys[key])))])


def run_cell(path: Path, targets: list[str], recipe: RecipeArguments, training: TrainingArguments) -> dict:
    """Trains and evaluates one cell, or reads its numbers from the file `path` that an earlier run has left.

    Returns:
        `trained`, the number of parameters trained in the backbone, and `scores`, the mIoU from 0 to 1 by target.

    Raises:
        ValueError: the file is of another recipe or of other targets; two targets have the same name.
    """
    cell = {**config_fixed_on_resume(recipe, training), "targets": targets}
    cell = {key: json.dumps(value) for key, value in cell.items()}  # as text, since Results reads a null as NaN
    results = Results(path, resume=True, writes=training.process_index == 0)
    if results.has("scores") and (changed := diff_config(results.values.get("of", {}), cell)):
        raise ValueError(f"{path} is of another cell: {changed}. Take another --output_dir, or remove the file.")
    if not results.has("scores"):
        domains = load_domains(targets, "targets")  # before hours of training
        train.main(recipe, training)
        trained = trained_in_backbone(train.build_model(recipe, id2label={0: "any"}))
        accelerator = accelerator_for(training.mixed_precision)
        model = move_to(accelerator, rein_hf.from_pretrained(training.output_dir))
        processor, scores = AutoImageProcessor.from_pretrained(training.output_dir), {}
        for domain in domains:
            metric = evaluate_domain(model, processor, domain, accelerator)[domain.name]
            scores[domain.name] = metric.compute()["mean_iou"]
        results.put({"of": cell, "trained": trained, "scores": scores})
    return {key: results.values[key] for key in ("trained", "scores")}


def trained_in_backbone(model: torch.nn.Module) -> int:
    """The number of parameters trained in the backbone, without the head's, which all tunings train alike."""
    return sum(parameter.numel() for parameter in backbone_of(model).parameters() if parameter.requires_grad)


def mean_over_seeds(cells: list[dict]) -> list[dict]:
    """The cells of each backbone and tuning as one: the means over the seeds of each score and of the average over the
    targets, and that average of each seed."""
    means, groups = [], {}
    for cell in cells:
        groups.setdefault((cell["backbone"], cell["tuning"]), []).append(cell)
    for key, group in groups.items():
        scores = {name: math.fsum(c["scores"][name] for c in group) / len(group) for name in group[0]["scores"]}
        averages = [math.fsum(cell["scores"].values()) / len(cell["scores"]) for cell in group]
        means.append(
            {
                "backbone": key[0],
                "tuning": key[1],
                "trained": group[0]["trained"],
                "scores": scores,
                "average": math.fsum(averages) / len(averages),
                "averages": averages,
            }
        )
    return means


def results_table(cells: list[dict]) -> str:
    """mIoU in percent as markdown: a row for each backbone and tuning, a column for each target, and the average over
    the targets, followed by that of each seed if there are several."""
    targets, means = list(cells[0]["scores"]), mean_over_seeds(cells)
    lines = ["| " + " | ".join(["backbone", "tuning", "trained in it", *targets, "average"]) + " |"]
    lines.append("|---" * (4 + len(targets)) + "|")
    for row in means:
        seeds = ", ".join(f"{100 * value:.1f}" for value in row["averages"])
        average = f"{100 * row['average']:.1f}" + (f" ({seeds})" if len(row["averages"]) > 1 else "")
        scores = [f"{100 * row['scores'][target]:.1f}" for target in targets]
        lines.append(
            "| " + " | ".join([row["backbone"], row["tuning"], f"{row['trained']:,}", *scores, average]) + " |"
        )
    return "\n".join(lines)


def figure_points(cells: list[dict]) -> list[dict]:
    """What [`plot_assessment`] draws of each backbone and tuning."""
    return [
        {
            "group": row["backbone"],
            "name": row["tuning"],
            "x": row["trained"],
            "ys": [100 * y for y in row["averages"]],
        }
        for row in mean_over_seeds(cells)
    ]


if __name__ == "__main__":
    sys.exit(run("assess"))
