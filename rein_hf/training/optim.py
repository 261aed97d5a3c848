"""The parameter groups of the authors' configuration. Its schedule is transformers' `polynomial`, see the recipes."""

from __future__ import annotations

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from ..backbone import ViTPyramidBackbone
from ..tuner import ReinLayer


NORMS = (nn.LayerNorm, nn.GroupNorm, nn.BatchNorm2d)


def param_groups(model: nn.Module, lr: float, weight_decay: float, backbone_lr_factor: float = 0.1) -> list[dict]:
    """Trainable parameters in groups of one learning rate and weight decay.

    No decay for norms, level embedding, Rein's tokens and scale; everything else decays, biases and the pixel
    decoder's level encoding included. Parameters of the backbone itself, which train in full fine-tuning only, learn
    at a tenth of the rate: without that full fine-tuning collapses.

    Args:
        model: a segmenter, with or without adapter.
        lr (`float`): learning rate of the head and of Rein.
        weight_decay (`float`): for whatever decays.
        backbone_lr_factor (`float`): factor of the backbone's learning rate.

    Returns:
        For a `torch.optim` optimizer: dicts of `params`, `lr`, `weight_decay` and, to read them by, `names`.

    Raises:
        ValueError: nothing in the model is trainable.
    """
    modules = dict(model.named_modules())
    adapters = {
        f"{name}.{part}.": isinstance(module, ReinLayer)
        for name, module in modules.items()
        if isinstance(module, BaseTunerLayer)
        for part in module.adapter_layer_names
    }
    of_adapter, of_rein = tuple(adapters), tuple(prefix for prefix, rein in adapters.items() if rein)
    backbones = tuple(name + "." for name, module in modules.items() if isinstance(module, ViTPyramidBackbone))
    groups: dict[tuple[float, float], dict] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        owner = modules[name.rpartition(".")[0]]
        is_token_or_scale = name.startswith(of_rein) and isinstance(owner, nn.ParameterDict)
        is_level_embedding = "transformer_module.level_embed." in name
        decay = 0.0 if isinstance(owner, NORMS) or is_token_or_scale or is_level_embedding else weight_decay
        rate = lr * backbone_lr_factor if name.startswith(backbones) and not name.startswith(of_adapter) else lr
        group = groups.setdefault((rate, decay), {"params": [], "lr": rate, "weight_decay": decay, "names": []})
        group["params"].append(parameter)
        group["names"].append(name)
    if not groups:
        raise ValueError("No parameter of the model requires gradients; expected an adapter or a model to train.")
    return list(groups.values())
