"""What Rein has to know about each architecture of vision transformers in transformers.

To add an architecture, add its line to `ARCHITECTURES`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Architecture:
    """
    What differs between vision transformers.

    Args:
        blocks: name of the list of blocks, in the model that turns pixels into features.
        grid: whether a block's output is a grid (B, H, W, c), instead of (B, P + N, c) with P prefix tokens before N
            patches.
        class_tokens: 1 if there is a class token, else 0. The number of register tokens, which are prefix tokens as
            well, is read from the configuration.
        hidden_size, num_hidden_layers: names of the configuration's attributes for width and depth. Where the blocks
            are in stages these attributes are lists; each stage has half the height and width of the one before.
        resampled: tensors whose shape depends on image or patch size: the end of the tensor's name, and its kind.
            "kernel" (c, 3, p, p) of the patch embedding; "grid", learned positions, one for each patch, after those of
            the class token; "axis", relative positions (2n - 1, c) along one side; "offsets", relative positions
            ((2n - 1)^2 + 3, heads) in both directions, of which the last three are the class token's.
        arguments: what the model's `forward` needs to accept images of other sizes than the trained one.
        multiple: number of pixels that each side of an image has to be a multiple of, if it is not the patch size.
        mlp_end: name of the module in a block, called once for the attention's output and once for the MLP's, after
            which that output is added to the residual stream; `None` if the MLP itself is the last one before. A block
            that has it has its attention under the name `attention`.
        unused: names of modules after the blocks, which no feature of a block goes through.
        own_normalization: whether checkpoints of this type differ in the mean and deviation of their images, which
            their image processors tell. All others see images normalised as ImageNet's, as in the paper.
        loaded_as: model type of the architecture to load the weights as, if the model of this type is not made for
            features.
    """

    blocks: str
    grid: bool = False
    class_tokens: int = 1
    hidden_size: str = "hidden_size"
    num_hidden_layers: str = "num_hidden_layers"
    resampled: dict[str, str] = field(default_factory=dict)
    arguments: dict[str, Any] = field(default_factory=dict)
    multiple: int | None = None
    mlp_end: str | None = None
    unused: tuple[str, ...] = ()
    own_normalization: bool = False
    loaded_as: str | None = None

    def num_prefix_tokens(self, config: dict) -> int:
        """Number of tokens before the patches in a block's output: class token and registers."""
        return self.class_tokens + (config.get("num_register_tokens") or 0)

    def sizes(self, config: dict) -> dict[str, int | list[int] | None]:
        """`hidden_size` and `num_hidden_layers` in a model's configuration; lists with a number for each stage, if its
        blocks are in stages."""
        return {name: config.get(getattr(self, name)) for name in ("hidden_size", "num_hidden_layers")}

    def in_stages(self, config: dict) -> bool:
        """Whether the blocks are in stages of different widths."""
        return isinstance(self.sizes(config)["hidden_size"], list)


_VIT = {"patch_embeddings.projection.weight": "kernel", "position_embeddings": "grid"}
_CLIP = {"patch_embedding.weight": "kernel", "position_embedding.weight": "grid"}
_SAM = {"patch_embed.projection.weight": "kernel", "pos_embed": "grid", "rel_pos_h": "axis", "rel_pos_w": "axis"}
_ANY_SIZE = {"interpolate_pos_encoding": True}

# keys: `model_type` of the configuration
ARCHITECTURES = {
    "beit": Architecture(
        "layers",
        resampled=_VIT | {"relative_position_bias_table": "offsets"},
        mlp_end="drop_path",
        unused=("pooler",),
    ),
    "clip_vision_model": Architecture("encoder.layers", resampled=_CLIP, arguments=_ANY_SIZE),
    "dinov2": Architecture("encoder.layer", resampled=_VIT, mlp_end="drop_path"),
    "dinov2_with_registers": Architecture("encoder.layer", resampled=_VIT, mlp_end="drop_path"),
    # rotary positions: only the kernel depends on a size
    # and the satellite weights have a mean and deviation of their own
    "dinov3_vit": Architecture(
        "model.layer",
        resampled={"patch_embeddings.weight": "kernel"},
        mlp_end="drop_path",
        own_normalization=True,
    ),
    # Hiera. The window of its first stage, 8 positions at stride 4, is repeated over the image
    "sam2_hiera_det_model": Architecture(
        "blocks",
        grid=True,
        class_tokens=0,
        hidden_size="embed_dim_per_stage",
        num_hidden_layers="blocks_per_stage",
        multiple=32,
    ),
    "sam_vision_model": Architecture("layers", grid=True, class_tokens=0, resampled=_SAM, unused=("neck",)),
    "siglip_vision_model": Architecture(
        "encoder.layers", class_tokens=0, resampled=_CLIP, arguments=_ANY_SIZE, unused=("head",)
    ),
    "vit": Architecture("layers", resampled=_VIT, arguments=_ANY_SIZE, mlp_end="dropout", unused=("pooler",)),
    # the model of pre-training drops patches at random and shuffles the others
    "vit_mae": Architecture("layers", resampled=_VIT, arguments=_ANY_SIZE, mlp_end="dropout", loaded_as="vit"),
}


@dataclass(frozen=True)
class VisionEncoder:
    """A vision transformer that is a model, or a part of one.

    Args:
        name: name of the vision transformer in the whole model; empty if it is the whole model.
        model: the vision transformer, with its `config`.
        architecture: its architecture.
    """

    name: str
    model: nn.Module
    architecture: Architecture

    @property
    def blocks(self) -> str:
        """Name of the list of blocks in the whole model."""
        return f"{self.name}.{self.architecture.blocks}".lstrip(".")


def find_vision_encoder(model: nn.Module) -> VisionEncoder | None:
    """The first vision transformer of a known architecture in a model that may be more than that (a CLIP, a SAM, a
    segmenter); `None` if there is none."""
    for name, module in model.named_modules():
        model_type = getattr(getattr(module, "config", None), "model_type", None)
        architecture = ARCHITECTURES.get(model_type)
        if architecture is not None and _has_submodule(module, architecture.blocks):
            return VisionEncoder(name, module, architecture)
    return None


def unknown_architecture(model_type: str | None) -> str:
    """The part of an error message that says that an architecture is unknown, and how to add it."""
    return (
        f"model_type {model_type!r} is not known (known: {', '.join(sorted(ARCHITECTURES))}). Add a line for it to "
        "ARCHITECTURES in rein_hf/tuner/architectures.py: the list of its blocks, their output's layout, its prefix "
        "tokens and positions"
    )


def _has_submodule(module: nn.Module, name: str) -> bool:
    try:
        return module.get_submodule(name) is not None
    except AttributeError:
        return False
