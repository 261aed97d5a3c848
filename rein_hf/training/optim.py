"""The parameter groups of the authors' configuration. Their learning rate schedule is transformers' `polynomial`."""

from __future__ import annotations

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from ..backbone import ViTPyramidBackbone
from ..tuner import ReinLayer


NORMS = (nn.LayerNorm, nn.GroupNorm, nn.BatchNorm2d)


def param_groups(
    model: nn.Module,
    lr: float,
    weight_decay: float,
    backbone_lr_factor: float = 0.1,
    *,
    adapter_lr_factor: float = 1.0,
    head_lr_factor: float = 1.0,
    adapter_weight_decay_factor: float = 1.0,
) -> list[dict]:
    """The trainable parameters in groups, each with one learning rate and one weight decay.

    Norms, the transformer decoder's level embedding, Rein's tokens and its scale have no weight decay; everything else
    has, including biases and the pixel decoder's level embedding. A backbone without adapter, which trains in full
    fine-tuning only, has a tenth of the learning rate: at the full rate, full fine-tuning collapses. All that trains
    in a backbone with an adapter is the adapter's, a LoRA's biases too.

    Args:
        model: a segmenter, with or without adapter.
        lr (`float`): learning rate of the head and of Rein.
        weight_decay (`float`): of the parameters that have one.
        backbone_lr_factor, adapter_lr_factor, head_lr_factor (`float`): factors of the learning rate, by part.
        adapter_weight_decay_factor (`float`): factor of the adapter's weight decay.

    Returns:
        Groups for a `torch.optim` optimizer: dicts of `params`, `lr`, `weight_decay`, the `weight_decay_factor` that
        is in it, and `names` for people.

    Raises:
        ValueError: nothing in the model is trainable.
    """
    modules = dict(model.named_modules())
    is_rein = {  # by the prefix of the adapter's parameters
        f"{name}.{part}.": isinstance(module, ReinLayer)
        for name, module in modules.items()
        if isinstance(module, BaseTunerLayer)
        for part in module.adapter_layer_names
    }
    adapter_prefixes, rein_prefixes = tuple(is_rein), tuple(prefix for prefix, rein in is_rein.items() if rein)
    backbone_prefixes = tuple(f"{name}." for name, module in modules.items() if isinstance(module, ViTPyramidBackbone))
    is_adapted = any(prefix.startswith(backbone_prefixes) for prefix in adapter_prefixes)
    groups: dict[tuple[float, float], dict] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        owner = modules[name.rpartition(".")[0]]
        is_token_or_scale = name.startswith(rein_prefixes) and isinstance(owner, nn.ParameterDict)
        is_level_embedding = "transformer_module.level_embed." in name
        has_decay = not (isinstance(owner, NORMS) or is_token_or_scale or is_level_embedding)
        rate_factor, decay_factor = head_lr_factor, 1.0
        if name.startswith(adapter_prefixes) or is_adapted and name.startswith(backbone_prefixes):
            rate_factor, decay_factor = adapter_lr_factor, adapter_weight_decay_factor
        elif name.startswith(backbone_prefixes):
            rate_factor = backbone_lr_factor
        rate, decay_factor = lr * rate_factor, decay_factor if has_decay else 0.0
        new = {"params": [], "lr": rate, "weight_decay": weight_decay * decay_factor, "names": []}
        group = groups.setdefault((rate, decay_factor), {**new, "weight_decay_factor": decay_factor})
        group["params"].append(parameter)
        group["names"].append(name)
    if not groups:
        raise ValueError("No parameter of the model requires gradients; expected an adapter or a model to train.")
    return list(groups.values())


def use_fused_optimizer(groups: list[dict]) -> bool | None:
    """What `fused` of a `torch.optim` optimizer should be for parameter groups as of [`param_groups`].

    A fused step is one kernel for many parameters, where torch's default on a GPU takes a dozen.

    Returns:
        `True` if all parameters are plain tensors on CUDA devices, otherwise `None`, torch's own choice, also for the
        sharded parameters of FSDP.
    """
    parameters = [parameter for group in groups for parameter in group["params"]]
    plain = all(type(parameter.data) is torch.Tensor for parameter in parameters)
    return True if plain and all(parameter.device.type == "cuda" for parameter in parameters) else None
