"""Four feature maps of strides 4, 8, 16 and 32 from one vision transformer.

What differs from transformers' own backbones, each as in the paper's code:
- the maps of strides 4, 8 and 32 are stride-16 maps resized (a hierarchical transformer has four maps of its own);
- they are outputs of blocks, without the final LayerNorm;
- checkpoints of other image and patch sizes are resampled (vit.py, resampling.py);
- positions for images of other sizes (positions.py).
"""

from __future__ import annotations

from itertools import accumulate, pairwise

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoBackbone, AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.backbone_utils import BackboneConfigMixin, BackboneMixin
from transformers.modeling_outputs import BackboneOutput

from ..tuner.architectures import ARCHITECTURES, Architecture
from .vit import HIERARCHICAL_PATCH, build_vit, feature_config


# Each output map is a map of stride `patch` resized by one of these: strides 4, 8, 16, 32 for patch 16.
SCALES = (4.0, 2.0, 1.0, 0.5)

# Blocks that give the maps, counted from 1, where the paper departs from quarters of the depth.
OUT_INDICES = {24: [8, 12, 16, 24]}


def default_out_indices(depth: int) -> list[int]:
    """The four blocks, counted from 1, that give the maps of a backbone of `depth` blocks."""
    return OUT_INDICES.get(depth) or [depth * k // len(SCALES) for k in range(1, len(SCALES) + 1)]


class ViTPyramidConfig(BackboneConfigMixin, PreTrainedConfig):
    r"""
    Configuration of a [`ViTPyramidBackbone`].

    Args:
        backbone_config (`PreTrainedConfig` or `dict`, *optional*): the vision transformer's own configuration, of one
            of the architectures of `tuner.architectures.ARCHITECTURES`; a Dinov2-base of patch 16 by default.
        out_indices (`list[int]`, *optional*): the four blocks whose outputs become the maps, finest map first, counted
            from 1 as in transformers, where 0 is the patch embedding. By default [8, 12, 16, 24] of 24 blocks and the
            quarters of other depths, [3, 6, 9, 12] of 12; of a hierarchical transformer the last of each stage.

    Raises:
        ValueError: there are not four such blocks; the architecture is unknown.

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
        depths = self.depths
        out_features, out_indices = kwargs.pop("out_features", None), kwargs.pop("out_indices", None)
        if not self.in_stages:
            expected = f"{len(SCALES)} different blocks from 1 to {depths[0]}"
            blocks = default_out_indices(depths[0]) if out_indices is None else list(out_indices)
            right = len(blocks) == len(set(blocks) & set(range(1, depths[0] + 1))) == len(SCALES)
        else:
            ends = list(accumulate(depths))
            expected = f"a block of each of {len(SCALES)} stages, which end at {ends}"
            blocks = ends if out_indices is None else list(out_indices)
            right = len(blocks) == len(ends) == len(SCALES)
            right = right and all(a < block <= b for block, (a, b) in zip(blocks, pairwise([0, *ends]), strict=True))
        if not right:
            raise ValueError(f"out_indices is {blocks}; expected {expected}.")
        self.stage_names = ["stem"] + [f"stage{index}" for index in range(1, sum(depths) + 1)]
        self.set_output_features_output_indices(out_features=out_features, out_indices=blocks)
        super().__post_init__(**kwargs)

    @property
    def architecture(self) -> Architecture:
        """What is known of the vision transformer."""
        return ARCHITECTURES[self.backbone_config.model_type]

    @property
    def in_stages(self) -> bool:
        """Whether the vision transformer is hierarchical."""
        return self.architecture.in_stages(self.backbone_config.to_dict())

    @property
    def depths(self) -> list[int]:
        """Number of blocks of each stage; of one, where they are not in stages."""
        depths = self.architecture.sizes(self.backbone_config.to_dict())["num_hidden_layers"]
        return depths if isinstance(depths, list) else [depths]

    @property
    def widths(self) -> list[int]:
        """Hidden size of each stage."""
        widths = self.architecture.sizes(self.backbone_config.to_dict())["hidden_size"]
        return widths if isinstance(widths, list) else [widths]


class ViTPyramidPreTrainedModel(PreTrainedModel):
    config_class = ViTPyramidConfig
    base_model_prefix = "backbone"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True


class ViTPyramidBackbone(BackboneMixin, ViTPyramidPreTrainedModel):
    """
    A vision transformer whose features of four blocks, without the final LayerNorm, are four maps.

    Args:
        config ([`ViTPyramidConfig`]): sizes, and the blocks that become maps.

    Example:

    ```py
    >>> import torch
    >>> from transformers import Dinov2Config
    >>> from rein_hf import ViTPyramidBackbone, ViTPyramidConfig

    >>> vit = Dinov2Config(hidden_size=32, num_hidden_layers=4, num_attention_heads=2, patch_size=16, image_size=64)
    >>> backbone = ViTPyramidBackbone(ViTPyramidConfig(backbone_config=vit))
    >>> [tuple(map.shape) for map in backbone(torch.zeros(1, 3, 64, 96)).feature_maps]
    [(1, 32, 16, 24), (1, 32, 8, 12), (1, 32, 4, 6), (1, 32, 2, 3)]

    ```
    """

    def __init__(self, config: ViTPyramidConfig):
        super().__init__(config)
        self.vit = build_vit(config.backbone_config).model
        self.architecture, self.in_stages = config.architecture, config.in_stages
        self.prefix = self.architecture.num_prefix_tokens(config.backbone_config.to_dict())
        self.num_features = [config.widths[0]]  # of the stem
        for width, depth in zip(config.widths, config.depths, strict=True):
            self.num_features += [width] * depth
        # not all architectures say it of themselves
        self._no_split_modules = [type(self.vit.get_submodule(self.architecture.blocks)[0]).__name__]
        self.post_init()

    @property
    def scales(self) -> tuple[float, ...]:
        """By what the features of each block are resized to become a map."""
        return (1.0,) * len(SCALES) if self.in_stages else SCALES

    def forward(self, pixel_values: torch.Tensor, resize: bool = True, **kwargs) -> BackboneOutput:
        """
        Args:
            pixel_values (`torch.Tensor` of shape `(B, 3, H, W)`): normalised images; H and W are multiples of the
                patch size p, 2p at least. p is 16 for a hierarchical transformer.
            resize (`bool`): whether to resize the features; if not, whoever uses them does it, by [`rescale`].

        Returns:
            `BackboneOutput` with `feature_maps` of shapes (B, c, 4H/p, 4W/p), (B, c, 2H/p, 2W/p), (B, c, H/p, W/p) and
            (B, c, H/2p, W/2p). c differs from map to map for a hierarchical transformer.

        Raises:
            ValueError: a side is not a multiple of the patch size, or too short for the coarsest map.
        """
        height, width = pixel_values.shape[-2:]
        patch = self.config.backbone_config.patch_size
        if height % patch or width % patch or min(height, width) < 2 * patch:
            raise ValueError(
                f"pixel_values is {height}x{width} pixels; expected sides that are multiples of the patch size "
                f"{patch}, {2 * patch} at least. Pad the images, as rein_hf.slide_inference does."
            )
        # not all architectures take images of another type than their weights'
        pixel_values = pixel_values.to(self.vit.dtype)
        if multiple := self.architecture.multiple:
            pixel_values = F.pad(pixel_values, (0, -width % multiple, 0, -height % multiple))
        output = self.vit(pixel_values, output_hidden_states=self.out_indices, **self.architecture.arguments)
        maps = []
        for index, scale in zip(self.out_indices, SCALES, strict=True):
            map = output.hidden_states[index]
            if self.architecture.grid:
                map = map.permute(0, 3, 1, 2)
            else:
                # in this order torch sees, of a single image too, that a pixel's channels lie together
                map = map[:, self.prefix :].unflatten(1, (height // patch, width // patch)).permute(0, 3, 1, 2)
            if self.in_stages:
                map = map[..., : int(height / patch * scale), : int(width / patch * scale)]
            elif resize:
                map = rescale(map, scale)
            maps.append(map)
        return BackboneOutput(feature_maps=tuple(maps))


def rescale(maps: torch.Tensor, scale: float) -> torch.Tensor:
    """Maps (B, c, H, W) resized bilinearly, to the floor of `scale` times their size.

    By size where that is the same: a scale factor would make the size a constant of a traced graph. There, averages of
    pixels take the place of a scale of 1/2, which they equal to rounding: no test may ask whether a size is odd.
    """
    if scale == 1:
        return maps
    step, factor = max(round(1 / scale), 1), max(round(scale), 1)
    if step == 2 and torch.compiler.is_compiling():
        return F.avg_pool2d(maps, step)
    rows, columns = maps.shape[-2:]
    if rows % step or columns % step:
        return F.interpolate(maps, scale_factor=scale, mode="bilinear")
    return F.interpolate(maps, size=(rows * factor // step, columns * factor // step), mode="bilinear")


def backbone_of(model: nn.Module) -> ViTPyramidBackbone:
    """The backbone of a segmenter, with or without adapter."""
    return next(module for module in model.modules() if isinstance(module, ViTPyramidBackbone))


AutoConfig.register("vit_pyramid", ViTPyramidConfig)
AutoBackbone.register(ViTPyramidConfig, ViTPyramidBackbone)
