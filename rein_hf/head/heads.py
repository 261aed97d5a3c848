"""The segmentation heads of transformers that can be put on a vision transformer, one entry each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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
    """

    model: type[PreTrainedModel]
    config: type[PreTrainedConfig]
    backbone: str
    modules: Sequence[str]
    projections: Sequence[str] = ()
    queries: Sequence[str] = ()
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @property
    def classifies_masks(self) -> bool:
        """Whether the head predicts one mask and class per query; otherwise it predicts a class per pixel."""
        return bool(self.queries)

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
    ),
    # without pyramid pooling and auxiliary head, UperNet is a feature pyramid whose pixels are classified: of
    # transformers' heads the closest to the paper's SemFPN
    "upernet": Head(
        UperNetForSemanticSegmentation,
        UperNetConfig,
        backbone="backbone",
        modules=("decode_head",),
        arguments={"hidden_size": 128, "pool_scales": [], "use_auxiliary_head": False},
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
