"""Evaluates segmenters on domains that they were not trained on: sliding windows, a confusion matrix for each domain.

    rein-hf evaluate --model OUT/rein OUT/frozen --domains camvid=DATA/camvid@test --output_dir EVAL
    rein-hf evaluate --model OUT/rein --domains cityscapes:DATA/cityscapes@val --corruptions all ...

Prints the IoU of each class and the mean for each domain; a class of which the truth has no pixel is `absent`. Writes
`results.json`, plots (a confusion matrix for each model and domain, the IoU of each class for each domain) and
a contact sheet (image, truth, the label map of each model). With `--corruptions` also `robustness.json` and curves
over the severities. Runs under `accelerate launch` too. `--resume true` keeps what an interrupted run has measured
already. Protocol: paper section 4.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from transformers import AutoImageProcessor

import rein_hf

from ..data import CORRUPTIONS, Domain, corrupt, load_domains
from ..evaluation import (
    Results,
    accelerator_for,
    evaluate_domain,
    evenly_spaced_samples,
    move_to,
    origin_of,
    predict_sample,
    weights_checksum,
)
from ..inference import window_sides
from ..labels import SUBSETS, class_names_of
from ..views import colorize, contact_sheet, legend_of, merge_legends, save_picture
from ..views.plots import plot_confusion, plot_iou, plot_robustness
from .cli import require_at_least, run
from .evaluate_tables import class_table, results_table, robustness_table


@dataclass
class EvaluationArguments:
    model: list[str] = field(
        metadata={"help": "Adapters or whole segmenters: folders or Hub ids.", "aliases": ["--models"]}
    )
    domains: list[str] = field(metadata={"help": "[NAME=][LAYOUT:]PATH[@SPLIT][#OPTION=VALUE], see rein_hf.data."})
    output_dir: str = field(metadata={"help": "Where results and pictures go."})
    backbone: str | None = field(default=None, metadata={"help": "Backbone instead of the one an adapter names."})
    crop: int | None = field(default=None, metadata={"help": "Window in pixels; default: the model's training crop."})
    stride: int | None = field(default=None, metadata={"help": "Step between windows; default: 2/3 of the window."})
    limit: int | None = field(default=None, metadata={"help": "Evaluate this many images of each domain, spread out."})
    scored: str | None = field(default=None, metadata={"help": f"Mean over a subset: {' or '.join(SUBSETS)}."})
    corruptions: list[str] | None = field(default=None, metadata={"help": "all, or some of rein_hf.data.corruptions."})
    severities: list[int] | None = field(default=None, metadata={"help": "Of corruptions: all of 1 to 5 by default."})
    seed: int | None = field(default=None, metadata={"help": "Of the corruptions' random numbers; 0 by default."})
    bf16: bool = field(default=False, metadata={"help": "Autocast to bfloat16."})
    compile: bool = field(default=False, metadata={"help": "torch.compile the model: pays off for many images."})
    cuda_graphs: bool = field(default=False, metadata={"help": "Launch all kernels at once: fast for one image."})
    sheet_rows: int = field(default=3, metadata={"help": "Images of each domain on the contact sheet; 0 for none."})
    resume: bool = field(default=False, metadata={"help": "Keep the results that output_dir holds."})


def main(args: EvaluationArguments) -> dict:
    accelerator = accelerator_for("bf16" if args.bf16 else "no")
    require_at_least(args, limit=1, sheet_rows=0, crop=1, stride=1)
    names, (corruptions, severities) = short_names(args.model), chosen_corruptions(args)
    domains, output_dir = scored_domains(args), Path(args.output_dir)
    confusion_files(names, [domain.name for domain in domains])
    results = Results(output_dir / "results.json", args.resume, accelerator.is_main_process)
    robustness = Results(output_dir / "robustness.json", args.resume, accelerator.is_main_process)
    settings = {key: getattr(args, key) for key in ("backbone", "crop", "stride", "limit", "scored", "bf16")}
    settings.update(seed=args.seed or None, compile=args.compile or None, cuda_graphs=args.cuda_graphs or None)
    written = Results(output_dir / "settings.json", args.resume, accelerator.is_main_process)
    origins = {domain.name: origin_of(domain, spec) for domain, spec in zip(domains, args.domains, strict=True)}
    pictures = {domain.name: [] for domain in domains}
    for path in args.model:
        model = rein_hf.from_pretrained(path, backbone=args.backbone)
        class_names_of(model.config.id2label, f"--model {path}: id2label")
        window_sides(model, args.crop, args.stride)
        written.put_settings(settings)
        written.put_origins("models", {path: {"weights": weights_checksum(model)}})
        written.put_origins("domains", origins)
        model = move_to(accelerator, model, args.compile, args.cuda_graphs)
        processor = AutoImageProcessor.from_pretrained(path)

        def evaluate(domain: Domain, transform=None, model=model, processor=processor) -> dict:
            windows = (args.crop, args.stride, args.limit)
            found = evaluate_domain(model, processor, domain, accelerator, *windows, transform=transform)
            return {
                name: metric.compute() | {"confusion": metric.confusion.tolist()} for name, metric in found.items()
            }

        for domain in domains:
            if not results.has(path, domain.name):
                results.put(evaluate(domain), path)
            for corruption in corruptions:
                for severity in map(str, severities):
                    if not robustness.has(path, domain.name, corruption, severity):
                        transform = corruption_transform(corruption, int(severity), args.seed or 0)
                        scores = evaluate(domain, transform)[domain.name]
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
        for domain in domains:
            print(class_table(results.values, names, domain.name, domain.scored or domain.classes) + "\n")
        print(results_table(results.values, names, [domain.name for domain in domains]))
        if corruptions:
            for domain in domains:
                measured = {name: robustness.values[path][domain.name] for path, name in names.items()}
                curves = {  # an earlier run may have measured others too
                    name: {c: {str(s): of[c][str(s)] for s in severities} for c in corruptions}
                    for name, of in measured.items()
                }
                clean = {name: results.values[path][domain.name]["mean_iou"] for path, name in names.items()}
                plot_robustness(curves, clean, domain.name, output_dir / f"robustness_{domain.name}.png")
                print(robustness_table(curves, clean, domain.name))
    return results.values


def scored_domains(args: EvaluationArguments) -> list[Domain]:
    domains = load_domains(args.domains, "--domains")
    if args.scored is None:
        return domains
    if args.scored not in SUBSETS:
        raise ValueError(f"--scored is {args.scored!r}; expected one of {', '.join(SUBSETS)}.")
    for domain in domains:
        if lacking := set(SUBSETS[args.scored]) - set(domain.classes):
            raise ValueError(f"--scored {args.scored} has the classes {sorted(lacking)}; {domain.name} has not.")
    return [replace(domain, scored=SUBSETS[args.scored]) for domain in domains]


def chosen_corruptions(args: EvaluationArguments) -> tuple[list[str], list[int]]:
    """Names of corruptions, and severities."""
    if not args.corruptions:
        for option in ("severities", "seed"):
            if getattr(args, option) is not None:
                raise ValueError(f"--{option} has no effect without --corruptions.")
    chosen = list(CORRUPTIONS) if args.corruptions == ["all"] else args.corruptions or []
    if unknown := set(chosen) - CORRUPTIONS.keys():
        raise ValueError(f"--corruptions has {sorted(unknown)}; expected all, or some of {', '.join(CORRUPTIONS)}.")
    severities = [1, 2, 3, 4, 5] if args.severities is None else args.severities
    if not set(severities) <= {1, 2, 3, 4, 5}:
        raise ValueError(f"--severities is {severities}; expected numbers from 1 to 5.")
    return chosen, severities


def corruption_transform(corruption: str, severity: int, seed: int) -> Callable[[Image.Image, str], Image.Image]:
    """A function that corrupts an image. Its random numbers depend on nothing but the seed, the image's name, the
    corruption and the severity."""

    return partial(_corrupted, corruption=corruption, severity=severity, seed=seed)  # workers take no closure


def _corrupted(image: Image.Image, name: str, corruption: str, severity: int, seed: int) -> Image.Image:
    key = [seed, zlib.crc32(name.encode()), list(CORRUPTIONS).index(corruption), severity]
    return corrupt(image, corruption, severity, np.random.default_rng(key))


def draw_report(results: dict, domains: list[Domain], pictures: dict, names: dict[str, str], output_dir: Path) -> None:
    """Writes the plots (confusion matrices, IoU of each class) and the contact sheet of the models in `names`
    (path -> name)."""
    rows, legends, files = [], [], confusion_files(names, [domain.name for domain in domains])
    for domain in domains:
        for path, name in names.items():
            confusion = np.array(results[path][domain.name]["confusion"])
            file = output_dir / files[name, domain.name]
            plot_confusion(confusion, domain.classes, f"{name} on {domain.name}", file)
        scored = domain.scored or domain.classes
        iou = {name: results[path][domain.name]["per_class_iou"] for path, name in names.items()}
        per_class = {name: {label: iou[name][label] for label in scored} for name in iou}
        plot_iou(per_class, domain.name, output_dir / f"iou_{domain.name}.png")
        for sample, *labels in zip(*predictions_beside(domain, pictures[domain.name]), strict=True):
            cells = [colorize(np.asarray(label), domain.palette) for label in (sample["label"], *labels)]
            legends.append(legend_of([sample["label"], *labels], domain.classes, domain.palette))
            rows.append((f"{sample['domain']} {sample['name']}", [sample["image"], *cells]))
    if rows:
        sheet = contact_sheet(rows, ["image", "truth", *names.values()], legend=merge_legends(legends))
        save_picture(sheet, output_dir / "contact_sheet.png")


def confusion_files(names: dict[str, str], domains: list[str]) -> dict[tuple[str, str], str]:
    """Name of the file of each confusion matrix, by the names of model and domain.

    Raises:
        ValueError: two of them would be the same.
    """
    files = {
        (model, domain): f"confusion_{model}_{domain}.png".replace("/", "_")
        for model in names.values()
        for domain in domains
    }
    if twice := [pair for pair, file in files.items() if list(files.values()).count(file) > 1]:
        raise ValueError(
            f"The plots of {' and '.join(f'{model} on {domain}' for model, domain in twice[:2])} would have the same "
            f"file name, {files[twice[0]]}. Give a domain another name by NAME= in --domains."
        )
    return files


def predictions_beside(domain: Domain, predictions: list[list[np.ndarray]]) -> list[list]:
    """The samples of the contact sheet, and the label maps of each model for them."""
    return [evenly_spaced_samples(domain, len(predictions[0])), *predictions]


def short_names(paths: list[str]) -> dict[str, str]:
    """A name for each path: as many of its last parts as are needed to tell all paths apart."""
    for depth in range(1, max(len(Path(path).parts) for path in paths) + 1):
        names = {path: "/".join(Path(path).parts[-depth:]) for path in paths}
        if len(set(names.values())) == len(paths):
            return names
    raise ValueError(f"The same model is given twice: {paths}.")


if __name__ == "__main__":
    sys.exit(run("evaluate"))
