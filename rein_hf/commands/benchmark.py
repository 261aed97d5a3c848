r"""Measures what Rein, the head and a training step cost: time, memory, and the size of saved adapters.

    rein-hf benchmark --output_dir OUT/benchmark --sizes small large --dtypes float32 bfloat16
    rein-hf benchmark --output_dir OUT/benchmark --device cuda --sizes large --plan gpu

One call measures every combination of its arguments, or with `--plan gpu` what BENCHMARKS.md says of a GPU.
Weights are random and nothing is downloaded. The variants of a
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
import gc
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
from .benchmark_costs import gpu_work, peak_memory, quartiles, ratios, seconds, weights_size
from .benchmark_plan import check_arguments, plan_of
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
        default_factory=lambda: ["eager"],
        metadata={"help": "eager, compile for torch.compile, or graph for CUDA graphs alone."},
    )
    device: str = dataclasses.field(default="cpu", metadata={"help": "cpu or cuda."})
    threads: int | None = dataclasses.field(
        default=None, metadata={"help": "Threads of the CPU; torch's choice by default."}
    )
    plan: str | None = dataclasses.field(
        default=None,
        metadata={
            "help": "gpu: all that BENCHMARKS.md tells of a GPU, in a few minutes; gpu-compile: torch.compile there."
        },
    )
    repeats: int = dataclasses.field(default=7, metadata={"help": "Number of turns, 5 at least."})


def main(args: BenchmarkArguments) -> dict:
    """Measures, writes the three files, and returns what `benchmark.json` holds."""
    check_arguments(args, BenchmarkArguments(args.output_dir))
    transformers.logging.set_verbosity_error()
    if args.threads:
        torch.set_num_threads(args.threads)
    output_dir = Path(args.output_dir)
    results = Results(output_dir / "benchmark.json", resume=True)
    plan = plan_of(args)
    with tqdm(total=sum(len(variants) * (args.repeats + 1) for *_, variants in plan)) as bar:
        for kind, setting, variants in plan:
            found = measure(kind, setting, variants, args.repeats, bar)
            free_memory(setting.device)
            results.put({str(setting): {"run": run_conditions(args.device), "batch": setting.batch, **found}}, kind)
            text = report(results.values)
            with atomic_write(output_dir / "benchmark.md") as partial:
                partial.write_text(text + "\n", encoding="utf-8")
            plot_benchmark(figure_panels(results.values), output_dir / "benchmark.png")
    print(text)
    return results.values


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
    """Samples of all variants, in seconds on the `wall` clock and of the `cpu`; their peak memory in bytes; on a GPU
    the number of launches and the time of its work, see [`gpu_work`]; and for the kind "adapters" what each tuning
    trains and saves."""
    build = functools.cache(functools.partial(build_model, setting))
    runs, found = {}, {}
    for name in names:
        bar.set_description(f"{setting}: {name}")
        variant = VARIANTS[kind][name]
        found[name] = {"over": variant.over, "wall": [], "cpu": []}
        if setting.device == "cpu":
            found[name]["peak"] = variant_peak_memory(kind, name, setting)
        built: list[torch.nn.Module] = []
        runs[name] = variant.make(setting, functools.partial(build_and_keep, build, built))
        if built:
            found[name]["weights"] = weights_size(built[0])
        if setting.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        for _ in range(WARM_UP):
            runs[name]()
        if setting.device == "cuda":
            found[name]["peak"] = torch.cuda.max_memory_allocated() - before
            found[name].update(gpu_work(runs[name]))
        bar.update()
    for _ in range(repeats):
        for name, run in runs.items():
            for clock, value in seconds(run, setting.device).items():
                found[name][clock].append(value)
            bar.update()
    if kind != "adapters":
        return {"variants": found}
    return {"variants": found, "tunings": {name: tuning_costs(build_model(setting, name)) for name in TUNINGS}}


def build_and_keep(build: Callable, built: list[torch.nn.Module], *args, **kwargs) -> torch.nn.Module:
    built.append(build(*args, **kwargs))
    return built[-1]


def free_memory(device: str) -> None:
    """Gives back what the models of a setting have taken, so that the next one starts as this one did."""
    gc.collect()
    torch.compiler.reset()
    if device == "cuda":
        torch.cuda.empty_cache()


def variant_peak_memory(kind: str, name: str, setting: Setting) -> int | None:
    """The peak memory of a variant on a CPU in bytes, without its weights, measured in a process of its own. `None`
    where it is not measured: for kind "adapters", and for what is compiled, where the compiler itself takes more."""
    if kind == "adapters" or setting.mode != "eager":
        return None
    return peak_memory(functools.partial(make_variant, kind, name, setting))


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
            lines.append(
                "| variant | ms | images/s | to | ratio | ratio of CPU time | peak beyond weights, MB | in all, MB | "
                "launches | work of the GPU, ms |"
            )
            lines.append("|---|---|---|---|---|---|---|---|---|---|")
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
    in_all = measured and "weights" in variant
    cells.append(f"{(variant['peak'] + variant['weights']) / 1e6:.0f}" if in_all else "")
    cells.append(f"{variant['launches']}" if "launches" in variant else "")
    cells.append(f"{1000 * variant['work']:.1f}" if "work" in variant else "")
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
