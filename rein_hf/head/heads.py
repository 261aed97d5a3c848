"""Segmentation heads of transformers that fit onto a vision transformer: one entry each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import (
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    PreTrainedConfig,
    PreTrainedModel,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)


@dataclass(frozen=True)
class Head:
    """
    What the library needs to know of a head.

    Args:
        model: class of the whole segmenter; `config`: of its configuration.
        backbone (`str`): name of the backbone in the segmenter.
        modules: what is trained and saved beside a tuned backbone, by the end of its name.
        queries: the head's own object queries, which linked tokens take the place of; none in a head that classifies
            pixels and not masks.
        arguments: of the configuration, where transformers' default is not meant.
    """

    model: type[PreTrainedModel]
    config: type[PreTrainedConfig]
    backbone: str
    modules: Sequence[str]
    queries: Sequence[str] = ()
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @property
    def classifies_masks(self) -> bool:
        """Whether it classifies masks, one for each query, or pixels."""
        return bool(self.queries)


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
        queries=("transformer_module.queries_embedder", "transformer_module.queries_features"),
    ),
    # a feature pyramid, classified pixel by pixel: without its pyramid pooling and its auxiliary head the nearest that
    # there is to the paper's SemFPN
    "upernet": Head(
        UperNetForSemanticSegmentation,
        UperNetConfig,
        backbone="backbone",
        modules=("decode_head",),
        arguments={"hidden_size": 128, "pool_scales": [], "use_auxiliary_head": False},
    ),
}

# What is trained and saved beside Rein: the whole of Mask2Former's head but its queries, which the tokens become.
HEAD_MODULES = list(HEADS["mask2former"].modules)


def head_of(model_type: str | None, named: str = "model_type") -> Head:
    """The head of a segmenter's `model_type`.

    Raises:
        ValueError: there is none of that name; `named` says who named it.
    """
    if model_type not in HEADS:
        raise ValueError(f"{named} is {model_type!r}; expected one of {', '.join(HEADS)}.")
    return HEADS[model_type]
