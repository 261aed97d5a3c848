r"""Measures what Rein, the head and a training step cost: time, memory, and the size of saved adapters.

    rein-hf benchmark --output_dir OUT/benchmark --sizes small large --dtypes float32 bfloat16
    rein-hf benchmark --output_dir OUT/benchmark --device cuda --sizes large --crops 512 1024 --batches 1 4 \
        --dtypes bfloat16 --modes eager compile

One call measures every combination of its arguments. Weights are random and nothing is downloaded. The variants of a
setting (`benchmark_variants.py`) run one after the other, and this turn is repeated `--repeats` times, so that
a busy machine slows all of them alike. A ratio of two variants is the median of the ratios of all turns. On a CPU,
ratios of the process's own CPU time are given too, which other processes affect less. All samples are in
`benchmark.json`; a later call with the same folder adds to it. `benchmark.md` and `benchmark.png` show everything that
is in it.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import itertools
import math
import shlex
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import peft
import torch
import transformers
from peft import PeftModel
from tqdm.auto import tqdm

from ..evaluation import Results
from ..files import atomic_write
from ..training import TUNINGS
from ..views.plots import plot_benchmark
from . import cli
from .assess import trained_in_backbone
from .benchmark_costs import peak_memory, quartiles, ratios, seconds
from .benchmark_variants import SIZES, VARIANTS, Setting, build_model


# Calls of each variant before any is timed: they compile, choose kernels and create the optimizer's moments.
WARM_UP = 2


@dataclasses.dataclass
class BenchmarkArguments:
    output_dir: str = dataclasses.field(metadata={"help": "Folder for benchmark.json, .md and .png."})
    kinds: list[str] = dataclasses.field(
        default_factory=lambda: list(VARIANTS), metadata={"help": "Some of inference, training, adapters."}
    )
    variants: list[str] | None = dataclasses.field(
        default=None, metadata={"help": "Names of variants; all by default."}
    )
    sizes: list[str] = dataclasses.field(
        default_factory=lambda: ["small"], metadata={"help": f"Some of {list(SIZES)}."}
    )
    crops: list[int] = dataclasses.field(
        default_factory=lambda: [512], metadata={"help": "Sides of the square images in pixels."}
    )
    batches: list[int] = dataclasses.field(default_factory=lambda: [1], metadata={"help": "Images at once."})
    dtypes: list[str] = dataclasses.field(
        default_factory=lambda: ["float32"], metadata={"help": "float32, or bfloat16, which means autocast."}
    )
    modes: list[str] = dataclasses.field(
        default_factory=lambda: ["eager"], metadata={"help": "eager, or compile for torch.compile."}
    )
    device: str = dataclasses.field(default="cpu", metadata={"help": "cpu or cuda."})
    threads: int | None = dataclasses.field(
        default=None, metadata={"help": "Threads of the CPU; torch's choice by default."}
    )
    repeats: int = dataclasses.field(default=7, metadata={"help": "Number of turns, 5 at least."})


def main(args: BenchmarkArguments) -> dict:
    """Measures, writes the three files, and returns what `benchmark.json` holds."""
    check_arguments(args)
    transformers.logging.set_verbosity_error()
    if args.threads:
        torch.set_num_threads(args.threads)
    output_dir = Path(args.output_dir)
    results = Results(output_dir / "benchmark.json", resume=True)
    plan = [(kind, setting) for kind in args.kinds for setting in settings(args, kind)]
    with tqdm(total=sum(len(chosen_variants(args, kind)) * (args.repeats + 1) for kind, _ in plan)) as bar:
        for kind, setting in plan:
            found = measure(kind, setting, chosen_variants(args, kind), args.repeats, bar)
            results.put({str(setting): {"run": run_conditions(args.device), "batch": setting.batch, **found}}, kind)
            text = report(results.values)
            with atomic_write(output_dir / "benchmark.md") as partial:
                partial.write_text(text + "\n", encoding="utf-8")
            plot_benchmark(figure_panels(results.values), output_dir / "benchmark.png")
    print(text)
    return results.values


def check_arguments(args: BenchmarkArguments) -> None:
    """
    Raises:
        ValueError: an argument has a value that cannot be measured.
    """
    known = {"kinds": VARIANTS, "sizes": SIZES, "dtypes": ["float32", "bfloat16"], "modes": ["eager", "compile"]}
    for name, values in known.items():
        if not getattr(args, name) or not set(getattr(args, name)) <= set(values):
            raise ValueError(f"{name} is {getattr(args, name)}; expected some of {list(values)}.")
    unknown = set(args.variants or []) - {name for variants in VARIANTS.values() for name in variants}
    if unknown or not all(chosen_variants(args, kind) for kind in args.kinds):
        known = {kind: list(VARIANTS[kind]) for kind in args.kinds}
        raise ValueError(f"variants is {args.variants}; expected, of each kind, some of {known}.")
    if args.device not in ("cpu", "cuda") or args.device == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device is {args.device!r}; expected cpu{' or cuda' * torch.cuda.is_available()}.")
    if args.repeats < 5:
        raise ValueError(f"repeats is {args.repeats}; expected at least 5, since quartiles of fewer mean nothing.")


def settings(args: BenchmarkArguments, kind: str) -> list[Setting]:
    """The settings to measure variants of a kind in."""
    if kind == "adapters":  # loading and switching depend on neither images nor precision
        return [Setting(size, args.crops[0], 1, "float32", "eager", args.device) for size in args.sizes]
    combinations = itertools.product(args.sizes, args.crops, args.batches, args.dtypes, args.modes)
    return [Setting(*combination, args.device) for combination in combinations]


def chosen_variants(args: BenchmarkArguments, kind: str) -> list[str]:
    """Names of the variants of a kind that are asked for."""
    return [name for name in VARIANTS[kind] if args.variants is None or name in args.variants]


def run_conditions(device: str) -> dict:
    """Machine, versions, date and command, to be written beside the samples."""
    threads = torch.get_num_threads()
    cpu = f"CPU with {torch.backends.cpu.get_cpu_capability()}, {threads} thread{'s' * (threads > 1)}"
    return {
        "machine": torch.cuda.get_device_name() if device == "cuda" else cpu,
        "versions": {library.__name__: library.__version__ for library in (torch, transformers, peft)},
        "date": datetime.date.today().isoformat(),
        "command": shlex.join(["python", *sys.argv]),
    }


def measure(kind: str, setting: Setting, names: list[str], repeats: int, bar: tqdm) -> dict:
    """Samples of all variants, in seconds on the `wall` clock and of the `cpu`; their peak memory in bytes; and for
    the kind "adapters" what each tuning trains and saves."""
    build = functools.cache(functools.partial(build_model, setting))
    runs, found = {}, {}
    for name in names:
        bar.set_description(f"{setting}: {name}")
        variant = VARIANTS[kind][name]
        found[name] = {"over": variant.over, "wall": [], "cpu": [], "peak": variant_peak_memory(kind, name, setting)}
        runs[name] = variant.make(setting, build)
        for _ in range(WARM_UP):
            runs[name]()
        bar.update()
    for _ in range(repeats):
        for name, run in runs.items():
            for clock, value in seconds(run, setting.device).items():
                found[name][clock].append(value)
            bar.update()
    if kind != "adapters":
        return {"variants": found}
    return {"variants": found, "tunings": {name: tuning_costs(build_model(setting, name)) for name in TUNINGS}}


def variant_peak_memory(kind: str, name: str, setting: Setting) -> int | None:
    """The peak memory of a variant in bytes, without its weights, measured in a process of its own. `None` where it is
    not measured: for kind "adapters", and for `compile` on a CPU, where the compiler itself takes more."""
    if kind == "adapters" or (setting.device, setting.mode) == ("cpu", "compile"):
        return None
    return peak_memory(functools.partial(make_variant, kind, name, setting), setting.device)


def make_variant(kind: str, name: str, setting: Setting) -> Callable[[], object]:
    return VARIANTS[kind][name].make(setting, functools.partial(build_model, setting))


def tuning_costs(model: torch.nn.Module) -> dict[str, int]:
    """The number of trained parameters, how many of them are in the backbone, and the size in bytes of what is saved:
    adapter and head, or the whole model if there is no adapter."""
    arguments = {"save_embedding_layers": False} if isinstance(model, PeftModel) else {}
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder, **arguments)
        saved = sum(file.stat().st_size for file in Path(folder).glob("*.safetensors"))
    return {
        "trained": sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
        "in the backbone": trained_in_backbone(model),
        "saved": saved,
    }


def report(results: dict) -> str:
    """All results as markdown: medians, with the quartiles in brackets."""
    lines = []
    for kind, by_setting in results.items():
        for setting, found in by_setting.items():
            turns = len(next(iter(found["variants"].values()))["wall"])
            run = f"{found['run']['machine']}, {found['run']['date']}, {turns} turns"
            lines.append(f"\n**{kind}: {setting}** ({run})\n")
            lines.append("| variant | ms | images/s | to | ratio | ratio of CPU time | peak beyond weights, MB |")
            lines.append("|---|---|---|---|---|---|---|")
            lines += [report_row(name, kind, found) for name in found["variants"]]
            if "tunings" in found:
                lines.append("\n| tuning | trained | of it in the backbone | saved, MB |\n|---|---|---|---|")
            for name, cost in found.get("tunings", {}).items():
                lines.append(
                    f"| {name} | {cost['trained']:,} | {cost['in the backbone']:,} | {cost['saved'] / 1e6:.1f} |"
                )
    return "\n".join(lines).strip()


def report_row(name: str, kind: str, found: dict) -> str:
    variant = found["variants"][name]
    other = found["variants"].get(variant["over"])
    first, median, last = (1000 * value for value in quartiles(variant["wall"]))
    cells = [name, f"{median:.1f} ({first:.1f} - {last:.1f})"]
    cells.append("" if kind == "adapters" else f"{found['batch'] / median * 1000:.3g}")
    cells.append(variant["over"] if other else "")
    for clock in ("wall", "cpu"):
        compared = other and variant[clock]  # on a GPU there is no CPU time
        low, middle, high = quartiles(ratios(variant[clock], other[clock])) if compared else (0, 0, 0)
        cells.append(f"{middle:.2f} ({low:.2f} - {high:.2f})" if compared else "")
    measured = variant["peak"] is not None and not math.isnan(variant["peak"])  # None is read from the file as NaN
    cells.append(f"{variant['peak'] / 1e6:.0f}" if measured else "")
    return f"| {' | '.join(cells)} |"


def figure_panels(results: dict) -> dict[str, dict[str, tuple[float, float, float]]]:
    """What [`plot_benchmark`] draws: the quartiles of each variant in milliseconds."""
    return {
        f"{kind}: {setting}": {
            name: tuple(1000 * value for value in quartiles(variant["wall"]))
            for name, variant in found["variants"].items()
        }
        for kind, by_setting in results.items()
        for setting, found in by_setting.items()
    }


if __name__ == "__main__":
    sys.exit(cli.run("benchmark"))
