"""Frozen weights in the type in which autocast computes with them, cast once instead of at every forward pass."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from itertools import chain

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn


# Modules whose weights autocast casts whenever they are used, and which use them for nothing else.
CAST_BY_AUTOCAST = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.MultiheadAttention)


def cast_frozen_weights(model: nn.Module, dtype: torch.dtype) -> list[str]:
    """Casts in place the frozen float32 weights of a backbone that autocast would cast at every forward pass; of a
    whole segmenter those of its head, too.

    Features and gradients stay equal to those under autocast bit for bit, since norms, scales, positions, the patch
    embedding and adapters stay in float32. From then on the backbone, and the head, compute under autocast of this
    type, whoever calls them. The float32 weights are gone; load the model anew, or cast a copy, to compute in float32.

    Args:
        model: a [`ViTPyramidBackbone`] or a segmenter, with or without adapter. Weights that require gradients and the
            weights of an adapter are left alone, so that what is saved stays in float32.
        dtype (`torch.dtype`): `torch.bfloat16` or `torch.float16`.

    Returns:
        The names of the weights and biases that were cast; none if all are trained, or were cast before.

    Raises:
        ValueError: `dtype` is not one of these; the weights were cast to another one before.

    Example:

    ```py
    >>> import torch
    >>> from transformers import Dinov2Config
    >>> from rein_hf import ViTPyramidBackbone, ViTPyramidConfig
    >>> from rein_hf.backbone import cast_frozen_weights

    >>> vit = Dinov2Config(hidden_size=32, num_hidden_layers=4, num_attention_heads=2, patch_size=16, image_size=64)
    >>> backbone = ViTPyramidBackbone(ViTPyramidConfig(backbone_config=vit)).requires_grad_(False)
    >>> cast_frozen_weights(backbone, torch.bfloat16)[-2:]
    ['vit.encoder.layer.3.mlp.fc2.weight', 'vit.encoder.layer.3.mlp.fc2.bias']
    >>> backbone(torch.zeros(1, 3, 64, 64)).feature_maps[0].dtype
    torch.float32

    ```
    """
    if dtype not in (torch.bfloat16, torch.float16):
        raise ValueError(f"dtype is {dtype}; expected torch.bfloat16 or torch.float16, the types of autocast.")
    # what computes in a type of its own; a wrapper around one, which has its attributes, is none
    parts = [module for module in model.modules() if hasattr(type(module), "autocast_dtype")]
    for part in parts:
        if part.autocast_dtype not in (None, dtype):
            raise ValueError(
                f"The weights of the {type(part).__name__} are in {part.autocast_dtype} already, and dtype is {dtype}."
            )
    of_parts = {module for part in parts for module in part.modules()}
    # the type of the patch embedding is what some architectures convert the image to, and compute positions in
    embeddings = [part.get_input_embeddings() for part in parts if hasattr(part, "get_input_embeddings")]
    left_alone = {module for embedding in embeddings for module in embedding.modules()}
    cast = {}
    for prefix, module in _modules_of_base(model):
        if not isinstance(module, CAST_BY_AUTOCAST) or module not in of_parts or module in left_alone:
            continue
        for name, parameter in module.named_parameters(prefix, recurse=False):
            if parameter.dtype == torch.float32 and not parameter.requires_grad:
                parameter.data = parameter.data.to(dtype)
                cast[name] = module
    for part in parts:
        if not set(part.modules()).isdisjoint(cast.values()):
            part.autocast_dtype = dtype
    return list(cast)


def own_autocast(module: nn.Module, inputs: torch.Tensor) -> AbstractContextManager:
    """Autocast of the type that a module's frozen weights were cast to, if they were."""
    if module.autocast_dtype is None:
        return nullcontext()
    return torch.autocast(inputs.device.type, module.autocast_dtype)


def _modules_of_base(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The modules of a model by their names, without those that hold an adapter's weights."""
    modules = list(model.named_modules())
    of_adapters = tuple(
        chain.from_iterable(
            [f"{name}.{container}." for container in module.adapter_layer_names]
            for name, module in modules
            if isinstance(module, BaseTunerLayer)
        )
    )
    return [(name, module) for name, module in modules if not name.startswith(of_adapters)]
