"""Tells whether a transformation of torch is at work that this library's own operations cannot follow, and keeps
tensors where none is.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, wraps
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


def computes_values_alone(*tensors: torch.Tensor) -> bool:
    """Whether tensors are computed with for their values and nothing else: nothing is compiled, exported, traced,
    differentiated or transformed. Torch's own operations are better at all of these than one that they cannot see
    into."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or torch.is_grad_enabled():
        return False
    return not is_transformed(*tensors)


def has_hooks(module: nn.Module) -> bool:
    """Whether calling a module runs more than its class's `forward`: hooks, or a `forward` that accelerate or somebody
    else has set on the instance."""
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))


def makes_ordinary_tensors() -> bool:
    """Whether a tensor that is made now can be kept and used at any later time. Those made inside of `torch.func.grad`
    or under a fake tensor mode cannot."""
    tensor = torch.empty(0)
    return type(tensor) is torch.Tensor and not is_functorch_wrapped_tensor(tensor)


def keeps_tensors(maxsize: int) -> Callable[[Callable[..., torch.Tensor]], Callable[..., torch.Tensor]]:
    """Decorator of a function whose result depends on its arguments alone: the last `maxsize` results are kept, but
    none that is made while torch compiles, or that is no ordinary tensor."""

    def decorate(compute: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        kept = lru_cache(maxsize)(compute)

        @wraps(compute)
        def keeping(*arguments) -> torch.Tensor:
            if torch.compiler.is_compiling() or not makes_ordinary_tensors():
                return compute(*arguments)
            with torch.inference_mode(False):  # training must be able to use it too
                return kept(*arguments)

        return keeping

    return decorate
