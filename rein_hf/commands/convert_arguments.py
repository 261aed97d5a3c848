"""The arguments of a conversion, and what they and the files say about the sizes of the model."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path

from transformers import AutoConfig, Dinov2Config

from .. import ReinConfig
from ..labels import CITYSCAPES_CLASSES, class_names_of
from ..reference import Tensors, default_out_indices, head_sizes, is_soma, rein_sizes, vit_config


PATCH_SIZE = 16


@dataclass
class ConversionArguments:
    checkpoint: str = field(
        metadata={"help": "Rein or SoMA and head, or a full model (.pth); an adapter with --reverse."}
    )
    output_dir: str = field(metadata={"help": "Folder to write, new or empty."})
    backbone: str | None = field(default=None, metadata={"help": "DINOv2: a .pth file, a folder or a Hub id."})
    backbone_dir: str | None = field(default=None, metadata={"help": "Folder of a .pth backbone; OUT-backbone."})
    num_attention_heads: int | None = field(default=None, metadata={"help": "Of the backbone; hidden size / 64."})
    out_indices: list[int] | None = field(
        default=None, metadata={"help": "Blocks that give the four maps, from 0; 7 11 15 23 of 24, else quarters."}
    )
    decoder_attention_heads: int | None = field(
        default=None, metadata={"help": "Of the head, 8 in the paper; by default read from the sampling offsets."}
    )
    id2label: str | None = field(default=None, metadata={"help": "JSON, or a file of it; Cityscapes' 19 classes."})
    image_size: int | None = field(
        default=None, metadata={"help": "Side of the training crops if the backbone is not of patch 16; 512."}
    )
    weights: str | None = field(
        default=None,
        metadata={"help": "Of a file of SoMA: state_dict, the moving average, or ema_state_dict, what it averages."},
    )
    reverse: bool = field(default=False, metadata={"help": "From an adapter to the authors' two files."})


def pretrained_config(args: ConversionArguments) -> Dinov2Config:
    """Configuration of a backbone that is a folder or on the Hub."""
    vit = AutoConfig.from_pretrained(args.backbone)
    if not isinstance(vit, Dinov2Config):
        raise ValueError(f"--backbone {args.backbone} is of model_type {vit.model_type!r}; expected 'dinov2'.")
    if args.num_attention_heads not in (None, vit.num_attention_heads):
        raise ValueError(f"--num_attention_heads is {args.num_attention_heads}; found {vit.num_attention_heads}.")
    return vit


def crop_size(args: ConversionArguments, vit: Dinov2Config) -> int:
    """Side of the training crops, told by the positions of a backbone that was converted to patch 16."""
    if vit.patch_size != PATCH_SIZE:
        return args.image_size or 512
    if args.image_size not in (None, vit.image_size):
        raise ValueError(
            f"--image_size is {args.image_size}, but the backbone's positions fit {vit.image_size} pixels."
        )
    return vit.image_size


def rein_config(args: ConversionArguments, tensors: Tensors, vit: Dinov2Config) -> ReinConfig:
    sizes = rein_sizes(tensors)
    for name in ("hidden_size", "num_hidden_layers"):
        if sizes[name] != getattr(vit, name):
            raise ValueError(
                f"{args.checkpoint} is for a backbone of {name} {sizes[name]}; found {getattr(vit, name)}."
            )
    return ReinConfig(**sizes)


def read_sizes(
    args: ConversionArguments, tensors: Tensors, backbone: Tensors
) -> tuple[Dinov2Config, int, ReinConfig | None, dict]:
    """The model that files and arguments describe: its backbone, the side of its crops, its Rein, `None` of a file of
    SoMA, and the [`segmenter_arguments`].

    Args:
        tensors: Rein or SoMA and head, by the authors' names.
        backbone: by DINOv2's names; none if it is a folder or on the Hub.
    """
    vit = vit_config(backbone, args.num_attention_heads) if backbone else pretrained_config(args)
    image_size = crop_size(args, vit)
    rein = None if is_soma(tensors) else rein_config(args, tensors, vit)
    return vit, image_size, rein, segmenter_arguments(args, tensors, vit, rein.num_tokens if rein else 0)


def segmenter_arguments(args: ConversionArguments, tensors: Tensors, vit: Dinov2Config, num_tokens: int) -> dict:
    """What [`build_segmenter`] has to know of the head and the maps."""
    head = head_sizes(tensors)
    if args.decoder_attention_heads not in (None, head["num_attention_heads"]):
        raise ValueError(
            f"--decoder_attention_heads is {args.decoder_attention_heads}; {args.checkpoint} has sampling offsets for "
            f"{head['num_attention_heads']} heads."
        )
    blocks = args.out_indices or default_out_indices(vit.num_hidden_layers)
    if len(set(blocks)) != 4 or not set(blocks) <= set(range(vit.num_hidden_layers)):
        raise ValueError(f"--out_indices is {blocks}; expected four of the blocks 0 to {vit.num_hidden_layers - 1}.")
    return {
        "id2label": id2label(args.id2label, head.pop("num_labels")),
        "out_indices": [block + 1 for block in blocks],  # transformers counts the patch embedding as block 0
        "num_queries": head.pop("num_queries", num_tokens),
        "head": head,
    }


def id2label(given: str | None, classes: int) -> dict[int, str]:
    names = CITYSCAPES_CLASSES
    if given:
        try:
            is_file = os.path.isfile(given)
            values = json.loads(Path(given).read_text(encoding="utf-8-sig") if is_file else given)
        except ValueError as error:
            raise ValueError(
                f'--id2label is {given!r}; expected JSON in UTF-8, or a file of it, {{"0": "road", ...}} ({error}).'
            ) from error
        names = class_names_of(values, "--id2label")
    if len(names) != classes:
        raise ValueError(
            f"--id2label names classes 0 to {len(names) - 1}; the checkpoint has classes 0 to {classes - 1}."
        )
    return dict(enumerate(names))
