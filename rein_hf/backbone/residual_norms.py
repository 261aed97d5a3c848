"""Residual sums and their norms in one operation each, where that saves time: on a GPU, without gradients.

A block adds what it computed to its residual stream, scales that before or normalises the sum after, and casts the
result for the linear layers that follow. In torch's operations each of these goes through all values again, and a GPU
takes longer to launch most of them than to compute them. `rein_hf::sum_and_norm` is one kernel for all of it
(residual_norms_triton.py). Sums are rounded as by torch's operations; norms are added up in another order.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from .transforms import computes_values_alone, has_hooks


try:
    from . import residual_norms_triton
except ImportError:  # a torch without Triton
    residual_norms_triton = None


class NormForLinears(nn.LayerNorm):
    """A norm whose output only linear layers read; a subclass because its output is in their type."""

    output_dtype: torch.dtype

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return norm_and_cast(inputs, self, self.output_dtype)


class NormedSum(NamedTuple):
    """
    A normalised sum and what is computed with it.

    Args:
        normed: the norm of the sum.
        cast: the same in the type in which linear layers read it.
        placed: with positions added, in that type; `cast` if there are none.
    """

    normed: torch.Tensor
    cast: torch.Tensor
    placed: torch.Tensor


def add_scaled(hidden: torch.Tensor, update: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """`hidden + scale * update`, of two tensors (..., c) and the scale (c,) of each channel."""
    if not _has_kernel_for(hidden, update):
        return update * scale + hidden
    (total,) = sum_and_norm(hidden, update, scale, None, None, 0.0, None, None, "total")
    return total


def add_scaled_and_norm(
    hidden: torch.Tensor, update: torch.Tensor, scale: torch.Tensor, norm: nn.LayerNorm
) -> tuple[torch.Tensor, torch.Tensor]:
    """`hidden + scale * update` and its norm, in the type that the norm gives it; arguments as of [`add_scaled`]."""
    if not _has_kernel_for(hidden, update) or not _is_plain(norm):
        total = update * scale + hidden
        return total, norm(total)
    dtype = getattr(norm, "output_dtype", hidden.dtype)
    total, cast = sum_and_norm(hidden, update, scale, norm.weight, norm.bias, norm.eps, None, dtype, "total cast")
    return total, cast


def norm_of_sum(
    hidden: torch.Tensor,
    update: torch.Tensor | None,
    norm: nn.LayerNorm,
    dtype: torch.dtype | None = None,
    positions: torch.Tensor | None = None,
) -> NormedSum:
    """The norm of `hidden + update`, or of `hidden` alone.

    Args:
        hidden, update (`(B, N, c)`): what is added.
        norm: of c channels.
        dtype (*optional*): the type in which linear layers read float32 values, if it is another one.
        positions (`(B, N, c)`, *optional*): of the N tokens; expanded where they are the same for all images.
    """
    if not _has_kernel_for(hidden, update) or not _is_plain(norm):
        normed = norm(hidden if update is None else hidden + update)
        cast = cast_for_linears(normed, dtype)
        return NormedSum(normed, cast, cast if positions is None else cast_for_linears(normed + positions, dtype))
    outputs = "normed" + " cast" * (dtype is not None) + " placed" * (positions is not None)
    dtype = dtype or hidden.dtype
    found = sum_and_norm(hidden, update, None, norm.weight, norm.bias, norm.eps, positions, dtype, outputs)
    found = dict(zip(outputs.split(), found, strict=True))
    cast = found.get("cast", found["normed"])
    return NormedSum(found["normed"], cast, found.get("placed", cast))


def norm_and_cast(hidden: torch.Tensor, norm: nn.LayerNorm, dtype: torch.dtype) -> torch.Tensor:
    """The norm of a tensor (..., c) in another type. `norm` is asked for its weights alone: a norm may call this."""
    if not _has_kernel_for(hidden):
        return nn.functional.layer_norm(hidden, norm.normalized_shape, norm.weight, norm.bias, norm.eps).to(dtype)
    (cast,) = sum_and_norm(hidden, None, None, norm.weight, norm.bias, norm.eps, None, dtype, "cast")
    return cast


def sum_and_norm_in_torch(
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
    """What the operator `rein_hf::sum_and_norm` gives, in operations of torch: of the sum of two tensors, its norm and
    the norm with positions that which is asked for.

    Args:
        hidden (`(..., c)`): float32.
        update (`(..., c)`, *optional*): what is added; float32 or half precision.
        scale (`(c,)`, *optional*): of the update.
        weight, bias (`(c,)`, *optional*), eps: of the norm.
        positions (`(B, N, c)`, *optional*): added to the norm.
        dtype (*optional*): of the outputs "cast" and "placed".
        outputs: names with spaces between, as it is no list that an operator could have: "total", the sum; "normed",
            its norm; "cast", the norm in another type; "placed", the norm with positions in another type.

    Returns:
        The outputs in the order of their names, each of the shape of `hidden`.
    """
    total = hidden if update is None else hidden + (update if scale is None else update * scale)
    found = {"total": total}
    if outputs != "total":
        found["normed"] = normed = nn.functional.layer_norm(total, total.shape[-1:], weight, bias, eps)
        found["cast"] = normed.to(dtype, copy=True)
        if positions is not None:
            found["placed"] = (normed + positions).to(dtype)
    return [found[name] for name in outputs.split()]


# not `torch.library.custom_op`, whose calls take 10 us longer: as long as two of the operations that are saved
_LIBRARY = torch.library.Library("rein_hf", "FRAGMENT")
_LIBRARY.define(
    "sum_and_norm(Tensor hidden, Tensor? update, Tensor? scale, Tensor? weight, Tensor? bias, float eps, "
    "Tensor? positions, ScalarType? dtype, str outputs) -> Tensor[]"
)
_LIBRARY.impl("sum_and_norm", sum_and_norm_in_torch, "CPU")
if residual_norms_triton is not None:
    _LIBRARY.impl("sum_and_norm", residual_norms_triton.sum_and_norm, "CUDA")
sum_and_norm = torch.ops.rein_hf.sum_and_norm.default


@torch.library.register_fake("rein_hf::sum_and_norm", lib=_LIBRARY)
def _(hidden, update, scale, weight, bias, eps, positions, dtype, outputs):
    types = {"total": hidden.dtype, "normed": hidden.dtype, "cast": dtype, "placed": dtype}
    return [torch.empty_like(hidden, dtype=types[name]) for name in outputs.split()]


def saves_time(device: torch.device) -> bool:
    """Whether one operation for all is faster on a device. On a CPU values are in its cache until the next one."""
    return device.type == "cuda" and residual_norms_triton is not None


def _has_kernel_for(hidden: torch.Tensor, update: torch.Tensor | None = None) -> bool:
    """Whether [`sum_and_norm`] can and should be computed."""
    tensors = [hidden] if update is None else [hidden, update]
    return (
        saves_time(hidden.device)
        and hidden.dtype == torch.float32
        and all(one.dtype != torch.float64 for one in tensors)
        and all(one.shape == hidden.shape and one.device == hidden.device for one in tensors)
        and computes_values_alone(*tensors)
    )


def is_unchanged(module: nn.Module, kinds: tuple[type[nn.Module], ...]) -> bool:
    """Whether a module is of one of these classes and nothing else: no subclass of them, nothing in its place, and
    nobody listens to it. Then what it computes can be computed without calling it."""
    return type(module) in kinds and not has_hooks(module)


def _is_plain(norm: nn.Module) -> bool:
    """Whether a module is nothing but a norm of the last dimension."""
    return is_unchanged(norm, (nn.LayerNorm, NormForLinears)) and len(norm.normalized_shape) == 1


def cast_for_linears(tensor: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    """A tensor in the type in which linear layers read float32 values, if it is another one."""
    return tensor.to(dtype) if dtype is not None and tensor.dtype == torch.float32 else tensor
