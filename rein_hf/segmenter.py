"""A segmentation head on a pretrained vision transformer, tuned with Rein."""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from numbers import Integral
from typing import Any

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import (
    Mask2FormerForUniversalSegmentation,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import logging as transformers_logging

from .backbone import ViTPyramidConfig, load_vit, own_normalization
from .head import ReinCriterion, head_of, use_fast_modules
from .hub import SegmenterPeftModel, with_base_config
from .inference import ReinImageProcessor
from .labels import check_palette, class_names_of
from .tuner import ReinConfig, check_modules_to_save


DEFAULT_QUERIES = 100
MASK_STRIDE = 4  # of mask logits, where patches have 16 pixels


def build_segmenter(
    pretrained: str | os.PathLike,
    id2label: dict[int, str],
    image_size: int = 512,
    patch_size: int = 16,
    out_indices: list[int] | None = None,
    num_queries: int | None = None,
    head: dict[str, Any] | None = None,
    palette: Sequence[tuple[int, int, int]] | None = None,
    **kwargs,
) -> PreTrainedModel:
    """A stock Mask2Former with a new head on a pretrained vision transformer, with the recipe's sizes.

    Args:
        pretrained: local folder or Hub id of a checkpoint, e.g. "facebook/dinov2-large"; of another kind of vision
            transformer if it is one of `tuner.architectures.ARCHITECTURES`, alone or as a part of a CLIP, a SAM, ...
        id2label (`dict[int, str]`): name of each class, by its id: 0 to n - 1, at most 255 classes, no name twice.
        image_size (`int`): side in pixels of the training crops; position embeddings are resampled to it. Other
            sizes work as well.
        patch_size (`int`): side in pixels of a patch; the patch embedding is resampled to it. 16 for a hierarchical
            vision transformer.
        out_indices (`list[int]`, *optional*): see [`ViTPyramidConfig`].
        num_queries (`int`, *optional*): number of object queries m, 100 by default; none for a head without queries.
        head (`dict`, *optional*): further arguments of `Mask2FormerConfig`, for heads of other sizes; with
            `model_type` "upernet" of `UperNetConfig`, for a light head without queries. See [`rein_hf.head.heads`].
        palette (*optional*): colour (R, G, B) of each class, by id. The model's configuration keeps it, an adapter of
            the model too, and pictures have these colours: `rein_hf.overlay(photo, labels, model)`. By default those
            of [`rein_hf.labels.palette_of`].
        kwargs: `dtype`, float32 by default; `revision`, `token`, `cache_dir`, `local_files_only` of the checkpoint. An
            adapter records the revision, and is loaded onto the same one.

    Raises:
        ValueError: classes are not numbered from 0, are too many, or share a name; `palette` is not a colour for each
            of them; the checkpoint holds no known vision transformer, or lacks weights; sizes are no numbers of
            pixels, or do not fit each other; the head is unknown, or `head` has a key that its configuration lacks or
            that is said elsewhere.
        OSError: the checkpoint cannot be found.

    Example:

    ```py
    >>> from rein_hf import build_segmenter
    >>> model = build_segmenter("recipes/demo/vit", {0: "road", 1: "sky"}, image_size=256, num_queries=10)
    >>> model.config.id2label
    {0: 'road', 1: 'sky'}

    ```
    """
    names = class_names_of(id2label, "id2label")
    kwargs.setdefault("dtype", torch.float32)
    arguments = dict(head or {})
    kind = head_of(arguments.pop("model_type", "mask2former"), "model_type of the head")
    if kind.classifies_masks and arguments.get("common_stride") == MASK_STRIDE:
        del arguments["common_stride"]  # which it is anyway
    kind.check_keys(arguments)
    _check_at_least("patch_size", patch_size, 1)
    # the coarsest of the four maps halves the grid of patches
    _check_at_least("image_size", image_size, 2 * patch_size)
    if kind.classifies_masks:
        arguments["num_queries"] = DEFAULT_QUERIES if num_queries is None else num_queries
        _check_at_least("num_queries", arguments["num_queries"], 1)
    elif num_queries is not None:
        raise ValueError(
            f"num_queries is {num_queries}, but a head of {kind.config.model_type} has none; leave it out."
        )
    if palette is not None:
        arguments["palette"] = [list(colour) for colour in check_palette(palette, len(names), "palette")]
    vit_config, state_dict = load_vit(pretrained, image_size, patch_size, **kwargs)
    with quiet_transformers():
        config = kind.config(
            backbone_config=ViTPyramidConfig(backbone_config=vit_config, out_indices=out_indices),
            id2label=dict(enumerate(names)),
            **{**kind.arguments, **arguments},
        )
    model = build_from_backbone(pretrained, config, state_dict, dtype=kwargs["dtype"])
    model.backbone_revision = kwargs.get("revision")  # an adapter that add_adapter makes records it
    return model


def _check_at_least(name: str, value: Any, least: int) -> None:
    """
    Raises:
        ValueError: the value is no whole number, or a smaller one.
    """
    if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} is {value!r}; expected a whole number, {least} at least.")


def add_rein(
    model: PreTrainedModel, config: ReinConfig | None = None, adapter_name: str = "default"
) -> SegmenterPeftModel:
    """The model with Rein and its head trainable and everything else frozen.

    Args:
        model: from [`build_segmenter`].
        config ([`ReinConfig`], *optional*): the paper's by default, with as many tokens as the model has queries. The
            head is added to its `modules_to_save`. On a head without queries the tokens are not linked.
        adapter_name (`str`): name of the adapter.

    Raises:
        ValueError: the model has an adapter already; see [`ReinModel`] for what does not fit each other.
    """
    config = copy.copy(config) or ReinConfig(num_tokens=getattr(model.config, "num_queries", ReinConfig.num_tokens))
    config.link_queries = config.link_queries and head_of(model.config.model_type).classifies_masks
    return add_adapter(model, config, adapter_name)


def add_adapter(model: PreTrainedModel, config: PeftConfig, adapter_name: str = "default") -> SegmenterPeftModel:
    """The model with an adapter of any method of peft, e.g. a LoRA to compare Rein with. The adapter and the head are
    trainable, everything else is frozen.

    Args:
        model: from [`build_segmenter`].
        config (`PeftConfig`): a copy of it is used; the head is added to its `modules_to_save`, its queries too where
            Rein does not make them.
        adapter_name (`str`): name of the adapter.

    Raises:
        ValueError: the model has an adapter already, which would not be saved with the new one; `modules_to_save` has
            a name of no module, or of one that could not be saved and loaded. The model stays as it was.
    """
    if any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        raise ValueError(
            "The model has an adapter already, which would not be saved with the new one. Load further ones by "
            "model.load_adapter(FOLDER, NAME) of the model that add_rein returned, or take the first one out with its "
            "unload()."
        )
    linked = isinstance(config, ReinConfig) and config.link_queries
    head = head_of(model.config.model_type)
    config = with_base_config(config, model.config.to_diff_dict())
    config.modules_to_save = sorted(
        {*(config.modules_to_save or []), *head.modules_of(model), *(() if linked else head.queries)}
    )
    check_modules_to_save(config, model)
    config.base_model_name_or_path = model.name_or_path or None
    config.revision = config.revision or getattr(model, "backbone_revision", None)
    with quiet_transformers():
        return SegmenterPeftModel(model, config, adapter_name)


def build_image_processor(
    patch_size: int = 16, pretrained: str | os.PathLike | None = None, **kwargs
) -> ReinImageProcessor:
    """The image processor of a model with patches of `patch_size` pixels: ImageNet mean and deviation, no resizing
    (windows and augmentation choose sizes), pixels labelled 255 in no mask.

    Args:
        patch_size (`int`): side in pixels of a patch.
        pretrained (*optional*): the backbone's checkpoint, whose own mean and deviation are taken if it is a DINOv3:
            those trained on satellite images have others than ImageNet's.
        kwargs: `revision`, `token`, `cache_dir`, `local_files_only` of the checkpoint.

    Raises:
        OSError, ValueError: the checkpoint cannot be found, or its image processor is none of colour images.
    """
    normalization = {} if pretrained is None else own_normalization(pretrained, **kwargs)
    return ReinImageProcessor(size_divisor=patch_size, **normalization)


def build_from_backbone(
    pretrained: str | os.PathLike,
    config: PreTrainedConfig,
    vit_state_dict: dict[str, torch.Tensor],
    **placement,
) -> PreTrainedModel:
    """The model of `config` with the backbone's weights given and the head's new. `placement`: `dtype`, `device_map`,
    `attn_implementation` of `from_pretrained`."""
    head = head_of(config.model_type)
    prefix = f"{head.backbone}.vit."
    with quiet_transformers():
        model, report = head.model.from_pretrained(
            None,
            config=config,
            state_dict={prefix + name: tensor for name, tensor in vit_state_dict.items()},
            output_loading_info=True,
            **placement,
        )
    wrong = sorted(name for name in report["missing_keys"] if name.startswith(prefix))
    wrong += sorted(report["unexpected_keys"]) + sorted(map(str, report["mismatched_keys"]))
    if wrong:
        raise ValueError(f"{pretrained} does not fill the backbone; missing, unexpected or misshapen: {wrong}.")
    # becomes the adapter's base_model_name_or_path, and the base model on its card
    model.name_or_path = model.config.name_or_path = str(pretrained)
    return use_paper_loss_and_fast_modules(model)


def use_paper_loss_and_fast_modules(model: PreTrainedModel) -> PreTrainedModel:
    """A Mask2Former with the paper's loss and the lighter modules; the head of others as it is."""
    if isinstance(model, Mask2FormerForUniversalSegmentation):
        criterion = ReinCriterion(model.config, model.weight_dict)
        model.criterion = criterion.to(model.device)
        use_fast_modules(model)
    # transformers 5 leaves it empty where a configuration has only the names
    model.config.label2id = {name: index for index, name in model.config.id2label.items()}
    return model


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silences, in its block, what transformers and peft say about models that are as they should be: the list of the
    new head's tensors as missing, a second progress bar, a deprecated name that peft uses."""
    verbosity, bar = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bar:
            transformers_logging.enable_progress_bar()
