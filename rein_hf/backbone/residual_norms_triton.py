"""Residual sums and their norms on a GPU: one Triton kernel, of which each program goes through one row of channels.

`TRITON_INTERPRET=1` runs it on a CPU, which is how it is tested where there is no GPU.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def _kernel(
    hidden,
    update,
    scale,
    weight,
    bias,
    positions,
    total,
    normed,
    cast,
    placed,
    eps,
    period,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_NORM: tl.constexpr,
):
    row, channel = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    inside, at = channel < WIDTH, row * WIDTH + channel
    values = tl.load(hidden + at, inside, 0.0)
    if update is not None:
        added = tl.load(update + at, inside, 0.0).to(tl.float32)
        if scale is not None:
            added *= tl.load(scale + channel, inside, 0.0)
        values += added
    if total is not None:
        tl.store(total + at, values, inside)
    if HAS_NORM:
        centred = tl.where(inside, values - tl.sum(values) / WIDTH, 0.0)
        values = centred * tl.rsqrt(tl.sum(centred * centred) / WIDTH + eps)
        if weight is not None:
            values *= tl.load(weight + channel, inside, 0.0)
        if bias is not None:
            values += tl.load(bias + channel, inside, 0.0)
        if normed is not None:
            tl.store(normed + at, values, inside)
        if cast is not None:
            tl.store(cast + at, values, inside)
        if placed is not None:
            values += tl.load(positions + row % period * WIDTH + channel, inside, 0.0)
            tl.store(placed + at, values, inside)


def sum_and_norm(
    hidden: torch.Tensor,
    update: torch.Tensor | None,
    scale: torch.Tensor | None,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
    positions: torch.Tensor | None,
    dtype: torch.dtype | None,
    outputs: str,
) -> list[torch.Tensor]:
    """As [`rein_hf.backbone.residual_norms.sum_and_norm`]."""
    hidden = hidden.contiguous()
    update = None if update is None else update.contiguous()
    if positions is not None:
        same_for_all = positions.shape[0] == 1 or positions.stride(0) == 0
        positions = (positions[:1] if same_for_all else positions).contiguous()
    width = hidden.shape[-1]
    types = {"total": hidden.dtype, "normed": hidden.dtype, "cast": dtype, "placed": dtype}
    found = {name: torch.empty_like(hidden, dtype=types[name]) for name in outputs.split()}
    block = triton.next_power_of_2(width)
    with torch.cuda.device_of(hidden):  # Triton launches on the current device, wherever the tensors are
        _kernel[(hidden.numel() // width,)](
            *(hidden, update, scale, weight, bias, positions),
            *(found.get(name) for name in types),
            eps,
            1 if positions is None else positions.numel() // width,
            WIDTH=width,
            BLOCK=block,
            HAS_NORM=outputs != "total",
            num_warps=min(max(block // 256, 1), 8),
            enable_fp_fusion=False,  # a product is rounded before it is added, as torch does
        )
    return list(found.values())
