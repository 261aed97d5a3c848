"""Sizes of the models in the authors' checkpoint files, read from the shapes of their tensors."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from transformers import Dinov2Config

from ..backbone import config as backbone
from .names import Tensors


DINOV2_HEAD_WIDTH = 64


def vit_config(tensors: Tensors, num_attention_heads: int | None = None) -> Dinov2Config:
    """Configuration of a backbone, read from its tensors.

    Args:
        tensors: by the names of DINOv2's release.
        num_attention_heads (`int`, *optional*): no shape depends on it; hidden size / 64 by default.

    Raises:
        ValueError: a tensor that a size is read from is missing, or has another number of dimensions; the
            hidden size is no multiple of the number of heads.
    """
    (_, positions, hidden), (*_, patch) = _shapes_of(tensors, {"pos_embed": 3, "patch_embed.proj.weight": 4})
    depth = _count_layers(tensors, "blocks.")
    if num_attention_heads is None and hidden % DINOV2_HEAD_WIDTH:
        raise ValueError(
            f"the backbone's hidden size is {hidden}, no multiple of {DINOV2_HEAD_WIDTH}: give --num_attention_heads."
        )
    heads = num_attention_heads or hidden // DINOV2_HEAD_WIDTH
    if hidden % heads:
        raise ValueError(f"num_attention_heads is {heads}; expected a divisor of the hidden size {hidden}.")
    side = math.isqrt(max(positions - 1, 0))
    swiglu = any(".mlp.w12." in name for name in tensors)
    ratio = 4 if swiglu else _shapes_of(tensors, {"blocks.0.mlp.fc1.weight": 2})[0][0] // hidden
    return Dinov2Config(
        hidden_size=hidden,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        mlp_ratio=ratio,
        patch_size=patch,
        image_size=side * patch,
        use_swiglu_ffn=swiglu,
        qkv_bias=any(name.endswith(".attn.qkv.bias") for name in tensors),
        use_mask_token="mask_token" in tensors,
    )


def rein_sizes(tensors: Tensors) -> dict:
    """Arguments of [`ReinConfig`]: Rein's sizes, read from its tensors by the authors' names.

    Raises:
        ValueError: a tensor that a size is read from is missing, or has another number of dimensions.
    """
    prefix = "backbone.reins."
    full = prefix + "learnable_tokens" in tensors
    if full:
        ((depth, m, hidden),) = _shapes_of(tensors, {prefix + "learnable_tokens": 3})
        r = None
    else:
        (depth, m, r), (*_, hidden) = _shapes_of(
            tensors, {prefix + "learnable_tokens_a": 3, prefix + "learnable_tokens_b": 3}
        )
    return {
        "r": r,
        "num_tokens": m,
        "hidden_size": hidden,
        "num_hidden_layers": depth,
        "link_queries": "decode_head.query_embed.weight" not in tensors,
        "zero_init": prefix + "scale" not in tensors,
    }


def head_sizes(tensors: Tensors) -> dict:
    """Arguments of `Mask2FormerConfig`: the head's sizes, read from its tensors by the authors' names.

    Raises:
        ValueError: a tensor that a size is read from is missing, or has another number of dimensions.
    """
    p, t = "decode_head.pixel_decoder.", "decode_head.transformer_decoder."
    classes, feature, mask, offsets, encoder_ffn, decoder_ffn = _shapes_of(
        tensors,
        {
            "decode_head.cls_embed.weight": 2,
            p + "input_convs.0.conv.weight": 4,
            p + "mask_feature.weight": 4,
            p + "encoder.layers.0.self_attn.sampling_offsets.weight": 2,
            p + "encoder.layers.0.ffn.layers.0.0.weight": 2,
            t + "layers.0.ffn.layers.0.0.weight": 2,
        },
    )
    levels, points, coordinates = 3, 4, 2
    heads = offsets[0] // (levels * points * coordinates)
    if classes[0] < 2 or not heads or classes[1] % heads:
        raise ValueError(
            f"{classes[0]} class logits of width {classes[1]} and {offsets[0]} sampling offsets; expected at least "
            f"one class and no-object, and {levels * points * coordinates} offsets for each head."
        )
    sizes = {
        "num_labels": classes[0] - 1,
        "hidden_dim": classes[1],
        "feature_size": feature[0],
        "mask_feature_size": mask[0],
        "encoder_layers": _count_layers(tensors, p + "encoder.layers."),
        "encoder_feedforward_dim": encoder_ffn[0],
        # transformers counts the initial output as a layer
        "decoder_layers": _count_layers(tensors, t + "layers.") + 1,
        "dim_feedforward": decoder_ffn[0],
        "num_attention_heads": heads,
    }
    if "decode_head.decoder_input_projs.0.weight" in tensors and feature[0] == classes[1]:
        sizes["enforce_input_projection"] = True
    if "decode_head.query_embed.weight" in tensors:
        sizes["num_queries"] = _shapes_of(tensors, {"decode_head.query_embed.weight": 2})[0][0]
    return sizes


def default_out_indices(depth: int) -> list[int]:
    """The four blocks that give the maps, counted from 0 as the authors do: 7, 11, 15, 23 of 24 blocks, otherwise the
    last of each quarter of the depth."""
    return [block - 1 for block in backbone.default_out_indices(depth)]


def _shapes_of(tensors: Tensors, dimensions: dict[str, int]) -> list[torch.Size]:
    lines = [f"missing key {name}" for name in dimensions if name not in tensors]
    for name in (name for name in dimensions if name in tensors and tensors[name].dim() != dimensions[name]):
        lines.append(f"misshapen key {name}: {tuple(tensors[name].shape)}, expected {dimensions[name]} dimensions")
    if lines:
        raise ValueError("\n  ".join(["sizes cannot be read from these keys:", *lines]))
    return [tensors[name].shape for name in dimensions]


def _count_layers(names: Iterable[str], prefix: str) -> int:
    # how many numbers there are, not the largest one: then a layer that is left out is reported as missing, and one of
    # a number far too high as unknown
    return len({name.removeprefix(prefix).partition(".")[0] for name in names if name.startswith(prefix)})
