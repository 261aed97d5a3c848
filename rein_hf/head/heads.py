"""The segmentation heads of transformers that can be put on a vision transformer, one entry each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from torch import nn
from transformers import (
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    PreTrainedConfig,
    PreTrainedModel,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)

from ..backbone import ViTPyramidConfig
from ..files import suggestion


_LIBRARY = "the library sets it"
_UNREAD = "nothing reads it"
_CROSS_ENTROPY = "the loss is the cross-entropy of the head's own logits alone"

# Keys of every head's configuration that nobody can set, and why.
REFUSED_IN_ALL_HEADS = {
    "backbone_config": "the checkpoint, image_size, patch_size and out_indices say it",
    **dict.fromkeys(("id2label", "label2id", "num_labels"), "id2label beside head names the classes"),
    **dict.fromkeys(
        ("transformers_version", "architectures", "dtype", "output_hidden_states", "return_dict"), _LIBRARY
    ),
    **dict.fromkeys(("chunk_size_feed_forward", "is_encoder_decoder", "problem_type"), _UNREAD),
}


@dataclass(frozen=True)
class Head:
    """
    What the library needs to know about a head.

    Args:
        model: class of the segmenter, backbone and head together.
        config: class of the segmenter's configuration.
        backbone (`str`): name of the backbone module in the segmenter.
        modules: the head's modules that are trained and saved with an adapter, by the end of their names.
        projections: further ones of them, which have weights only in heads whose parts differ in width or that ask for
            projections.
        queries: the modules of the head's own object queries, which Rein's linked tokens replace; empty for a head
            that classifies pixels instead of masks.
        arguments: arguments of the configuration that differ from transformers' defaults.
        refused_here: keys of this configuration that nobody can set, and why.
    """

    model: type[PreTrainedModel]
    config: type[PreTrainedConfig]
    backbone: str
    modules: Sequence[str]
    projections: Sequence[str] = ()
    queries: Sequence[str] = ()
    arguments: Mapping[str, Any] = field(default_factory=dict)
    refused_here: Mapping[str, str] = field(default_factory=dict)

    @property
    def classifies_masks(self) -> bool:
        """Whether the head predicts one mask and class per query; otherwise it predicts a class per pixel."""
        return bool(self.queries)

    @property
    def keys(self) -> dict[str, Any]:
        """The keys of the configuration, and the types of their values; some are `refused`."""
        return {key.name: key.type for key in fields(self.config) if key.init}

    @property
    def refused(self) -> dict[str, str]:
        """Keys of the configuration that nobody can set, and why."""
        return {**REFUSED_IN_ALL_HEADS, **self.refused_here}

    def check_keys(self, given: Iterable[str]) -> None:
        """
        Args:
            given: the keys of the `head` of [`rein_hf.build_segmenter`], without `model_type`.

        Raises:
            ValueError: the configuration has no such key, or nobody can set it.
        """
        known = self.keys.keys() - self.refused.keys()
        for key in given:
            if key in self.refused:
                raise ValueError(f"head[{key!r}] cannot be set: {self.refused[key]}.")
            if key not in known:
                expected = f"expected those of {self.config.__name__}{suggestion(key, known)}"
                raise ValueError(f"head has the unknown key {key!r}; {expected}")

    def modules_of(self, model: nn.Module) -> list[str]:
        """The head's modules that are trained and saved with an adapter, by the end of their names: `modules`, and
        those of `projections` that have weights in this model."""
        weighted = [name for name, module in model.named_modules() if next(module.parameters(), None) is not None]
        return [*self.modules, *(end for end in self.projections if any(name.endswith(end) for name in weighted))]


# by the `model_type` of the whole segmenter's configuration
HEADS = {
    "mask2former": Head(
        Mask2FormerForUniversalSegmentation,
        Mask2FormerConfig,
        backbone="model.pixel_level_module.encoder",
        modules=(
            "pixel_level_module.decoder",
            "transformer_module.decoder",
            "transformer_module.level_embed",
            "class_predictor",
        ),
        projections=tuple(f"transformer_module.input_projections.{level}" for level in range(3)),
        queries=("transformer_module.queries_embedder", "transformer_module.queries_features"),
        refused_here={
            "num_queries": "use num_queries beside head, which Rein's tokens follow",
            "use_auxiliary_loss": "the head cannot segment without it",
            "output_auxiliary_logits": _UNREAD,
            "ignore_value": "pixels labelled 255 do not count",
            "common_stride": "image processors know masks of stride 4 alone",
            "feature_strides": "the backbone's maps have the strides 4, 8, 16 and 32",
        },
    ),
    # without pyramid pooling and auxiliary head, UperNet is a feature pyramid whose pixels are classified: of
    # transformers' heads the closest to the paper's SemFPN
    "upernet": Head(
        UperNetForSemanticSegmentation,
        UperNetConfig,
        backbone="backbone",
        modules=("decode_head",),
        arguments={"hidden_size": 128, "pool_scales": [], "use_auxiliary_head": False},
        refused_here={
            "loss_ignore_index": "pixels labelled 255 do not count",
            **dict.fromkeys(("use_auxiliary_head", "auxiliary_loss_weight", "auxiliary_in_channels"), _CROSS_ENTROPY),
            **dict.fromkeys(("auxiliary_channels", "auxiliary_num_convs", "auxiliary_concat_input"), _CROSS_ENTROPY),
        },
    ),
}

# Mask2Former's configuration warns about a backbone that is not in this list, every time one is made or loaded
Mask2FormerConfig.backbones_supported = [*Mask2FormerConfig.backbones_supported, ViTPyramidConfig.model_type]

# Trained and saved together with Rein: all of Mask2Former's head except its queries, which Rein's tokens replace. A
# head whose feature_size is not its hidden_dim, or with enforce_input_projection, has more: Head.modules_of.
HEAD_MODULES = list(HEADS["mask2former"].modules)


def head_of(model_type: str | None, named: str = "model_type") -> Head:
    """The head with this `model_type` of the segmenter's configuration.

    Args:
        model_type: a key of `HEADS`.
        named: how the error message calls the place where `model_type` was found.

    Raises:
        ValueError: there is no such head.
    """
    if model_type not in HEADS:
        raise ValueError(f"{named} is {model_type!r}; expected one of {', '.join(HEADS)}.")
    return HEADS[model_type]
