"""What `rein-hf benchmark` measures: every combination of its arguments, or the whole plan for a GPU."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch

from .benchmark_variants import SIZES, VARIANTS, Setting
from .cli import require_at_least


class Part(NamedTuple):
    """Some variants of a kind, by name, in one setting; all of them if no name is given."""

    kind: str
    crop: int
    batch: int
    dtype: str
    mode: str = "eager"
    variants: Sequence[str] = ()


# What has no graph is stock: it copies sizes from the host.
GRAPHED = ("backbone", "backbone + Rein", "Rein and head", "Rein and head, image of 2:1")

# In the order of interest: a call that is stopped has the first ones. The compiler takes minutes for each of its own.
PLANS = {
    "gpu": [
        Part("training", 512, 4, "bfloat16"),
        Part("inference", 512, 1, "bfloat16"),
        Part("inference", 512, 16, "bfloat16", variants=("backbone", "backbone + Rein", "Rein and head")),
        Part("inference", 640, 1, "bfloat16", variants=("Rein and head", "EoMT of transformers")),
        Part("inference", 512, 1, "float32", variants=("Rein and head",)),
        Part("training", 512, 4, "float32", variants=("Rein", "full")),
        Part("inference", 512, 1, "bfloat16", "graph", GRAPHED),
        Part("training", 512, 4, "bfloat16", "graph", ("frozen", "Rein", "LoRA", "full")),
        Part("inference", 512, 16, "bfloat16", "graph", ("backbone", "backbone + Rein", "Rein and head")),
        Part("inference", 640, 1, "bfloat16", "graph", ("Rein and head", "EoMT of transformers")),
    ],
    "gpu-compile": [
        Part("inference", 512, 1, "bfloat16", "compile", ("Rein and head",)),
        Part("inference", 512, 16, "bfloat16", "compile", ("Rein and head",)),
        Part("training", 512, 4, "bfloat16", "compile", ("Rein",)),
        Part("inference", 640, 1, "bfloat16", "compile", ("Rein and head", "EoMT of transformers")),
    ],
}


def plan_of(args) -> list[tuple[str, Setting, list[str]]]:
    """Kinds, settings and names of variants to measure, for arguments of `rein-hf benchmark`."""
    if args.plan:
        return [
            (kind, Setting(size, crop, batch, dtype, mode, args.device), list(variants) or list(VARIANTS[kind]))
            for size in args.sizes
            for kind, crop, batch, dtype, mode, variants in PLANS[args.plan]
        ]
    return [(kind, setting, chosen_variants(args, kind)) for kind in args.kinds for setting in settings(args, kind)]


def settings(args, kind: str) -> list[Setting]:
    """The settings to measure variants of a kind in."""
    if kind == "adapters":  # loading and switching depend on neither images nor precision
        return [Setting(size, args.crops[0], 1, "float32", "eager", args.device) for size in args.sizes]
    combinations = itertools.product(args.sizes, args.crops, args.batches, args.dtypes, args.modes)
    return [Setting(*combination, args.device) for combination in combinations]


def chosen_variants(args, kind: str) -> list[str]:
    """Names of the variants of a kind that are asked for."""
    return [name for name in VARIANTS[kind] if args.variants is None or name in args.variants]


def check_arguments(args, defaults) -> None:
    """
    Args:
        args: the arguments of a call.
        defaults: those of a call without any.

    Raises:
        ValueError: an argument has a value that cannot be measured, or would have no effect.
    """
    known = {
        "kinds": VARIANTS,
        "sizes": SIZES,
        "dtypes": ["float32", "bfloat16"],
        "modes": ["eager", "compile", "graph"],
    }
    for name, values in known.items():
        if not getattr(args, name) or not set(getattr(args, name)) <= set(values):
            raise ValueError(f"{name} is {getattr(args, name)}; expected some of {list(values)}.")
    unknown = set(args.variants or []) - {name for variants in VARIANTS.values() for name in variants}
    if unknown or not all(chosen_variants(args, kind) for kind in args.kinds):
        known = {kind: list(VARIANTS[kind]) for kind in args.kinds}
        raise ValueError(f"variants is {args.variants}; expected, of each kind, some of {known}.")
    if args.device not in ("cpu", "cuda") or args.device == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device is {args.device!r}; expected cpu{' or cuda' * torch.cuda.is_available()}.")
    require_at_least(args, crops=1, batches=1, threads=1)
    for name in ("crops", "batches"):
        if not getattr(args, name):
            raise ValueError(f"--{name} is empty; expected one number at least.")
    if args.repeats < 5:
        raise ValueError(f"repeats is {args.repeats}; expected at least 5, since quartiles of fewer mean nothing.")
    if args.plan and args.plan not in PLANS:
        raise ValueError(f"plan is {args.plan!r}; expected {', '.join(PLANS)}, or none.")
    fixed = ["kinds", "variants", "crops", "batches", "dtypes", "modes"]
    if args.plan and (useless := [name for name in fixed if getattr(args, name) != getattr(defaults, name)]):
        raise ValueError(f"--{useless[0]} has no effect with --plan {args.plan}, which says what is measured.")
    if (args.plan or "graph" in args.modes) and args.device != "cuda":
        asked = f"plan is {args.plan!r}" if args.plan else f"modes is {args.modes}"
        raise ValueError(f"{asked} and device {args.device!r}; expected --device cuda.")
