"""What Rein has to know of a vision transformer: one line for each architecture of transformers.

To add one, add its line to `ARCHITECTURES`.
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
        grid: whether a block's output is (B, H, W, c), not (B, P + N, c), P prefix tokens before N patches.
        class_tokens: 1 if there is a class token, else 0. Registers, prefix tokens too, are told by the configuration.
        hidden_size, num_hidden_layers: names of the widths and depths in the configuration; lists where the blocks are
            in stages, each of its own width and half the height and width of the one before.
        resampled: tensors whose shape depends on the sizes of image and patch, by the end of their name, and what they
            are: "kernel" (c, 3, p, p) of the patch embedding; "grid", learned positions, one for each patch, those of
            the class token before them; "axis", relative ones (2n - 1, c) along one side; "offsets", relative ones
            ((2n - 1)^2 + 3, heads) in both directions, three for the class token behind them.
        arguments: what the model's `forward` has to be given to take images of other sizes than the trained one.
        multiple: number of pixels that the sides of an image have to be a multiple of, if not the patch size.
        unused: modules that come after the blocks and that no feature of a block goes through, by name.
        loaded_as: model type of another architecture that is the same network with these weights, if the model of this
            one is made for something else than features.
    """

    blocks: str
    grid: bool = False
    class_tokens: int = 1
    hidden_size: str = "hidden_size"
    num_hidden_layers: str = "num_hidden_layers"
    resampled: dict[str, str] = field(default_factory=dict)
    arguments: dict[str, Any] = field(default_factory=dict)
    multiple: int | None = None
    unused: tuple[str, ...] = ()
    loaded_as: str | None = None

    def num_prefix_tokens(self, config: dict) -> int:
        """Tokens before the patches in a block's output: class token and registers."""
        return self.class_tokens + (config.get("num_register_tokens") or 0)

    def sizes(self, config: dict) -> dict[str, int | list[int] | None]:
        """`hidden_size` and `num_hidden_layers` of a model, by its configuration; lists, a number for each stage, of
        one whose blocks are in stages."""
        return {name: config.get(getattr(self, name)) for name in ("hidden_size", "num_hidden_layers")}

    def in_stages(self, config: dict) -> bool:
        """Whether the blocks are in stages of different widths."""
        return isinstance(self.sizes(config)["hidden_size"], list)


_VIT = {"patch_embeddings.projection.weight": "kernel", "position_embeddings": "grid"}
_CLIP = {"patch_embedding.weight": "kernel", "position_embedding.weight": "grid"}
_SAM = {"patch_embed.projection.weight": "kernel", "pos_embed": "grid", "rel_pos_h": "axis", "rel_pos_w": "axis"}
_ANY_SIZE = {"interpolate_pos_encoding": True}

# by the `model_type` of the configuration
ARCHITECTURES = {
    "beit": Architecture("layers", resampled=_VIT | {"relative_position_bias_table": "offsets"}, unused=("pooler",)),
    "clip_vision_model": Architecture("encoder.layers", resampled=_CLIP, arguments=_ANY_SIZE),
    "dinov2": Architecture("encoder.layer", resampled=_VIT),
    "dinov2_with_registers": Architecture("encoder.layer", resampled=_VIT),
    # rotary positions: nothing but the kernel has a size
    "dinov3_vit": Architecture("model.layer", resampled={"patch_embeddings.weight": "kernel"}),
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
    "vit": Architecture("layers", resampled=_VIT, arguments=_ANY_SIZE, unused=("pooler",)),
    # its own model drops patches and shuffles the others
    "vit_mae": Architecture("layers", resampled=_VIT, arguments=_ANY_SIZE, loaded_as="vit"),
}


@dataclass(frozen=True)
class VisionEncoder:
    """A vision transformer in a model.

    Args:
        name: of the vision transformer in the model; empty if it is the model.
        model: the vision transformer, with its `config`.
        architecture: what is known of it.
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
    """What to tell whoever has a model of an unknown architecture."""
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
