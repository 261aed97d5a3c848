"""Casts the weights of many layers in one operation, instead of one operation for each of them under autocast.

On a GPU most of such casts take longer to launch than to compute. On a CPU there is nothing to launch, and all casts
together only take memory: there they are left to autocast.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from ..backbone.residual_norms import cast_for_linears
from ..backbone.transforms import has_hooks, is_transformed
from ..tuner import is_autocast_enabled


class CastWeights:
    """The weights of a module's linear and attention layers in the type that autocast computes them in.

    Results and gradients are those of autocast. Nothing is cast where autocast is off, or would not cast a weight;
    where torch compiles, exports or transforms the module; and for layers with hooks or with weights of a special kind
    (sharded, quantized): all of these call their layers as always.

    Args:
        module: what is computed.
        inputs: a tensor that goes into it.
    """

    def __init__(self, module: nn.Module, inputs: torch.Tensor) -> None:
        self.dtype: torch.dtype | None = None
        self._layers: dict[nn.Module, tuple[torch.Tensor, torch.Tensor | None]] = {}
        device = inputs.device
        if torch.compiler.is_compiling() or torch.jit.is_tracing():
            return
        if not is_autocast_enabled(device.type) or not saves_time(device):
            return
        if getattr(module, "autocast_dtype", None) is not None:  # all weights are in it, and inputs are still to cast
            self.dtype = torch.get_autocast_dtype(device.type)
            return
        layers = {layer: _weights(layer, device) for layer in module.modules() if _is_plain(layer)}
        layers = {layer: weights for layer, weights in layers.items() if weights}
        every = list({weight: None for weights in layers.values() for weight in weights})
        if not every or is_transformed(inputs, *every):
            return
        self.dtype = torch.get_autocast_dtype(device.type)
        casts: dict[nn.Parameter, torch.Tensor] = {}
        for group in ([one for one in every if one.requires_grad], [one for one in every if not one.requires_grad]):
            if group:
                casts.update(zip(group, _CastTogether.apply(self.dtype, *group), strict=True))
        self._layers = {
            layer: (casts[weights[0]], casts[weights[1]] if len(weights) > 1 else None)
            for layer, weights in layers.items()
        }

    def of(self, layer: nn.MultiheadAttention) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Weight and bias of the projections of queries, keys and values."""
        return self._layers[layer] if layer in self._layers else (layer.in_proj_weight, layer.in_proj_bias)

    def linear(self, layer: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
        """`layer(inputs)`."""
        if self.dtype is None or layer not in self._layers:
            return layer(inputs)
        return nn.functional.linear(inputs, *self._layers[layer])

    def cast(self, inputs: torch.Tensor) -> torch.Tensor:
        """The inputs of several layers, cast once for all of them."""
        return cast_for_linears(inputs, self.dtype)


def saves_time(device: torch.device) -> bool:
    """Whether casting weights together is faster on a device than one by one."""
    return device.type != "cpu"


NO_CASTS = CastWeights(nn.Identity(), torch.empty(0))


def _is_plain(layer: nn.Module) -> bool:
    is_known = type(layer) in (nn.Linear, NonDynamicallyQuantizableLinear) or isinstance(layer, nn.MultiheadAttention)
    return is_known and not has_hooks(layer)


def _weights(layer: nn.Module, device: torch.device) -> list[nn.Parameter]:
    """Weight and bias of a layer; nothing if they are not what is cast here."""
    is_attention = isinstance(layer, nn.MultiheadAttention)
    names = ("in_proj_weight", "in_proj_bias") if is_attention else ("weight", "bias")
    weights = [weight for weight in map(layer._parameters.get, names) if weight is not None]
    usual = all(
        type(weight) is nn.Parameter and weight.dtype == torch.float32 and weight.device == device and weight.numel()
        for weight in weights
    )
    return weights if usual else []


class _CastTogether(torch.autograd.Function):
    """Weights in another type, and their gradients in the weights' type."""

    @staticmethod
    def forward(ctx, dtype: torch.dtype, *weights: torch.Tensor) -> tuple[torch.Tensor, ...]:
        ctx.set_materialize_grads(False)  # a weight that is not used gets no gradient
        return tuple(_cast_all(weights, dtype))

    @staticmethod
    def backward(ctx, *grads: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        if torch.is_grad_enabled():  # this backward pass is to be differentiated
            return None, *(None if grad is None else grad.to(torch.float32) for grad in grads)
        casts = iter(_cast_all([grad for grad in grads if grad is not None], torch.float32))
        return None, *(None if grad is None else next(casts) for grad in grads)


def _cast_all(tensors, dtype: torch.dtype) -> list[torch.Tensor]:
    casts = [torch.empty_like(tensor, dtype=dtype) for tensor in tensors]
    if casts:
        torch._foreach_copy_(casts, list(tensors))
    return casts
