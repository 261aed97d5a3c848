"""What a call costs: seconds, memory, and statistics of calls of several kinds in turn."""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch


def seconds(run: Callable[[], object], device: str = "cpu") -> dict[str, float]:
    """How long a call takes: seconds on the `wall` and, if the device is "cpu", of this process's time on the `cpu`,
    which leaves out where others had it. On "cuda" between events of its stream."""
    if device == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        torch.cuda.synchronize()
        return {"wall": start.elapsed_time(end) / 1000}
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


def peak_memory(make: Callable[[], Callable[[], object]], device: str = "cpu") -> int:
    """Peak memory of two calls of what `make()` returns, beyond what there was before them, in a process of its own.

    Two, since only the second step of a training has the optimizer's moments beside its activations.

    Args:
        make: is pickled; what it returns is not.
        device (`str`): "cpu" for resident memory, on Linux alone; "cuda" for torch's allocations.

    Returns:
        Bytes.

    Raises:
        RuntimeError: the process ended before.
    """
    # not a fork of this process: one that has used several threads leaves its copies waiting for them
    context = multiprocessing.get_context("forkserver" if device == "cpu" else "spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_send_peak_memory, args=(theirs, make, device))
    process.start()
    theirs.close()  # so that the end of the process ends the wait
    try:
        return ours.recv()
    except EOFError:
        process.join()
        raise RuntimeError(f"The process that measures memory ended with exit code {process.exitcode}.") from None
    finally:
        process.join()


def _send_peak_memory(pipe, make: Callable[[], Callable[[], object]], device: str) -> None:
    run = make()
    gc.collect()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        # what building has freed but the heap has kept, or its own peak, would hide as much of the calls
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the peak from now on
        before = _resident_bytes("VmRSS")
    for _ in range(2):
        run()
    pipe.send((torch.cuda.max_memory_allocated() if device == "cuda" else _resident_bytes("VmHWM")) - before)


def _resident_bytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """A quarter of the values is below the first, half of them below the second, the median."""
    first, median, last = statistics.quantiles(values, n=4, method="inclusive")
    return first, median, last


def ratios(values: Sequence[float], others: Sequence[float]) -> list[float]:
    """Each value in the other one of the same turn."""
    return [value / other for value, other in zip(values, others, strict=True)]
