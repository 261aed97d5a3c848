r"""Converts a checkpoint of the authors' code to an adapter that `rein_hf.from_pretrained` loads, and back.

    python recipes/convert_rein_to_hf.py --checkpoint rein_and_head.pth --backbone dinov2_converted.pth \
        --output_dir OUT
    python recipes/convert_rein_to_hf.py --checkpoint rein_and_head.pth --backbone facebook/dinov2-large \
        --output_dir OUT
    python recipes/convert_rein_to_hf.py --checkpoint full.pth --output_dir OUT
    python recipes/convert_rein_to_hf.py --reverse --checkpoint OUT --output_dir AUTHORS_FORM

The backbone is the second file of the authors' form (patch 16), a file of DINOv2's release (patch 14; resampled when
it is loaded), or a folder or Hub id of transformers. Given as a file, it is written as a folder of transformers to
`--backbone_dir` and the adapter names that folder. Every key has to be known and of the right shape; otherwise all
that are not are listed, the exit code is 1 and nothing is written. Files are read with `weights_only=True`: code in
them is never run.
"""

from __future__ import annotations

import copy
import json
import os
import pickle
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from transformers import (
    AutoConfig,
    AutoModel,
    Dinov2Config,
    Dinov2Model,
    HfArgumentParser,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
)
from transformers.utils import logging as transformers_logging

import rein_hf
from rein_hf import ReinConfig, ViTPyramidConfig
from rein_hf.backbone import resample_to
from rein_hf.hub import download_adapter, find_backbone
from rein_hf.labels import CITYSCAPES_CLASSES, class_names_of
from rein_hf.reference import (
    BACKBONE_NAMES,
    REIN_AND_HEAD_NAMES,
    Tensors,
    compare_tensors,
    default_out_indices,
    from_reference,
    head_sizes,
    rein_sizes,
    to_reference,
    vit_config,
)


PATCH_SIZE = 16
REIN_AND_HEAD_FILE, BACKBONE_FILE = "rein_and_head.pth", "dinov2_converted.pth"
PEFT_PREFIX = "base_model.model."


@dataclass
class ConversionArguments:
    checkpoint: str = field(metadata={"help": "Rein and head, or a full model (.pth); an adapter with --reverse."})
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
    reverse: bool = field(default=False, metadata={"help": "From an adapter to the authors' two files."})


def main(args: ConversionArguments) -> None:
    """Converts, reloads and compares what was written, and prints counts.

    Raises:
        ValueError: a file or an argument is not what it should be; the message lists all that is wrong with it.
        OSError: a file cannot be found, or a folder to be written is not empty.
    """
    if args.reverse:
        convert_to_reference(args)
    else:
        convert_from_reference(args)


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


def read_tensors(path: str | os.PathLike) -> Tensors:
    """The tensors of a .pth file, or of the `state_dict` in it, as float32."""
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path} is no file; expected a checkpoint of the authors' code (.pth).")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        code = re.search(r"GLOBAL (\S+)", str(error))
        found = f"pickled code ({code[1]})" if code else "something else than PyTorch's format"
        raise ValueError(f"{path} holds {found}; only files of tensors are read. Nothing in it was run.") from error
    except Exception as error:  # a damaged file ends in any of a dozen types
        reason = str(error).partition(". ")[0]
        raise ValueError(f"{path} is truncated or no PyTorch file ({type(error).__name__}: {reason}).") from error
    tensors = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(tensors, dict) or not tensors:
        raise ValueError(f"{path} holds no state dict; expected names with tensors, or `state_dict` with them.")
    wrong = [f"{name!r}: {type(x).__name__}" for name, x in tensors.items() if not isinstance(x, torch.Tensor)]
    wrong += [
        f"{name}: {x.dtype}, or not finite"
        for name, x in tensors.items()
        if isinstance(x, torch.Tensor) and not (x.is_floating_point() and x.isfinite().all())
    ]
    if wrong:
        raise ValueError("\n  ".join([f"{path}: expected finite floating point tensors; found", *wrong]))
    return {name: x.float() for name, x in tensors.items()}


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


def write_backbone(vit: Dinov2Config, weights: Tensors, folder: Path) -> None:
    model = Dinov2Model(vit)
    model.load_state_dict(weights)
    model.save_pretrained(folder)


def write_adapter(
    base: Mask2FormerForUniversalSegmentation, rein: ReinConfig, adapter: Tensors, backbone: str, folder: Path
) -> None:
    """Saves the adapter of a model and the name of the backbone that it belongs to."""
    base.name_or_path = base.config.name_or_path = base.config.backbone_config.backbone_config.name_or_path = backbone
    model = rein_hf.add_rein(base, rein)
    set_peft_model_state_dict(model, {PEFT_PREFIX + name: tensor for name, tensor in adapter.items()})
    model.save_pretrained(folder, save_embedding_layers=False)
    rein_hf.build_image_processor().save_pretrained(folder)


def split_tensors(model: PeftModel) -> tuple[Tensors, Tensors]:
    """The adapter's tensors and the backbone's, by our names. Rein is gone from the model after it."""
    adapter = get_peft_model_state_dict(model, save_embedding_layers=False)
    adapter = {name.removeprefix(PEFT_PREFIX): tensor for name, tensor in adapter.items()}
    return adapter, model.unload().model.pixel_level_module.encoder.vit.state_dict()


def check_equal(expected: Tensors, found: Tensors) -> None:
    names = [name for name in expected if name not in found or not torch.equal(expected[name], found[name])]
    names += [name for name in found if name not in expected]
    if names:
        raise ValueError("\n  ".join(["these tensors came back changed, nothing was written:", *names]))


def print_counts(title: str, tensors: Iterable[torch.Tensor]) -> None:
    sizes = [tensor.numel() for tensor in tensors]
    print(f"{title}: {len(sizes)} tensors, {sum(sizes):,} parameters")


def new_folder(path: str | os.PathLike) -> Path:
    path = Path(os.path.abspath(path))
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FileExistsError(f"{path} is there already; expected a new or an empty folder.")
    return path


def replace_folder(source: Path, target: Path) -> None:
    if target.exists():
        target.rmdir()  # empty, see new_folder; moving would put the source into it
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(source, target)


@contextmanager
def staging_folder(output_dir: Path) -> Iterator[Path]:
    """A folder beside the output, moved there when all is right and gone otherwise."""
    output_dir.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output_dir.parent, prefix=f".{output_dir.name}-") as stage:
        yield Path(stage)


if __name__ == "__main__":
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        main(*HfArgumentParser(ConversionArguments, description=__doc__).parse_args_into_dataclasses())
    except (OSError, ValueError) as error:
        sys.exit(f"convert_rein_to_hf: {error}")
