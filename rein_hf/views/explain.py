"""What Rein does inside a model: the features of blocks before and after their refinement, and how much attention
each token gets at each patch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from PIL import Image
from torch import nn

from ..backbone import backbone_of
from ..images import upright_rgb
from ..tuner import ReinLayer


@dataclass(frozen=True)
class BlockView:
    """
    What Rein does in one block, for one image of h x w patches (paper section 3.2).

    Args:
        block (`int`): number of the block, from 1. In a model of several stages the count goes on from stage to stage.
        before, after (`torch.Tensor`): patch features f and f', (h, w, c), before and after Rein.
        attention (`torch.Tensor`): (m, h, w), for each of the m tokens (the first is the sink) its share S in the
            softmax of each patch. If Rein uses no softmax, the products f @ T^T.
        use_softmax (`bool`): whether Rein uses a softmax, so that `attention` holds shares.
    """

    block: int
    before: torch.Tensor
    after: torch.Tensor
    attention: torch.Tensor
    use_softmax: bool

    @property
    def change(self) -> torch.Tensor:
        """Length of each patch's refinement relative to that of its features, |f' - f| / |f|, (h, w)."""
        return (self.after - self.before).norm(dim=-1) / self.before.norm(dim=-1)

    @property
    def colours(self) -> tuple[np.ndarray, np.ndarray]:
        """The first three principal components of the features as red, green and blue, before and after Rein: two
        arrays (h, w, 3), uint8.

        Basis and scale are fitted to the features before and after Rein together, so that equal features have equal
        colours. Colours of different blocks cannot be compared.
        """
        features = torch.stack([self.before, self.after]).double()
        centred = (features - features.mean(dim=(0, 1, 2))).flatten(0, 2)
        axes = torch.linalg.eigh(centred.T @ centred).eigenvectors[:, -3:].flip(1)
        # the sign of an eigenvector is arbitrary, so its largest entry is made positive
        axes = axes * axes.gather(0, axes.abs().argmax(dim=0, keepdim=True)).sign()
        components = centred @ axes
        # In many backbones the features of a few patches are far from all others. Scaled by the extremes, the other
        # patches would have no contrast.
        low, high = components.quantile(components.new_tensor([0.01, 0.99]), dim=0)
        scaled = ((components - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
        before, after = (255 * scaled).round().to(torch.uint8).unflatten(0, features.shape[:3]).cpu().numpy()
        return before, after

    def busiest_tokens(self, count: int) -> list[int]:
        """`count` tokens: the sink, which is token 0, and the tokens whose attention varies most over the image."""
        spread = self.attention[1:].flatten(1).std(dim=1, correction=0)
        return [0, *(1 + spread.argsort(descending=True, stable=True)[: count - 1]).tolist()]


def rein_layers(model: nn.Module) -> list[ReinLayer]:
    """The layers of a model that hold Rein and the blocks that it refines, one for each stage.

    Raises:
        ValueError: the model has no active Rein adapter.
    """
    layers = [module for module in model.modules() if isinstance(module, ReinLayer) and module.adapter is not None]
    if not layers:
        found = {name: config.peft_type.value for name, config in getattr(model, "peft_config", {}).items()}
        raise ValueError(f"expected a model with an active Rein adapter; found adapters {found or 'none'}.")
    return layers


@torch.no_grad()
def block_views(model: nn.Module, pixel_values: torch.Tensor, count: int | None = None) -> list[BlockView]:
    """What Rein does in the blocks of a model, for one image.

    Args:
        model: with an active Rein adapter, in eval mode.
        pixel_values (`torch.Tensor` of shape `(1, 3, H, W)`): a normalised image whose sides are multiples of the
            patch size, of 32 for a hierarchical vision transformer.
        count (`int`, *optional*): number of blocks to look at: the first, the last, and others evenly spread between
            them. By default all that Rein refines.

    Returns:
        A view of each block, in their order. Features and attention are float32 or float64.

    Raises:
        ValueError: the model has no active Rein adapter, there is not exactly one image, or a side is no multiple of
            the patch size.

    Example:

    ```py
    >>> import torch
    >>> from peft import get_peft_model
    >>> from transformers import Dinov2Config, Dinov2Model
    >>> from rein_hf import ReinConfig, block_views

    >>> vit = Dinov2Model(Dinov2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, patch_size=16))
    >>> model = get_peft_model(vit, ReinConfig(num_tokens=10)).eval()
    >>> for view in block_views(model, torch.ones(1, 3, 64, 96)):
    ...     print(view.block, tuple(view.after.shape), tuple(view.attention.shape), tuple(view.change.shape))
    1 (4, 6, 32) (10, 4, 6) (4, 6)
    2 (4, 6, 32) (10, 4, 6) (4, 6)

    ```
    """
    if len(pixel_values) != 1:
        raise ValueError(f"pixel_values holds {len(pixel_values)} images; expected one.")
    blocks, first_number = [], 1
    for layer in rein_layers(model):
        blocks += [(first_number + index, layer, index) for index in sorted(layer.refined_blocks(layer.adapter))]
        first_number += len(layer)
    if count is not None and count < len(blocks):
        blocks = [blocks[round(position)] for position in np.linspace(0, len(blocks) - 1, count)]
    outputs: dict[int, list[torch.Tensor]] = {number: [] for number, _, _ in blocks}
    hooks = []
    try:
        for number, layer, index in blocks:
            record = partial(_append_output, outputs[number])
            # Rein itself is a hook of the block: a hook before it sees Rein's input, a hook after it Rein's output
            hooks += [layer[index].register_forward_hook(record, prepend=prepend) for prepend in (True, False)]
        model(pixel_values=pixel_values)
    finally:
        for hook in hooks:
            hook.remove()
    views = []
    for number, layer, index in blocks:
        attention = layer.attention(layer.adapter, index, outputs[number][0])
        patches = (output[:, layer.num_prefix_tokens :] for output in outputs[number])
        before, after, attention = (_as_grid(patches, pixel_values) for patches in (*patches, attention))
        use_softmax = layer.configs[layer.adapter].use_softmax
        views.append(BlockView(number, before, after, attention.permute(2, 0, 1), use_softmax))
    return views


def block_views_of_photo(
    model: nn.Module, processor, image: Image.Image, count: int | None = None
) -> tuple[Image.Image, list[BlockView]]:
    """What Rein does in the blocks of a segmenter, for a whole photo, without windows.

    If the short side of a photo is longer than the crop that the model was trained on, the photo is resized so that
    this side is as long as the crop. Both sides are then rounded to multiples of the patch size.

    Args:
        model: from [`rein_hf.from_pretrained`].
        processor: its image processor.
        image (`PIL.Image.Image`): of any size and mode; it is turned upright as its EXIF says.
        count (`int`, *optional*): how many blocks, see [`block_views`].

    Returns:
        The photo as the model saw it, and the views.

    Raises:
        ValueError: the model has no active Rein adapter, or the photo cannot be decoded.
    """
    rein_layers(model)  # raises before anything is computed
    config = model.config.backbone_config
    multiple = config.architecture.multiple or config.backbone_config.patch_size
    image = upright_rgb(image)
    factor = min(config.backbone_config.image_size / min(image.size), 1)
    # two patches at least, because the coarsest of the four maps halves the grid of patches
    size = tuple(max(round(side * factor / multiple), 2) * multiple for side in image.size)
    resized = image.resize(size, Image.Resampling.BILINEAR)
    pixel_values = processor(resized, return_tensors="pt")["pixel_values"].to(model.device)
    return resized, block_views(backbone_of(model), pixel_values, count)


def _append_output(outputs: list[torch.Tensor], block: nn.Module, args: tuple, output: torch.Tensor) -> None:
    """A forward hook of a block, once its list is bound."""
    outputs.append(output)


def _as_grid(patches: torch.Tensor, pixel_values: torch.Tensor) -> torch.Tensor:
    """Values of the patches of one image, (1, N, k) or (1, h, w, k), as (h, w, k), float32 or float64."""
    patches = patches[0].to(torch.promote_types(patches.dtype, torch.float32))
    if patches.ndim == 3:
        return patches
    # patches are squares, and N of them cover H x W pixels
    height, width = pixel_values.shape[-2:]
    side = round(math.sqrt(height * width / len(patches)))
    if (height // side) * (width // side) != len(patches) or height % side or width % side:
        raise ValueError(
            f"pixel_values is {height}x{width} pixels and gives {len(patches)} patches; expected sides that are "
            "multiples of the patch size."
        )
    return patches.unflatten(0, (height // side, width // side))
