r"""Converts a checkpoint of the authors' code, or of SoMA's, to an adapter that `from_pretrained` loads, and back.

    rein-hf convert --checkpoint rein_and_head.pth --backbone dinov2_converted.pth \
        --output_dir OUT
    rein-hf convert --checkpoint rein_and_head.pth --backbone facebook/dinov2-large \
        --output_dir OUT
    rein-hf convert --checkpoint full.pth --output_dir OUT
    rein-hf convert --reverse --checkpoint OUT --output_dir AUTHORS_FORM

A checkpoint of SoMA becomes a LoRA of twice its rank, with the part of DINOv2's weights that it replaces taken away.

The backbone is the second file of the authors' form (patch 16), a file of DINOv2's release (patch 14; resampled when
it is loaded), or a folder or Hub id of transformers. Given as a file, it is written as a folder of transformers to
`--backbone_dir` and the adapter names that folder. Every key has to be known and of the right shape; otherwise all
that are not are listed, the exit status is 2 and nothing is written. Files are read with `weights_only=True`: code in
them is never run.

The way back writes no adapter whose settings the files would not give back: it names all of them.
"""

from __future__ import annotations

import os
import sys

import torch
from peft import LoraConfig
from transformers.utils import logging as transformers_logging

import rein_hf

from ..backbone import resample_to
from ..hub import write_own_card, write_relative_backbone
from ..reference import BACKBONE_NAMES, REIN_AND_HEAD_NAMES, from_reference, is_soma, soma_sizes, split_soma
from .cli import run
from .convert_arguments import PATCH_SIZE, ConversionArguments, read_sizes
from .convert_back import check_kind, options_back, rein_tensors
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
from .convert_reading import check_names, read_checkpoint
from .convert_soma import SOMA_FILE, SOMA_KEYS, VIT, plain_lora, soma_adapter, soma_content, soma_tensors


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
    adapter, backbone = read_checkpoint(args)
    frozen, of_soma = {}, is_soma(adapter)
    if of_soma:
        adapter, frozen = split_soma(adapter)
    vit, image_size, config, model_args = read_sizes(args, adapter, backbone)
    check_names(args, adapter, backbone, vit, config, model_args)
    if config:
        adapter, _ = from_reference(adapter, REIN_AND_HEAD_NAMES)
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
        trained_biases = {}
        if of_soma:
            config = plain_lora(base, **soma_sizes(adapter))
            untouched = base.model.pixel_level_module.encoder.vit.state_dict()
            adapter, trained_biases = soma_adapter(args.checkpoint, adapter, frozen, untouched)
        write_adapter(base, config, adapter, str(named), stage / "adapter")
        loaded, loaded_vit = split_tensors(rein_hf.from_pretrained(stage / "adapter", backbone=source))
        check_equal(adapter, loaded)
        if backbone:
            expected = resample_to(vit, vit_weights, image_size, PATCH_SIZE)[1]
            check_equal(expected | trained_biases, loaded_vit)
            replace_folder(source, named)
        write_relative_backbone(stage / "adapter", output_dir)
        write_own_card(stage / "adapter", output_dir)
        replace_folder(stage / "adapter", output_dir)
    in_backbone = {  # as the paper counts
        name
        for name in adapter
        if name.startswith(f"{VIT}encoder.") or ".rein_" in name and ".rein_query_content." not in name
    }
    kind = "LoRA of SoMA and biases" if of_soma else "Rein"
    print_counts(kind, [tensor for name, tensor in adapter.items() if name in in_backbone])
    print_counts("head", [tensor for name, tensor in adapter.items() if name not in in_backbone])
    print_counts(f"backbone {named}", loaded_vit.values())
    print(f"{output_dir}: loaded with rein_hf.from_pretrained, every tensor is equal to the converted one.")


def convert_to_reference(args: ConversionArguments) -> None:
    model = rein_hf.from_pretrained(args.checkpoint, backbone=args.backbone)
    check_kind(args.checkpoint, model)
    config = model.peft_config["default"]
    of_soma = isinstance(config, LoraConfig)
    tensors, backbone = soma_tensors(args, model) if of_soma else rein_tensors(args, model)
    options = options_back(args.checkpoint, config, tensors, backbone)
    name = SOMA_FILE if of_soma else REIN_AND_HEAD_FILE
    output_dir = new_folder(args.output_dir)
    with staging_folder(output_dir) as stage:
        files = stage / "files"
        files.mkdir()
        torch.save(soma_content(tensors) if of_soma else {"meta": {}, "state_dict": tensors}, files / name)
        torch.save(backbone, files / BACKBONE_FILE)
        for key in SOMA_KEYS if of_soma else ("state_dict",):
            check_equal(tensors, read_tensors(files / name, key))
        check_equal(backbone, read_tensors(files / BACKBONE_FILE))
        replace_folder(files, output_dir)
    print_counts(name, tensors.values())
    print_counts(BACKBONE_FILE, backbone.values())
    print(f"{output_dir}: read again, every tensor is equal to the adapter's and the backbone's.")
    if options:
        print(f"The way back from these files needs: {options}")


if __name__ == "__main__":
    sys.exit(run("convert"))
