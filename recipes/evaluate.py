"""Evaluates segmenters on domains they have not seen: sliding windows, one confusion matrix per domain.

    python recipes/evaluate.py --models OUT/rein OUT/frozen --domains camvid=DATA/camvid@test --output_dir EVAL

Writes `results.json`, a confusion matrix per model and domain, the IoU per class of all models per domain and a
contact sheet (image, truth, each model). Runs under `accelerate launch` too. Protocol: paper section 4.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from accelerate import Accelerator
from transformers import AutoImageProcessor, HfArgumentParser

import rein_hf
from rein_hf.data import Domain, load_domain
from rein_hf.evaluation import evaluate_domain, predict, spread
from rein_hf.pictures import colorize, contact_sheet, plot_confusion, plot_iou


FEW_GROUPS = 6


@dataclass
class EvaluationArguments:
    models: list[str] = field(metadata={"help": "Adapters or whole segmenters: folders or Hub ids."})
    domains: list[str] = field(metadata={"help": "[NAME=]FOLDER[@SPLIT], see rein_hf.data."})
    output_dir: str = field(metadata={"help": "Where results and pictures go."})
    backbone: str | None = field(default=None, metadata={"help": "Backbone instead of the one an adapter names."})
    crop: int | None = field(default=None, metadata={"help": "Window in pixels; default: the model's training crop."})
    stride: int | None = field(default=None, metadata={"help": "Step between windows; default: 2/3 of the window."})
    limit: int | None = field(default=None, metadata={"help": "Evaluate this many images of each domain, spread out."})
    bf16: bool = field(default=False, metadata={"help": "Autocast to bfloat16."})
    sheet_rows: int = field(default=3, metadata={"help": "Images of each domain on the contact sheet; 0 for none."})


def main(args: EvaluationArguments) -> dict:
    accelerator = Accelerator(mixed_precision="bf16" if args.bf16 else "no")
    domains = [load_domain(spec) for spec in args.domains]
    names = [domain.name for domain in domains]
    if len(set(names)) < len(names):
        raise ValueError(f"--domains have the names {names}; expected different ones, see NAME= in NAME=FOLDER@SPLIT.")
    model_names(args.models)  # refuses the same one twice
    results, pictures = {}, {}
    for path in args.models:
        model = rein_hf.from_pretrained(path, backbone=args.backbone).to(accelerator.device)
        processor = AutoImageProcessor.from_pretrained(path)
        for domain in domains:
            metrics = evaluate_domain(model, processor, domain, accelerator, args.crop, args.stride, args.limit)
            results.setdefault(domain.name, {})[path] = metrics
            if accelerator.is_main_process:
                for index in spread(len(domain.dataset), args.sheet_rows):
                    image = domain.dataset[index]["image"]
                    with accelerator.autocast():
                        label = predict(model, processor, domain, image, args.crop, args.stride)
                    pictures.setdefault((domain.name, index), []).append(label)
    if accelerator.is_main_process:
        report = write_report(results, domains, pictures, Path(args.output_dir))
        print(table(report))
        return report
    return {}


def write_report(results, domains: list[Domain], pictures, output_dir: Path) -> dict:
    """results.json and the pictures; returns what results.json holds, where null stands for nan."""
    output_dir.mkdir(parents=True, exist_ok=True)
    report = {}
    names = model_names(list(next(iter(results.values()))))
    for domain in domains:
        for path, metrics in results[domain.name].items():
            for group, metric in metrics.items():
                scores = {**metric.compute(), "confusion": metric.confusion.tolist()}
                report.setdefault(path, {})[group] = scores
            file = f"confusion_{names[path]}_{domain.name}.png".replace("/", "_")
            plot_confusion(
                metrics[domain.name].confusion, domain.classes, f"{names[path]} on {domain.name}", output_dir / file
            )
        per_class = {names[path]: report[path][domain.name]["per_class_iou"] for path in report}
        plot_iou(per_class, domain.name, output_dir / f"iou_{domain.name}.png".replace("/", "_"))
    if pictures:
        rows = []
        for domain in domains:
            for index in (index for name, index in pictures if name == domain.name):
                sample = domain.dataset[index]
                labels = [np.asarray(sample["label"]), *pictures[domain.name, index]]
                cells = [sample["image"], *(colorize(label, domain.palette) for label in labels)]
                rows.append((f"{sample['domain']} {sample['name']}", cells))
        contact_sheet(rows, ["image", "truth", *names.values()]).save(output_dir / "contact_sheet.png")
    partial = output_dir / "results.json.partial"
    partial.write_text(json.dumps(without_nan(report), indent=1, allow_nan=False))
    partial.replace(output_dir / "results.json")
    return report


def without_nan(value):
    """None for every nan in a dictionary: JSON has no number for what was not counted."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    return None if isinstance(value, float) and np.isnan(value) else value


def model_names(paths: list[str]) -> dict[str, str]:
    """The shortest ends of the paths that tell them apart."""
    for depth in range(1, max(len(Path(path).parts) for path in paths) + 1):
        names = {path: "/".join(Path(path).parts[-depth:]) for path in paths}
        if len(set(names.values())) == len(paths):
            return names
    raise ValueError(f"The same model is given twice: {paths}.")


def table(report: dict) -> str:
    """mIoU in percent of every model (rows) on every domain (columns), as markdown; groups of images too, where a
    domain has a few of them. results.json has all."""
    columns = list(dict.fromkeys(group for scores in report.values() for group in scores))
    count = Counter(column.partition("/")[0] for column in columns)
    groups = [column for column in columns if "/" not in column or count[column.partition("/")[0]] <= 1 + FEW_GROUPS]
    lines = ["| mIoU | " + " | ".join(groups) + " |", "|---" * (len(groups) + 1) + "|"]
    for path, name in model_names(list(report)).items():
        cells = [f"{100 * report[path][group]['mean_iou']:.2f}" for group in groups]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main(*HfArgumentParser(EvaluationArguments).parse_args_into_dataclasses())
