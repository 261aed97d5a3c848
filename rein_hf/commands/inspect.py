"""Checks data before anything is trained on it: every file is opened once.

    rein-hf inspect --domains gta5:DATA/GTA5 cityscapes:DATA/cityscapes@val --output_dir OUT/data

Prints first what it found: sizes, classes with their ids and shares, what was assumed. Leaves `report.json`, a contact
sheet and the histogram of the classes. Exit code 1 if anything is wrong: files that are missing, broken or not used,
labels of another kind or size, unknown ids, masks of 0 and 255, fewer images than a complete download has. Notes tell
what is right only if the user meant it so: ids that were taken for Cityscapes', images that were turned as their EXIF
says, 16-bit images of which the high byte is used, animations and TIFF files of which the first frame is used.
"""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from ..data import Domain, describe_odd_ids, load_domain
from ..evaluation import Results, evenly_spaced_indices
from ..images import STORED_FRAMES, STORED_MODE, STORED_ORIENTATION
from ..labels import IGNORE
from ..views import colorize, contact_sheet, legend_of, merge_legends, overlay, save_picture
from ..views.plots import plot_class_histogram
from .cli import require_at_least, run


@dataclass
class InspectionArguments:
    domains: list[str] = field(metadata={"help": "[NAME=][LAYOUT:]PATH[@SPLIT][#OPTION=VALUE], see rein_hf.data."})
    output_dir: str = field(metadata={"help": "Where the report and the pictures go."})
    limit: int | None = field(default=None, metadata={"help": "Open this many images of each domain, spread out."})
    workers: int = field(default=4, metadata={"help": "Threads that open files."})
    sheet_rows: int = field(default=4, metadata={"help": "Images of each domain on the contact sheet; 0 for none."})


def main(args: InspectionArguments) -> int:
    """Returns how many problems there are."""
    require_at_least(args, limit=1, workers=1, sheet_rows=0)
    output_dir = Path(args.output_dir)
    report, shares, rows, legends = Results(output_dir / "report.json"), {}, [], []
    for spec in args.domains:
        found, pictures, legend = inspect(spec, args.limit, args.workers, args.sheet_rows)
        legends.append(legend)
        report.put({spec: found})
        print(report_text(spec, found))
        rows += pictures
        if any(counts["images"] for counts in found["classes"].values()):
            shares[spec] = {name: counts["share"] for name, counts in found["classes"].items()}
    if rows:
        sheet = contact_sheet(rows, ["image", "label", "both"], legend=merge_legends(legends))
        save_picture(sheet, output_dir / "contact_sheet.png")
    if shares:
        plot_class_histogram(shares, output_dir / "classes.png")
    return sum(len(found["problems"]) for found in report.values.values())


def inspect(spec: str, limit: int | None, workers: int, sheet_rows: int) -> tuple[dict, list, list]:
    """What a domain holds, as report.json has it, rows of the contact sheet, and their legend."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            domain = load_domain(spec)
        except (OSError, ValueError) as error:
            found = {"images": 0, "sizes": {}, "modes": {}, "classes": {}, "notes": [], "problems": [str(error)]}
            return found, [], []
    problems = [str(warning.message) for warning in caught if issubclass(warning.category, UserWarning)]
    sizes, modes, orientations, dark, several = Counter(), Counter(), Counter(), [], {}
    pixels, images, opened, pictures, drawn = Counter(), Counter(), 0, [], []
    total, samples = sample_readers(domain, limit)
    shown = set(evenly_spaced_indices(total, sheet_rows)) if total else set(range(sheet_rows))
    with ThreadPoolExecutor(workers) as pool:
        for index, read in enumerate(tqdm(run_in_order(pool, samples, 2 * workers), spec, total, leave=False)):
            try:
                sample = read()
            except ValueError as error:
                problems.append(str(error))
                continue
            opened += 1
            sizes["{}x{}".format(*sample["image"].size)] += 1
            mode = sample["image"].info.get(STORED_MODE, "RGB")
            modes[mode] += 1
            if mode.startswith("I") and max(high for _, high in sample["image"].getextrema()) < 16:
                dark.append(sample["name"])
            if orientation := sample["image"].info.get(STORED_ORIENTATION):
                orientations[orientation] += 1
            if frames := sample["image"].info.get(STORED_FRAMES):
                several[sample["name"]] = frames
            if sample["label"] is None:
                continue
            counts = np.bincount(np.asarray(sample["label"]).ravel(), minlength=256)
            pixels.update({int(index): int(counts[index]) for index in counts.nonzero()[0]})
            images.update(map(int, counts.nonzero()[0]))
            if index in shown:
                label = np.asarray(sample["label"])
                both = overlay(sample["image"], label, domain.palette)
                cells = [sample["image"], colorize(label, domain.palette), both]
                pictures.append((f"{sample['domain']} {sample['name']}", cells))
                drawn.append(label)
    valid = sum(count for index, count in pixels.items() if index < len(domain.classes))
    classes = {
        name: {"share": pixels[index] / valid if valid else 0.0, "images": images[index]}
        for index, name in enumerate(domain.classes)
    }
    if odd := describe_odd_ids(pixels, domain.classes):
        problems.append(f"{spec}: {odd}.")
    found = {
        "images": opened,
        "sizes": dict(sizes.most_common()),
        "modes": dict(modes.most_common()),
        "ignored": 1 - valid / max(sum(pixels.values()), 1),
        "classes": classes,
        "notes": list_notes(domain, modes, orientations, dark, several),
        "problems": problems,
    }
    return found, pictures, legend_of(drawn, domain.classes, domain.palette)


def list_notes(
    domain: Domain, modes: Counter, orientations: Counter, dark: list[str], several: dict[str, int]
) -> list[str]:
    """Sentences on what is right only if it was meant so.

    Args:
        modes: how many images are stored in each of Pillow's modes.
        orientations: how many images note each EXIF orientation but 1.
        dark (`list[str]`): names of 16-bit images with no value above 4095.
        several: name of each image whose file has several frames, and how many.
    """
    notes = [domain.assumption] if domain.assumption else []
    if orientations:
        counts = ", ".join(f"{count} of orientation {number}" for number, count in sorted(orientations.items()))
        notes.append(
            f"{orientations.total()} images were turned upright as their EXIF says ({counts}). Labels, which have no "
            "EXIF, were not: see on the contact sheet whether they lie on the images."
        )
    if deep := {mode: count for mode, count in modes.items() if mode.startswith(("I", "F"))}:
        counts = ", ".join(f"{count} of mode {mode}" for mode, count in deep.items())
        notes.append(f"Of images with 16 bits the high byte is used ({counts}).")
    if dark:
        notes.append(
            f"{len(dark)} of these are all but black, as 12-bit images in files of 16 bits are: multiply their values "
            f"by 16. They are {', '.join(dark[:5])}{', ...' if len(dark) > 5 else ''}."
        )
    if several:
        frames = "; ".join(f"{name} has {count} frames" for name, count in islice(several.items(), 5))
        more = f"; {len(several) - 5} images more have several" if len(several) > 5 else ""
        notes.append(f"{frames}{more}; the first is used.")
    return notes


def sample_readers(domain: Domain, limit: int | None) -> tuple[int | None, Iterator]:
    """The number of samples, `None` where it is unknown, and for each sample a function that reads it."""
    if domain.is_streamed:
        rows = islice(domain.dataset.dataset, limit)
        return limit, (lambda row=row: domain.dataset.decoded(row) for row in rows)
    indices = evenly_spaced_indices(len(domain.dataset), limit or len(domain.dataset))
    return len(indices), (lambda index=index: domain.dataset[index] for index in indices)


def run_in_order(pool: ThreadPoolExecutor, functions: Iterator, ahead: int) -> Iterator:
    """Runs `functions` in the pool, at most `ahead` of them at once. Yields for each, in order, a function that waits
    for its result and returns it or raises its error."""
    running = [pool.submit(function) for function in islice(functions, ahead)]
    while running:
        yield running.pop(0).result
        running += [pool.submit(function) for function in islice(functions, 1)]


def report_text(spec: str, found: dict) -> str:
    """What `inspect` found, for the terminal: sizes, classes with their ids, what was assumed, what is wrong."""
    lines = [f"{spec}: {found['images']} images"]
    lines += [f"  {count} of {size} pixels" for size, count in islice(found["sizes"].items(), 5)]
    if len(found["sizes"]) > 5:
        lines.append(f"  and {len(found['sizes']) - 5} sizes more, see report.json")
    if found["classes"]:
        lines.append("  classes by id, share of the labelled pixels, images that have it:")
        width = max(map(len, found["classes"]))
        for index, (name, counts) in enumerate(found["classes"].items()):
            share = f"{counts['share']:7.2%}  {counts['images']}" if counts["images"] else " absent"
            lines.append(f"  {index:5} {name:<{width}} {share}")
        lines.append(f"  {found['ignored']:.1%} of the pixels do not count ({IGNORE} or the ignored id)")
    lines += [f"  NOTE: {note}" for note in found["notes"]]
    lines += [f"  PROBLEM: {problem}" for problem in found["problems"][:20]]
    if len(found["problems"]) > 20:
        lines.append(f"  and {len(found['problems']) - 20} problems more, see report.json")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(run("inspect"))
