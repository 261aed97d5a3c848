"""Tells whether a transformation of torch is at work that this library's own operations cannot follow."""

from __future__ import annotations

from itertools import chain

import torch
from torch import nn
from torch._C._functorch import is_functorch_wrapped_tensor, peek_interpreter_stack
from torch.autograd import forward_ad


def is_transformed(*tensors: torch.Tensor, module: nn.Module | None = None) -> bool:
    """Whether `torch.func` (grad, jvp, vmap, ...) or forward-mode differentiation follows these tensors, or parameters
    of the module.

    Then only torch's own operations may be used. An operation that is given as its value and a backward pass cannot be
    transformed, and it has no forward-mode derivative: torch would take that for zero, without an error.
    """
    if torch.compiler.is_compiling():
        return False
    # asked first, for the tensors are many
    if peek_interpreter_stack() is None and forward_ad._current_level < 0:
        return False
    return any(
        is_functorch_wrapped_tensor(tensor) or forward_ad.unpack_dual(tensor).tangent is not None
        for tensor in chain(tensors, () if module is None else module.parameters())
    )


def makes_ordinary_tensors() -> bool:
    """Whether a tensor that is made now can be kept and used at any later time. Those made inside of `torch.func.grad`
    or under a fake tensor mode cannot."""
    tensor = torch.empty(0)
    return type(tensor) is torch.Tensor and not is_functorch_wrapped_tensor(tensor)
