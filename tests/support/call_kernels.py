"""Calls every kernel for GPUs as its operator does, where there is no GPU: Triton binds the arguments and compiles for
the architecture that is asked for, and launches nothing. Prints a line for each. Run with `TRITON_INTERPRET=0`.

    python -m tests.support.call_kernels 90
"""

import contextlib
import sys

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from rein_hf.backbone.residual_norms_triton import sum_and_norm
from rein_hf.head import deformable_triton
from rein_hf.inference.class_scores_triton import class_scores


class Driver:
    """What Triton asks of a GPU of an architecture before it launches."""

    def __init__(self, architecture: int) -> None:
        self.architecture = architecture

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.architecture, 32)


def compile_only(function, *arguments, grid, warmup, run=JITFunction.run, **keywords):
    kernel = run(function, *arguments, grid=grid, warmup=True, **keywords)
    assert f".target sm_{driver.active.architecture}" in kernel.asm["ptx"] and kernel.asm["cubin"]
    print(function.__name__, grid)
    return kernel


def main(architecture: int) -> None:
    driver.set_active(Driver(architecture))
    JITFunction.run = compile_only
    torch.cuda.device_of = lambda tensor: contextlib.nullcontext()
    for half in (torch.bfloat16, torch.float16):
        hidden, channels = torch.zeros(2, 5, 1024), torch.zeros(1024)
        update, positions = hidden.to(half), hidden[:1].expand(2, -1, -1)
        sum_and_norm(hidden, update, channels, channels, channels, 1e-6, None, half, "total cast")
        sum_and_norm(hidden, update, None, channels, channels, 1e-5, positions, half, "normed cast placed")
    sum_and_norm(hidden, hidden, channels, None, None, 0.0, None, None, "total")
    sum_and_norm(hidden[..., :48], None, None, channels[:48], None, 1e-6, None, half, "cast")
    for classes, side in ((19, 8), (150, 1)):  # numbers of 1 are constants to Triton
        class_scores(torch.zeros(2, 100, side, side), torch.zeros(2, 100, classes + 1)[..., :-1], 4 * side, 4 * side)
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        shapes = [1, 1, 2, 2, 4, 4]
        values, points = torch.zeros(1, 21, 64, dtype=dtype), torch.zeros(1, 5, 3, 2)
        offsets, weights = torch.zeros(1, 5, 2, 3, 4, 2, dtype=dtype), torch.zeros(1, 5, 2, 3, 4, dtype=dtype)
        output = deformable_triton.forward(values, shapes, points, offsets, weights)
        deformable_triton.backward(output, values, shapes, points, offsets, weights)


if __name__ == "__main__":
    main(int(sys.argv[1]))
