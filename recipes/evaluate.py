"""Evaluates segmenters on domains they have not seen: sliding windows, one confusion matrix per domain.

    python recipes/evaluate.py --models OUT/rein OUT/frozen --domains camvid=DATA/camvid@test --output_dir EVAL
    python recipes/evaluate.py --models OUT/rein --domains cityscapes:DATA/cityscapes@val --corruptions all ...

Writes `results.json`, a confusion matrix per model and domain, the IoU per class of all models per domain and a
contact sheet (image, truth, each model); with `--corruptions` also `robustness.json` and curves over the severities.
Runs under `accelerate launch` too. `--resume true` keeps what an interrupted run has already measured. Protocol: paper
section 4.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image
from transformers import AutoImageProcessor, HfArgumentParser

import rein_hf
from rein_hf.data import CORRUPTIONS, Domain, corrupt, load_domain
from rein_hf.evaluation import Results, accelerator_for, evaluate_domain, evenly_spaced_samples, predict_sample
from rein_hf.labels import SUBSETS
from rein_hf.views import colorize, contact_sheet, save_picture
from rein_hf.views.plots import plot_confusion, plot_iou, plot_robustness


FEW_GROUPS = 6


@dataclass
class EvaluationArguments:
    models: list[str] = field(metadata={"help": "Adapters or whole segmenters: folders or Hub ids."})
    domains: list[str] = field(metadata={"help": "[NAME=][LAYOUT:]PATH[@SPLIT][#OPTION=VALUE], see rein_hf.data."})
    output_dir: str = field(metadata={"help": "Where results and pictures go."})
    backbone: str | None = field(default=None, metadata={"help": "Backbone instead of the one an adapter names."})
    crop: int | None = field(default=None, metadata={"help": "Window in pixels; default: the model's training crop."})
    stride: int | None = field(default=None, metadata={"help": "Step between windows; default: 2/3 of the window."})
    limit: int | None = field(default=None, metadata={"help": "Evaluate this many images of each domain, spread out."})
    scored: str | None = field(default=None, metadata={"help": f"Mean over a subset: {' or '.join(SUBSETS)}."})
    corruptions: list[str] | None = field(default=None, metadata={"help": "all, or some of rein_hf.data.corruptions."})
    severities: list[int] = field(default_factory=lambda: [1, 2, 3, 4, 5], metadata={"help": "Of the corruptions."})
    seed: int = field(default=0, metadata={"help": "Of the corruptions' chance."})
    bf16: bool = field(default=False, metadata={"help": "Autocast to bfloat16."})
    sheet_rows: int = field(default=3, metadata={"help": "Images of each domain on the contact sheet; 0 for none."})
    resume: bool = field(default=False, metadata={"help": "Keep the results that output_dir holds."})


def main(args: EvaluationArguments) -> dict:
    accelerator = accelerator_for("bf16" if args.bf16 else "no")
    domains = load_domains(args)
    names, corruptions, output_dir = short_names(args.models), chosen_corruptions(args), Path(args.output_dir)
    results = Results(output_dir / "results.json", args.resume, accelerator.is_main_process)
    robustness = Results(output_dir / "robustness.json", args.resume, accelerator.is_main_process)
    pictures = {domain.name: [] for domain in domains}
    for path in args.models:
        model = rein_hf.from_pretrained(path, backbone=args.backbone).to(accelerator.device)
        processor = AutoImageProcessor.from_pretrained(path)

        def evaluate(domain: Domain, alter=None, model=model, processor=processor) -> dict:
            windows = (args.crop, args.stride, args.limit)
            found = evaluate_domain(model, processor, domain, accelerator, *windows, alter=alter)
            return {
                name: metric.compute() | {"confusion": metric.confusion.tolist()} for name, metric in found.items()
            }

        for domain in domains:
            if not results.has(path, domain.name):
                results.put(evaluate(domain), path)
            for corruption in corruptions:
                for severity in map(str, args.severities):
                    if not robustness.has(path, domain.name, corruption, severity):
                        scores = evaluate(domain, corruption_transform(corruption, int(severity), args.seed))[
                            domain.name
                        ]
                        robustness.put({severity: scores["mean_iou"]}, path, domain.name, corruption)
            if accelerator.is_main_process:
                samples = evenly_spaced_samples(domain, args.sheet_rows)
                with accelerator.autocast():
                    found = [
                        predict_sample(model, processor, domain, s["image"], args.crop, args.stride) for s in samples
                    ]
                pictures[domain.name].append(found)
    if accelerator.is_main_process:
        draw_report(results.values, domains, pictures, names, output_dir)
        print(results_table(results.values, names, [domain.name for domain in domains]))
        if corruptions:
            for domain in domains:
                curves = {name: robustness.values[path][domain.name] for path, name in names.items()}
                clean = {name: results.values[path][domain.name]["mean_iou"] for path, name in names.items()}
                plot_robustness(curves, clean, domain.name, output_dir / f"robustness_{domain.name}.png")
                print(robustness_table(curves, clean, domain.name))
    return results.values


def load_domains(args: EvaluationArguments) -> list[Domain]:
    domains = [load_domain(spec) for spec in args.domains]
    names = [domain.name for domain in domains]
    if len(set(names)) < len(names):
        raise ValueError(f"--domains have the names {names}; expected different ones, see NAME= in NAME=FOLDER@SPLIT.")
    if args.scored is None:
        return domains
    if args.scored not in SUBSETS:
        raise ValueError(f"--scored is {args.scored!r}; expected one of {', '.join(SUBSETS)}.")
    for domain in domains:
        if lacking := set(SUBSETS[args.scored]) - set(domain.classes):
            raise ValueError(f"--scored {args.scored} has the classes {sorted(lacking)}; {domain.name} has not.")
    return [replace(domain, scored=SUBSETS[args.scored]) for domain in domains]


def chosen_corruptions(args: EvaluationArguments) -> list[str]:
    chosen = list(CORRUPTIONS) if args.corruptions == ["all"] else args.corruptions or []
    if unknown := set(chosen) - CORRUPTIONS.keys():
        raise ValueError(f"--corruptions has {sorted(unknown)}; expected all, or some of {', '.join(CORRUPTIONS)}.")
    if not set(args.severities) <= {1, 2, 3, 4, 5}:
        raise ValueError(f"--severities is {args.severities}; expected numbers from 1 to 5.")
    return chosen


def corruption_transform(corruption: str, severity: int, seed: int) -> Callable[[Image.Image, str], Image.Image]:
    """The corruption of an image; its chance depends on the seed and the image's name alone."""

    def alter(image: Image.Image, name: str) -> Image.Image:
        key = [seed, zlib.crc32(name.encode()), list(CORRUPTIONS).index(corruption), severity]
        return corrupt(image, corruption, severity, np.random.default_rng(key))

    return alter


def draw_report(results: dict, domains: list[Domain], pictures: dict, names: dict[str, str], output_dir: Path) -> None:
    """Confusion matrices, IoU per class and the contact sheet of the models in `names` (path -> name)."""
    rows = []
    for domain in domains:
        for path, name in names.items():
            confusion = np.array(results[path][domain.name]["confusion"])
            file = f"confusion_{name}_{domain.name}.png".replace("/", "_")
            plot_confusion(confusion, domain.classes, f"{name} on {domain.name}", output_dir / file)
        scored = domain.scored or domain.classes
        iou = {name: results[path][domain.name]["per_class_iou"] for path, name in names.items()}
        per_class = {name: {label: iou[name][label] for label in scored} for name in iou}
        plot_iou(per_class, domain.name, output_dir / f"iou_{domain.name}.png")
        for sample, *labels in zip(*predictions_beside(domain, pictures[domain.name]), strict=True):
            cells = [colorize(np.asarray(label), domain.palette) for label in (sample["label"], *labels)]
            rows.append((f"{sample['domain']} {sample['name']}", [sample["image"], *cells]))
    if rows:
        save_picture(contact_sheet(rows, ["image", "truth", *names.values()]), output_dir / "contact_sheet.png")


def predictions_beside(domain: Domain, predictions: list[list[np.ndarray]]) -> list[list]:
    """The samples of the contact sheet, and what each model found in them."""
    return [evenly_spaced_samples(domain, len(predictions[0])), *predictions]


def short_names(paths: list[str]) -> dict[str, str]:
    """The shortest ends of the paths that tell them apart."""
    for depth in range(1, max(len(Path(path).parts) for path in paths) + 1):
        names = {path: "/".join(Path(path).parts[-depth:]) for path in paths}
        if len(set(names.values())) == len(paths):
            return names
    raise ValueError(f"The same model is given twice: {paths}.")


def results_table(results: dict, names: dict[str, str], domains: list[str]) -> str:
    """mIoU in percent of every model (rows) on every domain (columns) and its unweighted mean over them, as markdown;
    groups of images too, where a domain has a few of them. results.json has all."""
    columns = list(dict.fromkeys(group for path in names for group in results[path]))
    columns = [column for column in columns if column.partition("/")[0] in domains]
    count = Counter(column.partition("/")[0] for column in columns)
    groups = [column for column in columns if "/" not in column or count[column.partition("/")[0]] <= 1 + FEW_GROUPS]
    average = ["average"] if len(domains) > 1 else []
    lines = ["| mIoU | " + " | ".join([*groups, *average]) + " |"]
    lines.append("|---" * (len(groups) + len(average) + 1) + "|")
    for path, name in names.items():
        scores = [results[path][group]["mean_iou"] for group in groups]
        scores += [np.mean([results[path][domain]["mean_iou"] for domain in domains]) for _ in average]
        lines.append(f"| {name} | " + " | ".join(f"{100 * score:.2f}" for score in scores) + " |")
    return "\n".join(lines)


def robustness_table(curves: dict, clean: dict[str, float], title: str) -> str:
    """mIoU in percent of every model: clean, mean over all corruptions and severities, and that by family."""
    families = list(dict.fromkeys(CORRUPTIONS[name] for name in next(iter(curves.values()))))
    lines = ["| " + " | ".join([f"mIoU on {title}", "clean", "corrupted", *families]) + " |"]
    lines.append("|---" * (3 + len(families)) + "|")
    for model, curve in curves.items():
        values = {name: np.mean(list(severities.values())) for name, severities in curve.items()}
        means = [np.mean([values[name] for name in values if CORRUPTIONS[name] == family]) for family in families]
        scores = [clean[model], np.mean(list(values.values())), *means]
        lines.append(f"| {model} | " + " | ".join(f"{100 * score:.2f}" for score in scores) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main(*HfArgumentParser(EvaluationArguments).parse_args_into_dataclasses())
