"""How many processes read images beside the one that computes."""

from __future__ import annotations

import os


# More than these wait for each other's memory and files.
MOST_WORKERS = 8


def default_workers(device_type: str, processes: int = 1) -> int:
    """The number of worker processes of a `DataLoader`.

    On a CPU there are none, because the model itself computes on all cores. Beside any other device each process has
    one core for itself, and as many workers as cores are left, 8 at most.

    Args:
        device_type (`str`): where the model is, e.g. "cuda".
        processes (`int`): processes of the run on this machine, which share its cores.
    """
    if device_type == "cpu":
        return 0
    return max(min(available_cores() // max(processes, 1) - 1, MOST_WORKERS), 1)


def available_cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # containers and job schedulers give a part of the machine
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
