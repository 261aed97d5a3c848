"""The backbone: four feature maps of strides 4, 8, 16 and 32 from one vision transformer.

What differs from transformers' own backbones, each as in the paper's code:
- the maps of strides 4, 8 and 32 are features of stride 16, resized. A hierarchical transformer has features of these
  four strides itself;
- features are outputs of blocks, without the final LayerNorm;
- checkpoints of other image and patch sizes are resampled (vit.py, resampling.py);
- positions are interpolated for images of other sizes (positions.py).
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoBackbone, AutoConfig, PreTrainedModel
from transformers.backbone_utils import BackboneMixin
from transformers.modeling_outputs import BackboneOutput
from transformers.utils import can_return_tuple

from .config import SCALES, ViTPyramidConfig
from .frozen_weights import own_autocast
from .traced_sizes import crop_to, halve, pad_to_multiple
from .vit import build_vit


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
    A vision transformer that gives the features of four of its blocks, without the final LayerNorm, as four maps.

    Args:
        config ([`ViTPyramidConfig`]): the vision transformer, and the blocks that give the maps.

    Attributes:
        has_attentions (`bool`): whether it can return attention weights. SAM's and Hiera's blocks attend within
            windows, and transformers does not return their weights.
        autocast_dtype (`torch.dtype`): the type in which it computes under autocast, whoever calls it, since frozen
            weights were cast to it ([`cast_frozen_weights`]); `None` otherwise.

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

    autocast_dtype: torch.dtype | None = None

    def __init__(self, config: ViTPyramidConfig):
        super().__init__(config)
        self.vit = build_vit(config.backbone_config).model
        self.architecture, self.in_stages = config.architecture, config.in_stages
        self.has_attentions = not self.architecture.grid
        self.prefix = self.architecture.num_prefix_tokens(config.backbone_config.to_dict())
        self.num_features = [config.widths[0]]  # of the stem
        for width, depth in zip(config.widths, config.depths, strict=True):
            self.num_features += [width] * depth
        # transformers does not declare it for all architectures
        self._no_split_modules = [type(self.vit.get_submodule(self.architecture.blocks)[0]).__name__]
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The patch embedding."""
        return self.vit.get_input_embeddings()

    @property
    def scales(self) -> tuple[float, ...]:
        """The factor by which the features of each of the four blocks are resized to become a map."""
        return (1.0,) * len(SCALES) if self.in_stages else SCALES

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        resize: bool = True,
        output_hidden_states: bool | int | list[int] | None = None,
        output_attentions: bool | None = None,
    ) -> BackboneOutput | tuple:
        """
        Args:
            pixel_values (`torch.Tensor` of shape `(B, 3, H, W)`): normalised images in floating point. H and W are
                multiples of the patch size p, at least 2p. p is 16 for a hierarchical transformer.
            resize (`bool`): whether to resize the features to the sizes below. Without it they are of the vision
                transformer's own sizes, for a caller who resizes them later with [`rescale`] and `scales`.
            output_hidden_states (`bool`, `int` or `list[int]`, *optional*): whether to return the hidden states, or
                the numbers of those to return; by default as in the configuration.
            output_attentions (`bool`, *optional*): whether to return the attention weights; by default as in the
                configuration. Needs `attn_implementation="eager"`.
            return_dict (`bool`, *optional*): False for a tuple of what is not None; by default as in the
                configuration.

        Returns:
            `BackboneOutput` with
            - `feature_maps`, of shapes (B, c, 4H/p, 4W/p), (B, c, 2H/p, 2W/p), (B, c, H/p, W/p) and
              (B, c, H//2p, W//2p). c differs from map to map for a hierarchical transformer;
            - `hidden_states`, the patch embedding and the outputs of all blocks, in the layout of the vision
              transformer: (B, P + N, c) with P prefix tokens, or (B, h, w, c) for SAM and Hiera. None in the place of
              those that were not asked for;
            - `attentions`, the weights (B, heads, P + N, P + N) of all blocks.

        Raises:
            ValueError: `pixel_values` is not of that kind, or its sides do not fit; attention weights cannot be given.
        """
        self._check_pixel_values(pixel_values)
        with own_autocast(self, pixel_values):
            return self._forward(pixel_values, resize, output_hidden_states, output_attentions)

    def _forward(
        self,
        pixel_values: torch.Tensor,
        resize: bool,
        output_hidden_states: bool | int | list[int] | None,
        output_attentions: bool | None,
    ) -> BackboneOutput:
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        arguments = dict(self.architecture.arguments)
        if output_attentions:
            self._check_attentions()
            arguments["output_attentions"] = True
        height, width = pixel_values.shape[-2:]
        patch = self.config.backbone_config.patch_size
        # some architectures do not convert images to the dtype of their weights
        pixel_values = pixel_values.to(self.vit.dtype)
        if multiple := self.architecture.multiple:
            pixel_values, _ = pad_to_multiple(pixel_values, 2, multiple)
            pixel_values, _ = pad_to_multiple(pixel_values, 3, multiple)
        wanted = self._hidden_states_to_return(output_hidden_states)
        output = self.vit(pixel_values, output_hidden_states=sorted({*self.out_indices, *wanted}), **arguments)
        maps = []
        for index, scale in zip(self.out_indices, SCALES, strict=True):
            features = output.hidden_states[index]
            if self.architecture.grid:
                features = features.permute(0, 3, 1, 2)
            else:
                # permuted last: so torch knows, even for a single image, that the channels of a pixel are adjacent
                features = features[:, self.prefix :].unflatten(1, (height // patch, width // patch))
                features = features.permute(0, 3, 1, 2)
            if self.in_stages:
                rows, columns = (_scaled(side // patch, scale) for side in (height, width))
                features = crop_to(crop_to(features, 2, rows), 3, columns)
            elif resize:
                features = rescale(features, scale)
            maps.append(features)
        hidden_states = tuple(one if index in wanted else None for index, one in enumerate(output.hidden_states))
        return BackboneOutput(
            feature_maps=tuple(maps),
            hidden_states=hidden_states if wanted else None,
            attentions=tuple(output.attentions) if output_attentions else None,
        )

    def _check_pixel_values(self, pixel_values: torch.Tensor) -> None:
        vit = self.config.backbone_config
        channels = getattr(vit, "num_channels", 3)
        if pixel_values.dim() != 4 or pixel_values.shape[1] != channels or pixel_values.shape[0] == 0:
            raise ValueError(
                f"pixel_values has the shape {tuple(pixel_values.shape)}; expected (B, {channels}, H, W) with one "
                "image at least."
            )
        if not pixel_values.is_floating_point():
            raise ValueError(
                f"pixel_values is {pixel_values.dtype}; expected normalised images in floating point, as "
                "rein_hf.build_image_processor gives them."
            )
        height, width = pixel_values.shape[-2:]
        patch = vit.patch_size
        if height % patch or width % patch or min(height, width) < 2 * patch:
            raise ValueError(
                f"pixel_values is {height}x{width} pixels; expected sides that are multiples of the patch size "
                f"{patch}, {2 * patch} at least. Pad the images, as rein_hf.slide_inference does."
            )

    def _check_attentions(self) -> None:
        if not self.has_attentions:
            raise ValueError(
                f"output_attentions is True; a {self.config.backbone_config.model_type} attends within windows, and "
                "transformers does not return the weights of that."
            )
        implementation = self.vit.config._attn_implementation
        if implementation != "eager":
            raise ValueError(
                f"output_attentions is True with the attention implementation {implementation!r}, which does not "
                "return weights; expected 'eager': call set_attn_implementation(\"eager\") on the model."
            )

    def _hidden_states_to_return(self, output_hidden_states: bool | int | list[int]) -> set[int]:
        """The numbers of the hidden states that the caller asked for."""
        number = len(self.stage_names)
        if isinstance(output_hidden_states, bool):
            return set(range(number)) if output_hidden_states else set()
        asked = [output_hidden_states] if isinstance(output_hidden_states, int) else list(output_hidden_states)
        if not all(-number <= index < number for index in asked):
            raise ValueError(
                f"output_hidden_states is {output_hidden_states}; expected numbers from 0, the patch embedding, to "
                f"{number - 1}, the last block."
            )
        return {index % number for index in asked}


def rescale(maps: torch.Tensor, scale: float) -> torch.Tensor:
    """Maps (B, c, H, W) resized bilinearly to `scale` times their size, rounded down.

    The size is given to `F.interpolate` where that is the same: a scale factor would become a constant when the code
    is traced, and with it the size. In traced code averages of pixels take the place of a scale of 1/2, which they
    equal up to rounding, because no `if` may ask there whether a size is odd.
    """
    if scale == 1:
        return maps
    step = max(round(1 / scale), 1)
    if step == 2 and torch.compiler.is_exporting():
        return halve(halve(maps, 2), 3)
    if step == 2 and torch.compiler.is_compiling():
        return F.avg_pool2d(maps, step)
    rows, columns = maps.shape[-2:]
    if rows % step or columns % step:
        return F.interpolate(maps, scale_factor=scale, mode="bilinear")
    return F.interpolate(maps, size=(_scaled(rows, scale), _scaled(columns, scale)), mode="bilinear")


def _scaled(size: int, scale: float) -> int:
    """`scale` times a size, rounded down, in integers: a float would become a constant when the code is traced."""
    return size * max(round(scale), 1) // max(round(1 / scale), 1)


def backbone_of(model: nn.Module) -> ViTPyramidBackbone:
    """The backbone of a segmenter, with or without adapter."""
    return next(module for module in model.modules() if isinstance(module, ViTPyramidBackbone))


AutoConfig.register(ViTPyramidConfig.model_type, ViTPyramidConfig)
AutoBackbone.register(ViTPyramidConfig, ViTPyramidBackbone)
