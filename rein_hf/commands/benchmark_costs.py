"""Measures what a call costs, in seconds and in memory, and compares repeated measurements."""

from __future__ import annotations

import ctypes
import gc
import itertools
import multiprocessing
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile


# Beginnings of the names of CUDA's calls that give a GPU something to do.
LAUNCHES = ("cudaLaunch", "cuLaunch", "cudaGraphLaunch", "cudaMemcpy", "cudaMemset")


def seconds(run: Callable[[], object], device: str = "cpu") -> dict[str, float]:
    """How long a call takes in seconds: on the `wall` clock and, if the device is "cpu", the `cpu` time of this
    process, in which other processes do not count. On "cuda" the time between two events of the stream."""
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


def gpu_work(run: Callable[[], object]) -> dict[str, float]:
    """What a call asks of a GPU, counted by torch's profiler: the `launches` of kernels, graphs and memory operations
    that the host makes, and the time in seconds during which the GPU is at `work`. If the GPU works for a fraction of
    the time that the call takes, it waits for the host."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        run()
        torch.cuda.synchronize()
    averages = profiler.key_averages()
    return {
        "launches": sum(event.count for event in averages if event.key.startswith(LAUNCHES)),
        "work": sum(event.self_device_time_total for event in averages if event.device_type == DeviceType.CUDA) / 1e6,
    }


def peak_memory(make: Callable[[], Callable[[], object]]) -> int:
    """The peak memory of two calls of what `make()` returns, without the memory in use before them, measured in a
    process of its own. Resident memory on Linux; on a GPU torch counts what it allocates, and no process is needed.

    There are two calls because the optimizer's moments exist only from the second training step on.

    Args:
        make: is pickled for the other process; what it returns need not be picklable.

    Returns:
        Bytes.

    Raises:
        RuntimeError: the process ended before it had a result.
    """
    # not "fork": a copy of a process that has used several threads would wait for threads that it does not have
    context = multiprocessing.get_context("forkserver")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send_peak_memory, args=(sender, make))
    process.start()
    sender.close()  # so that `recv` ends when the process does
    try:
        return receiver.recv()
    except EOFError:
        process.join()
        raise RuntimeError(f"The process that measures memory ended with exit code {process.exitcode}.") from None
    finally:
        process.join()


def _send_peak_memory(pipe, make: Callable[[], Callable[[], object]]) -> None:
    run = make()
    gc.collect()
    # memory that building the model has used and freed would hide as much of what the calls use
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM, the peak
    before = _resident_bytes("VmRSS")
    for _ in range(2):
        run()
    pipe.send(_resident_bytes("VmHWM") - before)


def _resident_bytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


def weights_size(model: torch.nn.Module) -> int:
    """Bytes of a model's parameters and buffers."""
    return sum(tensor.nbytes for tensor in itertools.chain(model.parameters(), model.buffers()))


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """The first quartile, the median and the third quartile."""
    first, median, last = statistics.quantiles(values, n=4, method="inclusive")
    return first, median, last


def ratios(values: Sequence[float], others: Sequence[float]) -> list[float]:
    """Each value divided by the other one of the same turn."""
    return [value / other for value, other in zip(values, others, strict=True)]
