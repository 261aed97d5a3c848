"""The tables that `rein-hf evaluate` prints, in markdown."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from ..data import CORRUPTIONS


# The table has a column for each group of a domain's images if there are at most this many groups.
MOST_GROUPS = 6


def class_table(results: dict, names: dict[str, str], domain: str, scored: Sequence[str]) -> str:
    """A table of the IoU in percent of each class on a domain: a row for each class, a column for each model.

    A class of which the truth has no pixel is `absent` in the column of its share of the pixels. Its IoU is then
    `-`, which the mean leaves out, if it is not predicted either, and 0, which counts, if it is.

    Args:
        results: of all models, as in results.json.
        names: name of each model, by its path.
        domain (`str`): which of the results.
        scored: names of the classes that count in the mean; others stand in parentheses.
    """
    first = results[next(iter(names))][domain]
    pixels = np.array(first["confusion"]).sum(axis=1)
    rows = [[f"IoU on {domain}", "pixels", *names.values()]]
    for count, label in zip(pixels.tolist(), first["per_class_iou"], strict=True):
        values = [results[path][domain]["per_class_iou"][label] for path in names]
        share = f"{count / pixels.sum():.2%}" if count else "absent"
        rows.append([label if label in scored else f"({label})", share, *map(_percent, values)])
    rows.append(["**mean**", "", *(_percent(results[path][domain]["mean_iou"]) for path in names)])
    lines = aligned(rows)
    if not pixels.all():
        lines.append(
            "absent: no pixel of the truth has the class. Its IoU is - if it is not predicted either (left out of the "
            "mean), 0.00 if it is (counted)."
        )
    return "\n".join(lines)


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.2f}"


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table in markdown whose columns are aligned on a screen too: the first at the left, the others,
    of numbers, at the right. The first row is the head."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("| " + " | ".join(cells) + " |")
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return [lines[0], "| " + " | ".join(rule) + " |", *lines[1:]]


def results_table(results: dict, names: dict[str, str], domains: list[str]) -> str:
    """A table in markdown of the mIoU in percent: a row for each model, a column for each domain and the unweighted
    mean over domains. Groups of images have columns too, unless a domain has more than `MOST_GROUPS`."""
    columns = list(dict.fromkeys(group for path in names for group in results[path]))
    columns = [column for column in columns if column.partition("/")[0] in domains]
    count = Counter(column.partition("/")[0] for column in columns)
    groups = [column for column in columns if "/" not in column or count[column.partition("/")[0]] <= 1 + MOST_GROUPS]
    average = ["average"] if len(domains) > 1 else []
    lines = ["| mIoU | " + " | ".join([*groups, *average]) + " |"]
    lines.append("|---" * (len(groups) + len(average) + 1) + "|")
    for path, name in names.items():
        scores = [results[path][group]["mean_iou"] for group in groups]
        scores += [np.mean([results[path][domain]["mean_iou"] for domain in domains]) for _ in average]
        lines.append(f"| {name} | " + " | ".join(f"{100 * score:.2f}" for score in scores) + " |")
    return "\n".join(lines)


def robustness_table(curves: dict, clean: dict[str, float], title: str) -> str:
    """A table in markdown of the mIoU in percent of each model: without corruption, the mean over all corruptions and
    severities, and the mean over the corruptions of each family."""
    families = list(dict.fromkeys(CORRUPTIONS[name] for name in next(iter(curves.values()))))
    lines = ["| " + " | ".join([f"mIoU on {title}", "clean", "corrupted", *families]) + " |"]
    lines.append("|---" * (3 + len(families)) + "|")
    for model, curve in curves.items():
        values = {name: np.mean(list(severities.values())) for name, severities in curve.items()}
        means = [np.mean([values[name] for name in values if CORRUPTIONS[name] == family]) for family in families]
        scores = [clean[model], np.mean(list(values.values())), *means]
        lines.append(f"| {model} | " + " | ".join(f"{100 * score:.2f}" for score in scores) + " |")
    return "\n".join(lines)
