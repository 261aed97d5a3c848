"""Four feature maps of strides 4, 8, 16 and 32 from one plain vision transformer.

What differs from transformers' own `Dinov2Backbone`, each as in the paper's code:
- the maps of strides 4, 8 and 32 are stride-16 maps resized;
- position embeddings for other image sizes are interpolated by a scale factor that contains DINOv2's 0.1, which
  shifts the sampling grid (transformers interpolates to the exact size);
- checkpoints of patch 14 are resampled to patch 16.
"""

from __future__ import annotations

import math
import os

import torch
from torch.nn import functional as F
from transformers import AutoBackbone, AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.backbone_utils import BackboneConfigMixin, BackboneMixin
from transformers.modeling_outputs import BackboneOutput
from transformers.models.dinov2.modeling_dinov2 import Dinov2Model

from .positions import ScaleFactorDinov2Embeddings


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
        backbone_config (`PreTrainedConfig` or `dict`, *optional*): the vision transformer's own configuration; a
            Dinov2-base of patch 16 by default.
        out_indices (`list[int]`, *optional*): the four blocks whose outputs become the maps, finest map first, counted
            from 1 as in transformers, where 0 is the patch embedding. By default [8, 12, 16, 24] of 24 blocks and the
            quarters of other depths, [3, 6, 9, 12] of 12.

    Raises:
        ValueError: there are not four such blocks.

    Example:

    ```py
    >>> from rein_hf import ViTPyramidConfig
    >>> ViTPyramidConfig().out_indices
    [3, 6, 9, 12]

    ```
    """

    model_type = "vit_pyramid"

    backbone_config: dict | PreTrainedConfig | None = None
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    def __post_init__(self, **kwargs):
        if self.backbone_config is None:
            self.backbone_config = AutoConfig.for_model("dinov2", patch_size=16, image_size=512)
        elif isinstance(self.backbone_config, dict):
            self.backbone_config = AutoConfig.for_model(**self.backbone_config)
        depth = self.backbone_config.num_hidden_layers
        out_features, out_indices = kwargs.pop("out_features", None), kwargs.pop("out_indices", None)
        if out_indices is None:
            out_indices = default_out_indices(depth)
        if len(set(out_indices)) != len(SCALES) or not set(out_indices) <= set(range(1, depth + 1)):
            raise ValueError(
                f"out_indices is {list(out_indices)}; expected {len(SCALES)} different blocks from 1 to {depth}."
            )
        self.stage_names = ["stem"] + [f"stage{index}" for index in range(1, depth + 1)]
        self.set_output_features_output_indices(out_features=out_features, out_indices=list(out_indices))
        super().__post_init__(**kwargs)


class ViTPyramidPreTrainedModel(PreTrainedModel):
    config_class = ViTPyramidConfig
    base_model_prefix = "backbone"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _no_split_modules = ["Dinov2Layer"]


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
        # in the type that the whole model is being made in, not in the one its configuration was once saved with
        self.vit = AutoModel.from_config(config.backbone_config, dtype=torch.get_default_dtype())
        if isinstance(self.vit, Dinov2Model):
            self.vit.embeddings = ScaleFactorDinov2Embeddings(self.vit.config)
        self.num_features = [config.backbone_config.hidden_size] * len(config.stage_names)
        self.post_init()

    def forward(self, pixel_values: torch.Tensor, **kwargs) -> BackboneOutput:
        """
        Args:
            pixel_values (`torch.Tensor` of shape `(B, 3, H, W)`): normalised images; H and W are multiples of the
                patch size p, 2p at least.

        Returns:
            `BackboneOutput` with `feature_maps` of shapes (B, c, 4H/p, 4W/p), (B, c, 2H/p, 2W/p), (B, c, H/p, W/p) and
            (B, c, H/2p, W/2p) for patch size p.

        Raises:
            ValueError: a side is not a multiple of the patch size, or too short for the coarsest map.
        """
        height, width = pixel_values.shape[-2:]
        patch = self.vit.config.patch_size
        if height % patch or width % patch or min(height, width) < 2 * patch:
            raise ValueError(
                f"pixel_values is {height}x{width} pixels; expected sides that are multiples of the patch size "
                f"{patch}, {2 * patch} at least. Pad the images, as rein_hf.slide_inference does."
            )
        hidden_states = self.vit(pixel_values, output_hidden_states=self.out_indices).hidden_states
        prefix = 1 + getattr(self.vit.config, "num_register_tokens", 0)
        maps = []
        for index, scale in zip(self.out_indices, SCALES, strict=True):
            patches = hidden_states[index][:, prefix:]
            stride16 = patches.transpose(1, 2).unflatten(2, (height // patch, width // patch))
            maps.append(_rescale(stride16, scale))
        return BackboneOutput(feature_maps=tuple(maps))


def _rescale(maps: torch.Tensor, scale: float) -> torch.Tensor:
    """Maps (B, c, H, W) resized bilinearly, to the floor of `scale` times their size.

    By size where that is the same: a scale factor would make the size a constant of a traced graph.
    """
    if scale == 1:
        return maps
    step, factor = max(round(1 / scale), 1), max(round(scale), 1)
    rows, columns = maps.shape[-2:]
    if rows % step or columns % step:
        return F.interpolate(maps, scale_factor=scale, mode="bilinear")
    return F.interpolate(maps, size=(rows * factor // step, columns * factor // step), mode="bilinear")


def resample_patch_embed(weight: torch.Tensor, patch_size: int) -> torch.Tensor:
    """Kernel of a patch embedding, (c, 3, p, p), resampled to `patch_size`: bicubic, no antialiasing."""
    if weight.shape[-1] == patch_size:
        return weight
    size = (patch_size, patch_size)
    return F.interpolate(weight.float(), size=size, mode="bicubic", align_corners=False).to(weight.dtype)


def resample_position_embed(positions: torch.Tensor, side: int) -> torch.Tensor:
    """Position embeddings (1, 1 + n, c), class token first, resampled to (1, 1 + side * side, c): bicubic.

    Raises:
        ValueError: n is not a square.
    """
    old = math.isqrt(positions.shape[1] - 1)
    if old * old != positions.shape[1] - 1:
        raise ValueError(f"{positions.shape[1] - 1} position embeddings found; expected a square number of patches.")
    if old == side:
        return positions
    grid = positions[:, 1:].float().reshape(1, old, old, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(side, side), mode="bicubic", align_corners=False)
    return torch.cat([positions[:, :1], grid.flatten(2).transpose(1, 2).to(positions.dtype)], dim=1)


def resample_state_dict(
    state_dict: dict[str, torch.Tensor], image_size: int, patch_size: int
) -> dict[str, torch.Tensor]:
    """State dict of a `Dinov2Model`, resampled to an image and a patch size in pixels, without the mask token, which
    belongs to pre-training."""
    kernel, positions = "embeddings.patch_embeddings.projection.weight", "embeddings.position_embeddings"
    weights = {name: tensor for name, tensor in state_dict.items() if name != "embeddings.mask_token"}
    weights[kernel] = resample_patch_embed(weights[kernel], patch_size)
    weights[positions] = resample_position_embed(weights[positions], image_size // patch_size)
    return weights


def load_vit(
    pretrained: str | os.PathLike, image_size: int, patch_size: int, **kwargs
) -> tuple[PreTrainedConfig, dict[str, torch.Tensor]]:
    """A pretrained vision transformer, resampled to an image and a patch size.

    Args:
        pretrained: local folder or Hub id of a `Dinov2Model` checkpoint.
        image_size (`int`): side in pixels of the square crops that its positions shall fit.
        patch_size (`int`): side in pixels of a patch.
        kwargs: further arguments of `AutoModel.from_pretrained` (`dtype`, `revision`, `token`, ...).

    Returns:
        Its configuration, with the new sizes and without any dropout (frozen features are to be the same in training
        as in evaluation), and its state dict.

    Raises:
        ValueError: the checkpoint is not a Dinov2; the image size is not a multiple of the patch size.
    """
    if image_size % patch_size:
        raise ValueError(f"image_size is {image_size}; expected a multiple of patch_size {patch_size}.")
    vit = AutoModel.from_pretrained(pretrained, **kwargs)
    if not isinstance(vit, Dinov2Model):
        raise ValueError(f"{pretrained} holds a {type(vit).__name__}; expected a Dinov2Model.")
    config = vit.config
    config.update({"image_size": image_size, "patch_size": patch_size, "use_mask_token": False})
    config.update({"drop_path_rate": 0.0, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0})
    return config, resample_state_dict(vit.state_dict(), image_size, patch_size)


AutoConfig.register("vit_pyramid", ViTPyramidConfig)
AutoBackbone.register(ViTPyramidConfig, ViTPyramidBackbone)
