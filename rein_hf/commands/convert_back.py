"""From an adapter to the authors' files: which adapters they can hold, and what the way back from them needs."""

from __future__ import annotations

import json
import shlex
from typing import Any

from peft import LoraConfig, PeftConfig, PeftModel
from transformers import AutoImageProcessor, AutoModel, Mask2FormerConfig
from transformers.utils import IMAGE_PROCESSOR_NAME, cached_file

from .. import ReinConfig, build_image_processor
from ..backbone import resample_to
from ..hub import download_adapter, find_backbone
from ..reference import BACKBONE_NAMES, REIN_AND_HEAD_NAMES, Tensors, soma_sizes, split_soma, to_reference
from ..tuner.recorded import differing_values
from .convert_arguments import PATCH_SIZE, ConversionArguments, read_sizes
from .convert_files import split_tensors
from .convert_reading import build_without_memory, check_names, segmenter_config


# Fields of an adapter's configuration that are not compared: where it comes from, how it started, what is at work in
# training alone, and which modules it changes, which the names of its tensors tell.
UNCOMPARED = {
    *("auto_mapping", "base_config", "base_model_name_or_path", "peft_type", "peft_version", "revision", "task_type"),
    *("inference_mode", "init_lora_weights", "init_scale", "patch_size", "lora_dropout"),
    *("target_modules", "exclude_modules", "modules_to_save", "layers_to_transform", "layers_pattern"),
}


def check_kind(checkpoint: str, model: Any) -> None:
    """Refuses what the files have no form for.

    Raises:
        ValueError: the model has no adapter, or one of another method, another head or another backbone.
    """
    adapter = model.peft_config["default"] if isinstance(model, PeftModel) else None
    config = model.config
    vit_type = config.backbone_config.backbone_config.model_type
    if adapter is None:
        found = f"a whole {type(model).__name__}"
    elif not isinstance(adapter, ReinConfig | LoraConfig):
        found = f"an adapter of peft_type {getattr(adapter.peft_type, 'value', adapter.peft_type)}"
    elif config.model_type != Mask2FormerConfig.model_type:
        found = f"an adapter with a head of model_type {config.model_type!r}"
    elif vit_type != "dinov2":
        found = f"an adapter on a backbone of model_type {vit_type!r}"
    else:
        return
    raise ValueError(
        f"{checkpoint} is {found}; the authors' files hold Rein (peft_type REIN), and SoMA's files a LoRA that SoMA "
        "has made (LORA), with a head of model_type 'mask2former' on a backbone of model_type 'dinov2'."
    )


def rein_tensors(args: ConversionArguments, model: PeftModel) -> tuple[Tensors, Tensors]:
    """The tensors of Rein and head, by the authors' names, and its backbone's, by DINOv2's.

    Raises:
        ValueError: Rein is not in all blocks; the authors' files have no name for a tensor.
    """
    config, depth = model.peft_config["default"], model.config.backbone_config.backbone_config.num_hidden_layers
    if list(config.changed_blocks(depth)) != list(range(depth)):
        raise ValueError(
            f"{args.checkpoint} has layers_to_transform {config.layers_to_transform}; the authors' files hold Rein in "
            f"all blocks, 0 to {depth - 1} in this order."
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
    return rein_and_head, backbone


def options_back(checkpoint: str, adapter: PeftConfig, tensors: Tensors, backbone: Tensors) -> str:
    """What the command needs beside the two files to make the same adapter of them, as it is typed; empty if nothing.

    Args:
        checkpoint: for errors.
        adapter: its configuration.
        tensors, backbone: what the two files hold.

    Raises:
        ValueError: whatever is typed, the outputs would be others: names all values that the files cannot tell, and
            all tensors that would not fit.
    """
    recorded = Mask2FormerConfig.from_dict(adapter.base_config)
    maps, vit = recorded.backbone_config, recorded.backbone_config.backbone_config
    options = {
        "num_attention_heads": vit.num_attention_heads,
        "out_indices": [block - 1 for block in maps.out_indices],
        "image_size": vit.image_size,
        "id2label": json.dumps(dict(sorted(recorded.id2label.items())), ensure_ascii=False),
    }
    args = ConversionArguments(checkpoint, output_dir="", **options)
    vit, _, rein, model_args = read_sizes(args, tensors, backbone)
    trained = tensors if rein else split_soma(tensors)[0]
    config = config_back(args, tensors, backbone)
    model = build_without_memory(config, rein, None if rein else soma_sizes(trained))
    differing = differing_values(adapter.base_config, config)
    found, back = adapter.to_dict(), model.peft_config["default"].to_dict()
    differing |= {
        name: (found.get(name), back.get(name))
        for name in sorted((found.keys() | back.keys()) - UNCOMPARED)
        if (found.get(name) or None) != (back.get(name) or None)  # a rank of 0 is none
    }
    differing |= differing_normalization(checkpoint)
    if differing:
        title = (
            f"{checkpoint} has {len(differing)} value(s) that the files cannot tell, and would come back as another "
            "model. Nothing was written; keep the adapter, or train one with the values of the files:"
        )
        lines = [f"{name} is {here!r}; the files give {there!r}" for name, (here, there) in differing.items()]
        raise ValueError("\n  ".join([title, *lines]))
    check_names(args, trained, backbone, vit, rein, model_args)
    needed = []
    for name, value in options.items():
        try:
            others = ConversionArguments(checkpoint, output_dir="", **{**options, name: None})
            is_needed = bool(differing_values(adapter.base_config, config_back(others, tensors, backbone)))
        except ValueError:  # the files alone do not tell it
            is_needed = True
        if is_needed:
            needed += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return shlex.join(needed)


def differing_normalization(checkpoint: str) -> dict[str, tuple[Any, Any]]:
    """The mean and deviation of an adapter's image processor, where they are not those that a conversion writes beside
    it; nothing if it has no processor."""
    if cached_file(checkpoint, IMAGE_PROCESSOR_NAME, _raise_exceptions_for_missing_entries=False) is None:
        return {}
    found, written = AutoImageProcessor.from_pretrained(checkpoint), build_image_processor()
    pairs = {name: (list(getattr(found, name)), list(getattr(written, name))) for name in ("image_mean", "image_std")}
    return {name: (here, there) for name, (here, there) in pairs.items() if here != there}


def config_back(args: ConversionArguments, tensors: Tensors, backbone: Tensors) -> Mask2FormerConfig:
    """Configuration of the model that a conversion of these files makes."""
    vit, image_size, _, model_args = read_sizes(args, tensors, backbone)
    return segmenter_config(resample_to(vit, {}, image_size, PATCH_SIZE)[0], model_args)
