"""Configuration of the backbone: which vision transformer it is, and which of its blocks give the feature maps."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from itertools import accumulate, pairwise

from transformers import AutoConfig, PreTrainedConfig
from transformers.backbone_utils import BackboneConfigMixin

from ..tuner.architectures import ARCHITECTURES, Architecture
from .vit import HIERARCHICAL_PATCH, feature_config


# The feature maps are features of stride `patch` resized by these factors: strides 4, 8, 16 and 32 for patch 16.
SCALES = (4.0, 2.0, 1.0, 0.5)

# Depth -> the blocks that give the maps, counted from 1, where the paper does not take the quarters of the depth.
OUT_INDICES = {24: [8, 12, 16, 24]}


def default_out_indices(depth: int) -> list[int]:
    """The four blocks, counted from 1, that give the feature maps of a vision transformer of `depth` blocks."""
    return OUT_INDICES.get(depth) or [depth * k // len(SCALES) for k in range(1, len(SCALES) + 1)]


class ViTPyramidConfig(BackboneConfigMixin, PreTrainedConfig):
    r"""
    Configuration of a [`ViTPyramidBackbone`].

    Args:
        backbone_config (`PreTrainedConfig` or `dict`, *optional*): the vision transformer's own configuration, of one
            of the architectures of `tuner.architectures.ARCHITECTURES`; a Dinov2-base of patch 16 by default.
        out_indices (`list[int]`, *optional*): the four blocks whose outputs become the feature maps, in ascending
            order, so that the finest map comes first. Counted from 1 as in transformers, where 0 is the patch
            embedding. By default [8, 12, 16, 24] of 24 blocks and the quarters of other depths, [3, 6, 9, 12] of 12;
            of a hierarchical transformer the last block of each stage.
        out_features (`list[str]`, *optional*): the same blocks by name, "stage8" for block 8. Give one of the two; if
            both are given they must name the same blocks.

    Both can be changed later, by `config.out_indices = [...]` or `backbone.out_indices = [...]`, under the same rules.
    None stands for the default.

    Raises:
        ValueError: these are not four such blocks; the architecture is unknown.

    Example:

    ```py
    >>> from rein_hf import ViTPyramidConfig
    >>> ViTPyramidConfig().out_indices
    [3, 6, 9, 12]

    ```
    """

    model_type = "vit_pyramid"
    sub_configs = {"backbone_config": AutoConfig}

    backbone_config: dict | PreTrainedConfig | None = None
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    def __post_init__(self, **kwargs):
        if self.backbone_config is None:
            self.backbone_config = AutoConfig.for_model("dinov2", patch_size=16, image_size=512)
        elif isinstance(self.backbone_config, dict):
            self.backbone_config = AutoConfig.for_model(**self.backbone_config)
        vit = self.backbone_config = feature_config(self.backbone_config)
        if not hasattr(vit, "patch_size"):
            vit.patch_size = HIERARCHICAL_PATCH
        self.stage_names = ["stem"] + [f"stage{index}" for index in range(1, sum(self.depths) + 1)]
        self.set_output_features_output_indices(kwargs.pop("out_features", None), kwargs.pop("out_indices", None))
        super().__post_init__(**kwargs)

    def set_output_features_output_indices(
        self, out_features: Sequence[str] | None, out_indices: Sequence[int] | None
    ) -> None:
        """Sets the blocks that give the feature maps. Every way to change them ends here.

        Args:
            out_features: their names.
            out_indices: their numbers. If neither is given, the default blocks are set.

        Raises:
            ValueError: these are not four blocks as [`ViTPyramidConfig`] expects them.
        """
        if out_features is not None:
            unknown = [name for name in out_features if name not in self.stage_names]
            if isinstance(out_features, str) or unknown:
                raise ValueError(
                    f"out_features is {out_features!r}; expected {len(SCALES)} of {', '.join(self.stage_names[1:])}."
                )
            out_features = list(out_features)
        ends = list(accumulate(self.depths))  # the last block of each stage
        if out_indices is not None:
            blocks = list(out_indices) if isinstance(out_indices, Sequence) else out_indices
        elif out_features is not None:
            blocks = [self.stage_names.index(name) for name in out_features]
        else:
            blocks = ends if self.in_stages else default_out_indices(ends[0])
        if self.in_stages:
            expected = f"a block of each of {len(SCALES)} stages, which end at {ends}"
        else:
            expected = f"{len(SCALES)} different blocks from 1 to {ends[0]}, in ascending order"
        if not self._are_blocks(blocks, ends):
            raise ValueError(f"out_indices is {blocks}; expected {expected}.")
        super().set_output_features_output_indices(out_features, [operator.index(block) for block in blocks])

    def _are_blocks(self, blocks: object, ends: list[int]) -> bool:
        if not isinstance(blocks, list) or len(blocks) != len(SCALES):
            return False
        if not all(hasattr(block, "__index__") for block in blocks):
            return False
        if self.in_stages:
            return len(ends) == len(SCALES) and all(
                first < block <= last for block, (first, last) in zip(blocks, pairwise([0, *ends]), strict=True)
            )
        return all(first < second for first, second in pairwise([0, *blocks])) and blocks[-1] <= ends[0]

    @property
    def architecture(self) -> Architecture:
        """What the library knows about the vision transformer."""
        return ARCHITECTURES[self.backbone_config.model_type]

    @property
    def in_stages(self) -> bool:
        """Whether the vision transformer is hierarchical."""
        return self.architecture.in_stages(self.backbone_config.to_dict())

    @property
    def depths(self) -> list[int]:
        """Number of blocks of each stage; a single number if the vision transformer is not hierarchical."""
        depths = self.architecture.sizes(self.backbone_config.to_dict())["num_hidden_layers"]
        return depths if isinstance(depths, list) else [depths]

    @property
    def widths(self) -> list[int]:
        """Hidden size of each stage; a single number if the vision transformer is not hierarchical."""
        widths = self.architecture.sizes(self.backbone_config.to_dict())["hidden_size"]
        return widths if isinstance(widths, list) else [widths]
