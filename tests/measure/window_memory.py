"""Measures memory and time of a sliding window, by how many windows go through the model together.

    python -m tests.measure.window_memory [--vit small] [--crop 512] [--width 2048] [--height 1024] [--windows 1 2 8]

The model has random weights. "Peak" is the peak of resident memory of two calls of `slide_inference` and
`predict_labels` in a process of their own, without the memory of the model and of the image. 0 windows means as many
as [`rein_hf.inference.windows_at_once`] allows, which is the default. Times are medians; all numbers run in turn.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field
from functools import partial

import torch
from transformers import HfArgumentParser

from rein_hf.commands.benchmark_costs import peak_memory
from rein_hf.commands.benchmark_variants import Setting, build_model, freeze
from rein_hf.inference import predict_labels, slide_inference, windows


@dataclass
class WindowMemoryArguments:
    vit: str = "small"
    crop: int = 512
    width: int = 2048
    height: int = 1024
    windows: list[int] = field(default_factory=lambda: [0, 1, 2, 4, 8])
    rounds: int = 1


def main(args: WindowMemoryArguments) -> dict[int, dict[str, float]]:
    rows = {count: {"peak": peak_memory(partial(make_call, args, count))} for count in args.windows}
    calls = {count: make_call(args, count) for count in args.windows}
    seconds = {count: [] for count in args.windows}
    for _ in range(args.rounds):
        for count, call in calls.items():
            start = time.perf_counter()
            call()
            seconds[count].append(time.perf_counter() - start)
    print("| windows at once | peak beyond model, MB | s |\n|---|---|---|")
    for count, row in rows.items():
        row["seconds"] = statistics.median(seconds[count])
        print(f"| {count or 'default'} | {row['peak'] / 1e6:.0f} | {row['seconds']:.2f} |")
    return rows


def make_call(args: WindowMemoryArguments, count: int):
    """A call that segments an image, `count` windows at once."""
    setting = Setting(args.vit, args.crop, 1, "float32", "eager", "cpu")
    model = freeze(build_model(setting, "rein"), setting)
    pixels = torch.randn(1, 3, args.height, args.width)

    def call() -> torch.Tensor:
        at_once = windows.windows_at_once
        try:
            if count:
                windows.windows_at_once = lambda *args: count
            return predict_labels(slide_inference(model, pixels), (args.height, args.width))
        finally:
            windows.windows_at_once = at_once

    return call


if __name__ == "__main__":
    main(*HfArgumentParser(WindowMemoryArguments).parse_args_into_dataclasses())
