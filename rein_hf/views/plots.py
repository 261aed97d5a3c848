"""Plots of the numbers of evaluations, assessments, benchmarks and data sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure  # pyplot would keep global state and may need a display

from ..files import atomic_write
from ..labels import check_class_names


def plot_iou(per_class: Mapping[str, Mapping[str, float]], title: str, path: Path) -> None:
    """Bars of the IoU (0 to 1) of each class, `per_class[model][class]`, written to `path`."""
    figure, axes = _figure(max(6, 0.5 * max(map(len, per_class.values())) + 2), 4)
    width = 0.8 / len(per_class)
    for index, (model, iou) in enumerate(per_class.items()):
        positions = np.arange(len(iou)) + (index - (len(per_class) - 1) / 2) * width
        values = [value for value in iou.values() if not np.isnan(value)]
        mean = np.mean(values) if values else np.nan
        axes.bar(positions, [100 * value for value in iou.values()], width, label=f"{model}, mean {100 * mean:.1f}")
        for position, value in zip(positions, iou.values(), strict=True):
            if np.isnan(value):  # a bar of height 0 would be a class that is never right
                axes.text(position, 1, "absent", rotation=90, ha="center", va="bottom", fontsize=7, color="gray")
    classes = list(next(iter(per_class.values())))
    axes.set_xticks(range(len(classes)), classes, rotation=45, ha="right")
    axes.set(ylabel="IoU (%)", ylim=(0, 100), title=title)
    axes.set_axisbelow(True)  # the grid is behind the bars
    axes.grid(axis="y", alpha=0.3)
    figure.legend(loc="outside lower center", ncols=min(len(per_class), 3), fontsize="small")
    _save(figure, path, dpi=130)


def plot_confusion(confusion: np.ndarray, classes: Sequence[str], title: str, path: Path) -> None:
    """A confusion matrix (K, K), rows the reference, as shares of each row, written to `path`.

    Raises:
        ValueError: two classes have the same name.
    """
    check_class_names(list(classes), "classes")
    share = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    figure, axes = _figure(0.42 * len(classes) + 2.5, 0.42 * len(classes) + 2)
    axes.imshow(share, vmin=0, vmax=1, cmap="Blues")
    axes.set_xticks(range(len(classes)), classes, rotation=60, ha="right", fontsize=8)
    axes.set_yticks(range(len(classes)), classes, fontsize=8)
    axes.set(xlabel="prediction", ylabel="truth", title=title)
    for row, column in np.argwhere(share >= 0.01):
        value = share[row, column]
        colour = "white" if value > 0.5 else "black"
        axes.text(column, row, f"{100 * value:.0f}", ha="center", va="center", fontsize=7, color=colour)
    _save(figure, path, dpi=130)


def plot_curves(
    losses: Sequence[tuple[int, float]], scores: Mapping[str, Sequence[tuple[int, float]]], path: Path
) -> None:
    """The losses of a run and the mIoU in percent of each domain over its steps, one below the other, written to
    `path`.

    Args:
        losses: pairs of step and loss, may be none.
        scores: pairs of step and mIoU of each domain, may be none.
    """
    shown = [part for part in ("loss", "mIoU (%)") if (losses if part == "loss" else scores)]
    figure = Figure(figsize=(8, 3 * len(shown)), layout="constrained")
    for axes, part in zip(figure.subplots(len(shown), squeeze=False, sharex=True)[:, 0], shown, strict=True):
        if part == "loss":
            axes.plot(*zip(*losses, strict=True), marker=".", color="gray")
        else:
            for domain, points in scores.items():
                steps, values = zip(*points, strict=True)
                axes.plot(steps, values, marker="o", label=f"{domain}, last {values[-1]:.1f}")
            figure.legend(loc="outside lower center", ncols=3, fontsize="small")
            axes.set_ylim(bottom=0)
        axes.set_ylabel(part)
        axes.set_xlim(left=0)
        axes.grid(alpha=0.3)
    axes.set_xlabel("step")
    _save(figure, path, dpi=110)


def plot_robustness(
    curves: Mapping[str, Mapping[str, Mapping[str, float]]], clean: Mapping[str, float], title: str, path: Path
) -> None:
    """Mean IoU (0 to 1) over the severity of each corruption, `curves[model][corruption][severity]`, beginning with
    `clean[model]` at severity 0; one small plot per corruption, written to `path`."""
    names = list(next(iter(curves.values())))
    columns = min(5, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(2.6 * columns + 1, 2.3 * rows + 0.6), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
    for axes, name in zip(grid, names, strict=False):
        for model, curve in curves.items():
            severities = sorted(curve[name], key=int)
            values = [clean[model], *(curve[name][severity] for severity in severities)]
            axes.plot([0, *map(int, severities)], [100 * value for value in values], marker=".", label=model)
        axes.set_title(name.replace("_", " "), fontsize=10)
        axes.grid(alpha=0.3)
    grid[0].set_ylim(bottom=0)  # the plots share it; set last, because it freezes the upper limit too
    for axes in grid[len(names) :]:
        axes.axis("off")
    figure.suptitle(f"{title}: mIoU (%) over the severity of corruptions")
    figure.legend(*grid[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize="small")
    _save(figure, path, dpi=110)


def plot_class_histogram(shares: Mapping[str, Mapping[str, float]], path: Path) -> None:
    """Bars of the share of each class in the pixels of each data set, `shares[data set][class]`, on a logarithmic
    scale, written to `path`. Data sets of the same classes share a plot."""
    groups: dict[tuple[str, ...], dict] = {}
    for name, share in shares.items():
        groups.setdefault(tuple(share), {})[name] = share
    figure = Figure(figsize=(10, 3.6 * len(groups)), layout="constrained")
    for axes, (classes, members) in zip(
        figure.subplots(len(groups), squeeze=False).ravel(), groups.items(), strict=True
    ):
        width = 0.8 / len(members)
        for index, (name, share) in enumerate(members.items()):
            positions = np.arange(len(classes)) + (index - (len(members) - 1) / 2) * width
            axes.bar(positions, [100 * value for value in share.values()], width, label=name)
        axes.set_yscale("log")
        axes.set_xticks(range(len(classes)), classes, rotation=45, ha="right")
        axes.set_ylabel("share of pixels (%)")
        # above the axes: inside it would cover bars
        axes.legend(fontsize="small", loc="lower left", bbox_to_anchor=(0, 1), ncols=min(len(members), 3))
    _save(figure, path, dpi=110)


def plot_assessment(points: Sequence[Mapping], label: str, path: Path) -> None:
    """Scores over the number of trained parameters, as in the paper's figure 1, written to `path`.

    Args:
        points: for each point `group` (points of a group share a colour), `name` (written beside the point), `x`
            (number of trained parameters) and `ys` (a score for each seed: the point is at their mean, a bar shows
            their span). A point with `x` 0 gets a dotted line at its height.
        label: name of the scores, at the vertical axis.
    """
    figure, axes = _figure(8, 5)
    groups: dict[str, list[Mapping]] = {}
    for point in points:
        groups.setdefault(point["group"], []).append(point)
    for index, (group, members) in enumerate(groups.items()):
        style = {"color": f"C{index}", "alpha": 0.85}
        means = [float(np.mean(point["ys"])) for point in members]
        spans = [[mean - min(p["ys"]), max(p["ys"]) - mean] for mean, p in zip(means, members, strict=True)]
        counts = [point["x"] for point in members]
        axes.errorbar(counts, means, yerr=np.transpose(spans), fmt="o", capsize=3, label=group, **style)
        for point, mean in zip(members, means, strict=True):
            axes.annotate(point["name"], (point["x"], mean), xytext=(6, 5), textcoords="offset points", fontsize=9)
            if not point["x"]:
                axes.axhline(mean, linestyle=":", **style)
    axes.set_xscale("symlog", linthresh=1e4)
    axes.set(xlabel="parameters trained in the backbone", ylabel=label)
    axes.set_xlim(-1e3, max(4 * max(point["x"] for point in points), 1e4))
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=min(len(groups), 4), fontsize="small")
    _save(figure, path, dpi=120)


def plot_benchmark(panels: Mapping[str, Mapping[str, tuple[float, float, float]]], path: Path) -> None:
    """Bars of medians with their quartiles, `panels[title][name]` in milliseconds (first quartile, median, third), one
    small plot per title, written to `path`; a name has one colour in all of them."""
    names = list(dict.fromkeys(name for bars in panels.values() for name in bars))
    heights = [len(bars) + 1.5 for bars in panels.values()]
    figure = Figure(figsize=(8, 0.32 * sum(heights)), layout="constrained")
    grid = figure.subplots(len(panels), squeeze=False, height_ratios=heights)[:, 0]
    for axes, (title, bars) in zip(grid, panels.items(), strict=True):
        firsts, medians, lasts = np.transpose(list(bars.values()))
        spans = [medians - firsts, lasts - medians]
        axes.barh(list(bars), medians, xerr=spans, color=[f"C{names.index(name)}" for name in bars], capsize=3)
        for index, (median, last) in enumerate(zip(medians, lasts, strict=True)):
            text = f"{median:,.0f}" if median >= 100 else f"{median:.3g}"
            axes.annotate(text, (last, index), (4, 0), textcoords="offset points", va="center", fontsize=8)
        axes.set_title(f"{title}, ms", fontsize=9, loc="left")
        axes.invert_yaxis()
        axes.margins(x=0.15)
        axes.tick_params(labelsize=8)
        axes.grid(axis="x", alpha=0.3)
    _save(figure, path, dpi=110)


def _figure(width: float, height: float):
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def _save(figure, path: Path, dpi: int) -> None:
    with atomic_write(path) as partial:
        figure.savefig(partial, dpi=dpi)
