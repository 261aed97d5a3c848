r"""Converts a checkpoint of the authors' code to an adapter that `rein_hf.from_pretrained` loads, and back.

    rein-hf convert --checkpoint rein_and_head.pth --backbone dinov2_converted.pth \
        --output_dir OUT
    rein-hf convert --checkpoint rein_and_head.pth --backbone facebook/dinov2-large \
        --output_dir OUT
    rein-hf convert --checkpoint full.pth --output_dir OUT
    rein-hf convert --reverse --checkpoint OUT --output_dir AUTHORS_FORM

The backbone is the second file of the authors' form (patch 16), a file of DINOv2's release (patch 14; resampled when
it is loaded), or a folder or Hub id of transformers. Given as a file, it is written as a folder of transformers to
`--backbone_dir` and the adapter names that folder. Every key has to be known and of the right shape; otherwise all
that are not are listed, the exit status is 2 and nothing is written. Files are read with `weights_only=True`: code in
them is never run.
"""

from __future__ import annotations

import copy
import os
import sys

import torch
from peft import PeftModel
from transformers import (
    AutoModel,
    Dinov2Config,
    Dinov2Model,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
)
from transformers.utils import logging as transformers_logging

import rein_hf

from .. import ReinConfig, ViTPyramidConfig
from ..backbone import resample_to
from ..hub import download_adapter, find_backbone
from ..reference import (
    BACKBONE_NAMES,
    REIN_AND_HEAD_NAMES,
    Tensors,
    compare_tensors,
    from_reference,
    to_reference,
    vit_config,
)
from .cli import run
from .convert_arguments import (
    PATCH_SIZE,
    ConversionArguments,
    crop_size,
    pretrained_config,
    rein_config,
    segmenter_arguments,
)
from .convert_files import (
    check_equal,
    new_folder,
    print_counts,
    read_tensors,
    replace_folder,
    split_tensors,
    staging_folder,
    write_adapter,
    write_backbone,
)


REIN_AND_HEAD_FILE, BACKBONE_FILE = "rein_and_head.pth", "dinov2_converted.pth"


def main(args: ConversionArguments) -> None:
    """Converts, reloads and compares what was written, and prints counts.

    Raises:
        ValueError: a file or an argument is not what it should be; the message lists all that is wrong with it.
        OSError: a file cannot be found, or a folder to be written is not empty.
    """
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        if args.reverse:
            convert_to_reference(args)
        else:
            convert_from_reference(args)
    finally:
        transformers_logging.set_verbosity(verbosity)
        transformers_logging.enable_progress_bar()


def convert_from_reference(args: ConversionArguments) -> None:
    rein_and_head, backbone = read_checkpoint(args)
    vit = vit_config(backbone, args.num_attention_heads) if backbone else pretrained_config(args)
    image_size = crop_size(args, vit)
    rein = rein_config(args, rein_and_head, vit)
    model_args = segmenter_arguments(args, rein_and_head, vit, rein.num_tokens)
    check_names(args, rein_and_head, backbone, vit, rein, model_args)
    adapter, _ = from_reference(rein_and_head, REIN_AND_HEAD_NAMES)
    vit_weights, _ = from_reference(backbone, BACKBONE_NAMES)

    output_dir = new_folder(args.output_dir)
    with staging_folder(output_dir) as stage:
        source = named = args.backbone
        if backbone:
            source, named = stage / "backbone", new_folder(args.backbone_dir or f"{output_dir}-backbone")
            write_backbone(vit, vit_weights, source)
        elif os.path.isdir(source):
            named = os.path.abspath(source)  # so that the adapter finds it from any working directory
        base = rein_hf.build_segmenter(source, image_size=image_size, patch_size=PATCH_SIZE, **model_args)
        write_adapter(base, rein, adapter, str(named), stage / "adapter")
        loaded, loaded_vit = split_tensors(rein_hf.from_pretrained(stage / "adapter", backbone=source))
        check_equal(adapter, loaded)
        if backbone:
            check_equal(resample_to(vit, vit_weights, image_size, PATCH_SIZE)[1], loaded_vit)
            replace_folder(source, named)
        replace_folder(stage / "adapter", output_dir)
    of_rein = {
        name for name in adapter if ".rein_" in name and ".rein_query_content." not in name
    }  # as the paper counts
    print_counts("Rein", [tensor for name, tensor in adapter.items() if name in of_rein])
    print_counts("head", [tensor for name, tensor in adapter.items() if name not in of_rein])
    print_counts(f"backbone {named}", loaded_vit.values())
    print(f"{output_dir}: loaded with rein_hf.from_pretrained, every tensor is equal to the converted one.")


def convert_to_reference(args: ConversionArguments) -> None:
    model = rein_hf.from_pretrained(args.checkpoint, backbone=args.backbone)
    if not isinstance(model, PeftModel):
        raise ValueError(f"{args.checkpoint} is a whole {type(model).__name__}; expected a Rein adapter.")
    config = model.peft_config["default"]
    if config.layers_to_transform is not None or not config.use_softmax:
        raise ValueError(
            f"{args.checkpoint} refines some blocks only or has no softmax: their files cannot tell that."
        )
    adapter, vit_weights = split_tensors(model)
    backbone = args.backbone or find_backbone(args.checkpoint, download_adapter(args.checkpoint))
    mask_token = AutoModel.from_pretrained(backbone or config.base_model_name_or_path).embeddings.mask_token
    if mask_token is not None:
        vit_weights["embeddings.mask_token"] = mask_token.detach()
    rein_and_head, unknown = to_reference(adapter, REIN_AND_HEAD_NAMES)
    backbone, unknown_of_vit = to_reference(vit_weights, BACKBONE_NAMES)
    if unknown or unknown_of_vit:
        lines = [f"{args.checkpoint} has tensors that their files have no name for:", *unknown, *unknown_of_vit]
        raise ValueError("\n  ".join(lines))

    output_dir = new_folder(args.output_dir)
    with staging_folder(output_dir) as stage:
        files = stage / "files"
        files.mkdir()
        torch.save({"meta": {}, "state_dict": rein_and_head}, files / REIN_AND_HEAD_FILE)
        torch.save(backbone, files / BACKBONE_FILE)
        check_equal(rein_and_head, read_tensors(files / REIN_AND_HEAD_FILE))
        check_equal(backbone, read_tensors(files / BACKBONE_FILE))
        replace_folder(files, output_dir)
    print_counts(REIN_AND_HEAD_FILE, rein_and_head.values())
    print_counts(BACKBONE_FILE, backbone.values())
    print(f"{output_dir}: read again, every tensor is equal to the adapter's and the backbone's.")


def read_checkpoint(args: ConversionArguments) -> tuple[Tensors, Tensors]:
    """Rein and head, and the backbone; no tensors of it if it is a folder or on the Hub."""
    tensors = read_tensors(args.checkpoint)
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
    if not backbone and not args.backbone:
        raise ValueError(f"{args.checkpoint} holds no backbone; give --backbone (a .pth file, a folder or a Hub id).")
    if args.backbone and (os.path.isfile(args.backbone) or args.backbone.endswith(".pth")):
        backbone = read_tensors(args.backbone)
        if not any(name.startswith("blocks.") for name in backbone):
            raise ValueError(
                f"{args.backbone} is no DINOv2 by the names of its release (blocks.0.norm1.weight, ...); found "
                f"{', '.join(list(backbone)[:4])} ..."
            )
    return rein_and_head, backbone


def check_names(
    args: ConversionArguments,
    rein_and_head: Tensors,
    backbone: Tensors,
    vit: Dinov2Config,
    rein: ReinConfig,
    model_args: dict,
) -> None:
    """Compares all keys and shapes with those of the model that their sizes make, built without memory."""
    maps = ViTPyramidConfig(backbone_config=copy.deepcopy(vit), out_indices=model_args["out_indices"])
    config = Mask2FormerConfig(
        backbone_config=maps,
        id2label=model_args["id2label"],
        num_queries=model_args["num_queries"],
        **model_args["head"],
    )
    with torch.device("meta"):
        vit_weights = Dinov2Model(vit).state_dict()
        model = rein_hf.add_rein(Mask2FormerForUniversalSegmentation(config), copy.deepcopy(rein))
    expected, _ = to_reference(split_tensors(model)[0], REIN_AND_HEAD_NAMES)
    lines = [f"{args.checkpoint}: {line}" for line in compare_tensors(rein_and_head, expected)]
    if backbone:
        expected, _ = to_reference(vit_weights, BACKBONE_NAMES)
        lines += [f"{args.backbone or args.checkpoint}: {line}" for line in compare_tensors(backbone, expected)]
    if lines:
        raise ValueError("\n  ".join([f"{len(lines)} keys do not fit, nothing was written:", *lines]))


if __name__ == "__main__":
    sys.exit(run("convert"))
