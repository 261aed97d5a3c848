"""Files of SoMA, a LoRA and a head, to adapters and back, for `convert.py`."""

from __future__ import annotations

import torch
from peft import LoraConfig, PeftModel
from transformers import AutoModel

from ..hub import download_adapter, find_backbone
from ..reference import (
    BACKBONE_NAMES,
    SOMA_BACKBONE_NAMES,
    SOMA_NAMES,
    Tensors,
    from_plain_lora,
    from_reference,
    to_plain_lora,
    to_reference,
)
from ..soma import minor_components, target_pattern
from .convert_arguments import ConversionArguments
from .convert_files import split_tensors


SOMA_KEYS = ("state_dict", "ema_state_dict")
SOMA_FILE = "soma_and_head.pth"
VIT = "model.pixel_level_module.encoder.vit."


def plain_lora(model: torch.nn.Module, r: int, first_block: int, half: bool = False) -> LoraConfig:
    """The configuration of the LoRA of rank 2r, or with `half` of r, as [`SomaConfig`] is saved."""
    rank = r if half else 2 * r
    return LoraConfig(r=rank, lora_alpha=rank, bias="lora_only", target_modules=target_pattern(model, first_block))


def start_of(names: Tensors, weights: Tensors) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """B0 and A0 of each layer with a LoRA, by its name.

    Args:
        names: tensors of an adapter, by our names; of a LoRA of rank r.
        weights: of the backbone, by our names.
    """
    layers = {
        name.removesuffix(".lora_A.weight"): len(x) for name, x in names.items() if name.endswith("lora_A.weight")
    }
    return {layer: minor_components(weights[f"{layer.removeprefix(VIT)}.weight"], r) for layer, r in layers.items()}


def soma_adapter(
    checkpoint: str, trained: Tensors, frozen: Tensors, weights: Tensors
) -> tuple[Tensors, dict[str, torch.Tensor]]:
    """The tensors of the adapter, and the backbone's weights with the biases that were trained.

    Args:
        checkpoint: for errors.
        trained, frozen: as [`split_soma`] gives them.
        weights: of the untouched backbone, by our names.

    Raises:
        ValueError: a tensor that was not trained differs from the backbone's.
    """
    named, unknown = from_reference(frozen, SOMA_BACKBONE_NAMES)
    unknown += [name for name in named if name not in weights and name != "embeddings.mask_token"]
    differ = [
        name
        for name, tensor in named.items()
        if name in weights
        and (weights[name].shape != tensor.shape or (weights[name] - tensor).abs().max() > 1e-5 * tensor.abs().max())
    ]
    if unknown or differ:
        lines = [f"unknown {name}" for name in unknown] + [f"another value in {name}" for name in differ]
        raise ValueError("\n  ".join([f"{checkpoint} belongs to another backbone than the one given:", *lines]))
    lora, _ = from_reference(trained, SOMA_NAMES)
    adapter = to_plain_lora(lora, start_of(lora, weights))
    biases = {
        name.removeprefix(VIT).replace(".base_layer.", "."): tensor
        for name, tensor in lora.items()
        if ".base_layer." in name
    }
    return adapter, {**weights, **biases}


def soma_tensors(args: ConversionArguments, model: PeftModel) -> tuple[Tensors, Tensors]:
    """The tensors of a LoRA that SoMA has made, by SoMA's names, and its backbone's, by DINOv2's.

    Raises:
        ValueError: SoMA has not made it.
    """
    adapter, weights = split_tensors(model)
    source = args.backbone or find_backbone(args.checkpoint, download_adapter(args.checkpoint))
    untouched = AutoModel.from_pretrained(source or model.peft_config["default"].base_model_name_or_path).state_dict()
    for name in adapter:
        if ".base_layer." in name:
            own = name.removeprefix(VIT).replace(".base_layer.", ".")
            weights[own] = untouched[own]
    if "embeddings.mask_token" in untouched:
        weights["embeddings.mask_token"] = untouched["embeddings.mask_token"]
    _, unknown = to_reference(adapter, SOMA_NAMES)
    backbone, unknown_of_vit = to_reference(weights, BACKBONE_NAMES)
    halves = {name: x[: len(x) // 2] for name, x in adapter.items() if name.endswith(".lora_A.weight")}
    if unknown or unknown_of_vit or not halves:
        lines = [f"{args.checkpoint} has tensors that SoMA's files have no name for:", *unknown, *unknown_of_vit]
        raise ValueError("\n  ".join(lines))
    tensors, _ = to_reference(from_plain_lora(adapter, start_of(halves, weights)), SOMA_NAMES)
    return tensors, backbone


def soma_content(tensors: Tensors) -> dict[str, Tensors]:
    """What SoMA's file of these tensors holds: they are the moving average, and what it averages, too."""
    averaged = {f"module.{name}": tensor for name, tensor in tensors.items()}
    return dict(zip(SOMA_KEYS, (tensors, averaged), strict=True))
