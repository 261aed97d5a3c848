"""A segmenter, loaded from what was saved of it: an adapter and its backbone, or the whole segmenter."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors import safe_open
from transformers import PreTrainedConfig, PreTrainedModel

from .backbone import load_vit
from .files import check_finite, check_no_pointer
from .head import HEADS, head_of
from .hub import (
    SegmenterPeftModel,
    download_adapter,
    find_backbone,
    is_lost_path,
    load_adapter_onto,
    name_in_errors,
    read_adapter_config,
    say_no_such_folder,
)
from .labels import class_names_of
from .segmenter import build_from_backbone, quiet_transformers, use_paper_loss_and_fast_modules
from .tuner.architectures import ARCHITECTURES


def from_pretrained(
    pretrained: str | os.PathLike,
    backbone: str | os.PathLike | None = None,
    *,
    revision: str | None = None,
    dtype: torch.dtype | str = torch.float32,
    device_map: str | dict[str, Any] | None = None,
    attn_implementation: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike | None = None,
    local_files_only: bool = False,
) -> SegmenterPeftModel | PreTrainedModel:
    """A model ready to segment, from what was saved of it.

    | saved by | the folder holds | to load it, this is needed too |
    |---|---|---|
    | `model.save_pretrained(FOLDER)` of a model with an adapter | Rein and head, some MB | the backbone's checkpoint |
    | `model.save_pretrained(FOLDER, with_backbone=True)` of it | Rein, head and backbone | nothing |
    | `model.save_pretrained(FOLDER)` of one without, from [`build_segmenter`] | the whole segmenter | nothing |

    Each of them comes back bit for bit. Rein cannot be merged into the backbone's weights, so that a tuned segmenter
    is always an adapter on a backbone: what `model.get_base_model().save_pretrained` writes is refused.

    Args:
        pretrained: folder or Hub id of an adapter, or of a whole segmenter.
        backbone (*optional*): folder or Hub id of the backbone's checkpoint, instead of the one that was saved with
            the adapter, or that it names. A whole segmenter has its own.
        revision (`str`, *optional*): branch, tag or commit of `pretrained`.
        dtype: of the weights.
        device_map (*optional*): where they go, e.g. "cuda" or "auto"; see accelerate. The CPU by default.
        attn_implementation (`str`, *optional*): of the backbone, e.g. "eager" or "flash_attention_2".
        token, cache_dir, local_files_only: of the Hub, for adapter and backbone.

    Returns:
        The model in eval mode: a `SegmenterPeftModel` (peft's `PeftModel`, which loads no adapter by halves) around a
        `Mask2FormerForUniversalSegmentation`, or another of [`rein_hf.head.heads`], or that alone. Either has the
        paper's loss: `Mask2FormerForUniversalSegmentation.from_pretrained` of a whole model gives the same weights
        with transformers' own.

    Raises:
        ValueError: the adapter is not Rein's, or records no base model; the backbone is of another kind or size; a
            downloaded file is not what the Hub announced; a file is damaged, holds other tensors than the model
            has, or NaN or infinities; the classes are not numbered from 0, each with a name of its own.
        OSError: adapter or backbone cannot be found.

    Example:

    ```py
    >>> import tempfile
    >>> from rein_hf import add_rein, build_segmenter, from_pretrained
    >>> folder = tempfile.mkdtemp()
    >>> base = build_segmenter("recipes/demo/vit", {0: "road", 1: "sky"}, image_size=256, num_queries=10)
    >>> add_rein(base).save_pretrained(folder)
    >>> from_pretrained(folder).config.id2label
    {0: 'road', 1: 'sky'}

    ```
    """
    hub = {"token": token, "cache_dir": cache_dir, "local_files_only": local_files_only}
    # only of the backbone: Mask2Former's own attention knows one implementation
    attention = attn_implementation and {"backbone_config": attn_implementation}
    placement = {"dtype": dtype, "device_map": device_map, "attn_implementation": attention}
    # the few MB first: what is wrong with them is told before the backbone is downloaded
    folder = download_adapter(pretrained, revision, **hub)
    with name_in_errors(pretrained), quiet_transformers():
        if folder is None:
            if backbone is not None:
                raise ValueError(
                    f"{pretrained} is a whole segmenter, which has its own backbone; found "
                    f"backbone={str(backbone)!r}, expected none."
                )
            return _load_whole(pretrained, revision, placement, hub)
        return _load_adapter(pretrained, folder, backbone, placement, hub)


def _load_whole(
    pretrained: str | os.PathLike, revision: str | None, placement: dict[str, Any], hub: dict[str, Any]
) -> PreTrainedModel:
    """The segmenter that was saved as a whole."""
    with say_no_such_folder(pretrained):
        values, _ = PreTrainedConfig.get_config_dict(pretrained, revision=revision, **hub)
    if not values:
        raise OSError(
            f"{pretrained} has neither an adapter_config.json, of an adapter, nor a segmenter's config.json."
        )
    head = head_of(values.get("model_type"), f"{pretrained}: model_type in config.json")
    class_names_of(head.config.from_dict(values).id2label, f"{pretrained}: id2label in config.json")
    check_no_pointer(*Path(pretrained).glob("*.safetensors"))
    model, report = head.model.from_pretrained(
        pretrained, revision=revision, output_loading_info=True, **placement, **hub
    )
    missing, unknown = sorted(report["missing_keys"]), sorted(report["unexpected_keys"])
    if missing or unknown:
        of_adapter = any(".base_layer." in name or ".original_module." in name for name in unknown)
        hint = (
            "It was saved from inside a model with an adapter, without what is needed to load it: save the model "
            "itself, model.save_pretrained(FOLDER, with_backbone=True), not its get_base_model()."
        )
        raise ValueError(
            f"{pretrained} is not the segmenter that its config.json describes: it lacks {len(missing)} tensors "
            f"({', '.join(missing[:3])} ...) and has {len(unknown)} unknown ones ({', '.join(unknown[:3])} ...). "
            f"{hint if of_adapter else 'Save it again, by model.save_pretrained(FOLDER).'}"
        )
    check_finite(model.state_dict().items(), pretrained)
    return use_paper_loss_and_fast_modules(model).eval()


def _load_adapter(
    pretrained: str | os.PathLike,
    folder: Path,
    backbone: str | os.PathLike | None,
    placement: dict[str, Any],
    hub: dict[str, Any],
) -> SegmenterPeftModel:
    """The model that the adapter in a folder was saved from."""
    config = read_adapter_config(folder)
    base_type = (config.base_config or {}).get("model_type")
    if base_type not in HEADS:
        raise ValueError(
            f"{pretrained}: adapter_config.json is a {type(config).__name__} on a base model of type {base_type!r}; "
            f"expected an adapter of {', '.join(HEADS)}. Load other adapters with peft."
        )
    base_config = HEADS[base_type].config.from_dict(config.base_config)
    vit = base_config.backbone_config.backbone_config
    saved = None if backbone else find_backbone(pretrained, folder, **hub)
    source = backbone or saved or config.base_model_name_or_path
    if not source:
        raise ValueError(f"{pretrained}: the adapter names no backbone; pass backbone=FOLDER_OR_HUB_ID.")
    if not backbone and is_lost_path(source):
        raise OSError(
            f"{pretrained}: its backbone is {source}, a path that counts from the adapter's folder, and there is no "
            "such folder. Bring the backbone there, or pass backbone=FOLDER_OR_HUB_ID."
        )
    weights = {"dtype": placement["dtype"], "revision": None if backbone or saved else config.revision, **hub}
    try:
        found, state_dict = load_vit(source, vit.image_size, vit.patch_size, **weights)
    except OSError as error:
        raise OSError(
            f"{pretrained}: its backbone {source} cannot be loaded; pass backbone=FOLDER_OR_HUB_ID. {error}"
        ) from error
    made_for = _backbone_signature(vit)
    for name, value in _backbone_signature(found).items():
        if value != made_for[name]:
            raise ValueError(f"{pretrained} was made for a backbone of {name} {made_for[name]}; {source} has {value}.")
    # under the name that the adapter knows it by: further ones are compared with it
    named = config.base_model_name_or_path if saved else None
    base = build_from_backbone(named or source, base_config, state_dict, **placement)
    _check_head_is_held(pretrained, folder, base, linked=getattr(config, "link_queries", False))
    return load_adapter_onto(base, folder, config).eval()


def _check_head_is_held(pretrained: str | os.PathLike, folder: Path, base: PreTrainedModel, linked: bool) -> None:
    """The head of `base` is new: an adapter that was saved without it would leave it random.

    Raises:
        ValueError: the adapter lacks tensors of the head.
    """
    head = HEADS[base.config.model_type]
    with safe_open(folder / SAFETENSORS_WEIGHTS_NAME, "pt") as file:
        held = {name.removeprefix("base_model.model.") for name in file.keys()}
    replaced = tuple(f"{name}.weight" for name in head.queries) if linked else ()
    lacking = [
        name
        for name, _ in base.named_parameters()
        if name not in held and not name.startswith(f"{head.backbone}.") and not name.endswith(replaced)
    ]
    if lacking:
        raise ValueError(
            f"{pretrained}: {SAFETENSORS_WEIGHTS_NAME} lacks {len(lacking)} tensors of the segmentation head: "
            f"{', '.join(lacking[:3])} ... Rein is saved with its head if it was added by rein_hf.add_rein, or with "
            f"modules_to_save={head.modules_of(base)}."
        )


def _backbone_signature(vit: PreTrainedConfig) -> dict[str, Any]:
    """What a backbone has to have in common with the one that an adapter was made for."""
    return {"model_type": vit.model_type, **ARCHITECTURES[vit.model_type].sizes(vit.to_dict())}
