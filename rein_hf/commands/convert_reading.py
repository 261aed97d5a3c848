"""What a conversion reads, and whether its keys and shapes are those of the model that it becomes."""

from __future__ import annotations

import copy
import os

import torch
from peft import PeftModel
from transformers import Dinov2Config, Dinov2Model, Mask2FormerConfig, Mask2FormerForUniversalSegmentation

import rein_hf

from .. import ReinConfig, ViTPyramidConfig
from ..reference import (
    BACKBONE_NAMES,
    REIN_AND_HEAD_NAMES,
    SOMA_NAMES,
    Tensors,
    compare_tensors,
    is_soma,
    soma_sizes,
    to_reference,
)
from .convert_arguments import ConversionArguments
from .convert_files import read_tensors, split_tensors
from .convert_soma import SOMA_KEYS, plain_lora


def read_checkpoint(args: ConversionArguments) -> tuple[Tensors, Tensors]:
    """Rein or SoMA and head, and the backbone; no tensors of it if it is a folder or on the Hub.

    Raises:
        ValueError: a file holds something else; `--weights` is no key of SoMA's files, or the file is none of them.
    """
    tensors = read_tensors(args.checkpoint)
    if is_soma(tensors):
        if args.weights not in (None, *SOMA_KEYS):
            raise ValueError(f"--weights is {args.weights!r}; expected one of {', '.join(SOMA_KEYS)}.")
        return read_tensors(args.checkpoint, args.weights or SOMA_KEYS[0]), read_backbone(args)
    if args.weights:
        raise ValueError(f"--weights {args.weights} has no effect: {args.checkpoint} is no file of SoMA.")
    rein_and_head = {k: v for k, v in tensors.items() if not k.startswith("backbone.") or ".reins." in k}
    backbone = {k.removeprefix("backbone."): v for k, v in tensors.items() if k not in rein_and_head}
    if not any(name.startswith(("decode_head.", "backbone.reins.")) for name in tensors):
        swapped = any(name.startswith("blocks.") for name in tensors)
        raise ValueError(
            f"{args.checkpoint} has no keys backbone.reins.* and decode_head.*; found {', '.join(list(tensors)[:4])} "
            f"... {'It is a backbone: are --checkpoint and --backbone swapped?' if swapped else ''}"
        )
    if backbone and args.backbone:
        raise ValueError(
            f"{args.checkpoint} is a full checkpoint with a backbone; leave --backbone {args.backbone} out."
        )
    return rein_and_head, backbone or read_backbone(args)


def read_backbone(args: ConversionArguments) -> Tensors:
    """The tensors of a backbone that is a file; none if it is a folder or on the Hub."""
    if not args.backbone:
        raise ValueError(f"{args.checkpoint} holds no backbone; give --backbone (a .pth file, a folder or a Hub id).")
    if not os.path.isfile(args.backbone) and not args.backbone.endswith(".pth"):
        return {}
    backbone = read_tensors(args.backbone)
    if not any(name.startswith("blocks.") for name in backbone):
        raise ValueError(
            f"{args.backbone} is no DINOv2 by the names of its release (blocks.0.norm1.weight, ...); found "
            f"{', '.join(list(backbone)[:4])} ..."
        )
    return backbone


def check_names(
    args: ConversionArguments,
    trained: Tensors,
    backbone: Tensors,
    vit: Dinov2Config,
    rein: ReinConfig | None,
    model_args: dict,
) -> None:
    """Compares all keys and shapes with those of the model that their sizes make, built without memory.

    Args:
        trained: Rein and head or, with `rein` None, SoMA and head, by the authors' names.
        backbone: by DINOv2's names; none if it is a folder or on the Hub.

    Raises:
        ValueError: lists all that do not fit.
    """
    with torch.device("meta"):
        vit_weights = Dinov2Model(vit).state_dict()
    lora = None if rein else {**soma_sizes(trained), "half": True}
    model = build_without_memory(segmenter_config(vit, model_args), rein, lora)
    expected, _ = to_reference(split_tensors(model)[0], REIN_AND_HEAD_NAMES if rein else SOMA_NAMES)
    lines = [f"{args.checkpoint}: {line}" for line in compare_tensors(trained, expected)]
    if backbone:
        expected, _ = to_reference(vit_weights, BACKBONE_NAMES)
        lines += [f"{args.backbone or args.checkpoint}: {line}" for line in compare_tensors(backbone, expected)]
    if lines:
        raise ValueError("\n  ".join([f"{len(lines)} keys do not fit, nothing was written:", *lines]))


def segmenter_config(vit: Dinov2Config, model_args: dict) -> Mask2FormerConfig:
    """The configuration of the model that [`build_segmenter`] makes on such a backbone."""
    maps = ViTPyramidConfig(backbone_config=copy.deepcopy(vit), out_indices=model_args["out_indices"])
    others = {name: model_args[name] for name in ("id2label", "num_queries")}
    return Mask2FormerConfig(backbone_config=maps, **others, **model_args["head"])


def build_without_memory(config: Mask2FormerConfig, rein: ReinConfig | None, lora: dict | None) -> PeftModel:
    """A model with an adapter, and no memory for its weights: Rein or, of these arguments, a [`plain_lora`]."""
    with torch.device("meta"):
        model = Mask2FormerForUniversalSegmentation(config)
        if rein is None:
            return rein_hf.add_adapter(model, plain_lora(model, **lora))
        return rein_hf.add_rein(model, copy.deepcopy(rein))
