"""Names of tensors in the authors' checkpoint files, and our names for the same tensors.

A checkpoint of theirs is one or two files: Rein under `backbone.reins.` and the head under `decode_head.`; and the
backbone under the names of DINOv2's own release, without prefix. A full checkpoint holds all of it in one file, the
backbone under `backbone.`.

Where a tensor is changed, not only renamed:
- `scale` is 0-dimensional there and of shape (1,) here;
- `attn.qkv`, the self-attention's `in_proj` and the SwiGLU's `w12` are two or three of our tensors in one.
"""

from __future__ import annotations

import re

import torch


Tensors = dict[str, torch.Tensor]

# Their name -> ours, or ours one after the other. Without `.weight` and `.bias`; {n} is the number of a layer.
BACKBONE = {
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    "mask_token": "embeddings.mask_token",
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    "blocks.{n}.norm1": "encoder.layer.{n}.norm1",
    "blocks.{n}.attn.qkv": [f"encoder.layer.{{n}}.attention.{name}_proj" for name in "qkv"],
    "blocks.{n}.attn.proj": "encoder.layer.{n}.attention.o_proj",
    "blocks.{n}.ls1.gamma": "encoder.layer.{n}.layer_scale1.lambda1",
    "blocks.{n}.norm2": "encoder.layer.{n}.norm2",
    "blocks.{n}.mlp.fc1": "encoder.layer.{n}.mlp.fc1",
    "blocks.{n}.mlp.fc2": "encoder.layer.{n}.mlp.fc2",
    "blocks.{n}.mlp.w12": ["encoder.layer.{n}.mlp.gate_proj", "encoder.layer.{n}.mlp.up_proj"],
    "blocks.{n}.mlp.w3": "encoder.layer.{n}.mlp.down_proj",
    "blocks.{n}.ls2.gamma": "encoder.layer.{n}.layer_scale2.lambda1",
    "norm": "layernorm",
}

STACK = "model.pixel_level_module.encoder.vit.encoder.layer."
_REIN = {
    "scale": "rein_scale",
    "learnable_tokens_a": "rein_tokens_a",
    "learnable_tokens_b": "rein_tokens_b",
    "learnable_tokens": "rein_tokens",
    "mlp_token2feat": "rein_token_to_feature",
    "mlp_delta_f": "rein_delta",
    "transform": "rein_query_proj",
    "merge": "rein_query_merge",
}
_PIXEL = "model.pixel_level_module.decoder."
_PIXEL_DECODER = {
    "input_convs.{n}.conv": "input_projections.{n}.0",
    "input_convs.{n}.gn": "input_projections.{n}.1",
    "encoder.layers.{n}.self_attn.sampling_offsets": "encoder.layers.{n}.self_attn.sampling_offsets",
    "encoder.layers.{n}.self_attn.attention_weights": "encoder.layers.{n}.self_attn.attention_weights",
    "encoder.layers.{n}.self_attn.value_proj": "encoder.layers.{n}.self_attn.value_proj",
    "encoder.layers.{n}.self_attn.output_proj": "encoder.layers.{n}.self_attn.output_proj",
    "encoder.layers.{n}.ffn.layers.0.0": "encoder.layers.{n}.fc1",
    "encoder.layers.{n}.ffn.layers.1": "encoder.layers.{n}.fc2",
    "encoder.layers.{n}.norms.0": "encoder.layers.{n}.self_attn_layer_norm",
    "encoder.layers.{n}.norms.1": "encoder.layers.{n}.final_layer_norm",
    "level_encoding.weight": "level_embed",
    "lateral_convs.0.conv": "adapter_1.0",
    "lateral_convs.0.gn": "adapter_1.1",
    "output_convs.0.conv": "layer_1.0",
    "output_convs.0.gn": "layer_1.1",
    "mask_feature": "mask_projection",
}
_DECODER = "model.transformer_module.decoder."
_TRANSFORMER_DECODER = {
    "layers.{n}.cross_attn.attn.in_proj_weight": "layers.{n}.cross_attn.in_proj_weight",
    "layers.{n}.cross_attn.attn.in_proj_bias": "layers.{n}.cross_attn.in_proj_bias",
    "layers.{n}.cross_attn.attn.out_proj": "layers.{n}.cross_attn.out_proj",
    "layers.{n}.self_attn.attn.in_proj_weight": [f"layers.{{n}}.self_attn.{name}_proj.weight" for name in "qkv"],
    "layers.{n}.self_attn.attn.in_proj_bias": [f"layers.{{n}}.self_attn.{name}_proj.bias" for name in "qkv"],
    "layers.{n}.self_attn.attn.out_proj": "layers.{n}.self_attn.out_proj",
    "layers.{n}.ffn.layers.0.0": "layers.{n}.fc1",
    "layers.{n}.ffn.layers.1": "layers.{n}.fc2",
    "layers.{n}.norms.0": "layers.{n}.cross_attn_layer_norm",
    "layers.{n}.norms.1": "layers.{n}.self_attn_layer_norm",
    "layers.{n}.norms.2": "layers.{n}.final_layer_norm",
    "post_norm": "layernorm",
}
_HEAD = {
    "level_embed": "model.transformer_module.level_embed",
    # of a head that asks for them
    "decoder_input_projs.{n}": "model.transformer_module.input_projections.{n}",
    "querys2feat": "model.transformer_module.queries_features.rein_query_content",
    # of a model whose tokens are not the queries
    "query_embed": "model.transformer_module.queries_embedder",
    "query_feat": "model.transformer_module.queries_features",
    "cls_embed": "class_predictor",
    "mask_embed.0": "model.transformer_module.decoder.mask_predictor.mask_embedder.0.0",
    "mask_embed.2": "model.transformer_module.decoder.mask_predictor.mask_embedder.1.0",
    "mask_embed.4": "model.transformer_module.decoder.mask_predictor.mask_embedder.2.0",
}


def with_prefixes(their_prefix: str, our_prefix: str, table: dict) -> dict[str, list[str]]:
    """A table of names with prefixes before them, ours as lists."""
    lists = {theirs: [ours] if isinstance(ours, str) else ours for theirs, ours in table.items()}
    return {their_prefix + theirs: [our_prefix + name for name in ours] for theirs, ours in lists.items()}


# Names of ours are those in a `Dinov2Model` and those in a `Mask2FormerForUniversalSegmentation` with Rein.
BACKBONE_NAMES = with_prefixes("", "", BACKBONE)
HEAD_NAMES = (
    with_prefixes("decode_head.pixel_decoder.", _PIXEL, _PIXEL_DECODER)
    | with_prefixes("decode_head.transformer_decoder.", _DECODER, _TRANSFORMER_DECODER)
    | with_prefixes("decode_head.", "", _HEAD)
)
REIN_AND_HEAD_NAMES = with_prefixes("backbone.reins.", STACK, _REIN) | HEAD_NAMES


def from_reference(tensors: Tensors, names: dict[str, list[str]]) -> tuple[Tensors, list[str]]:
    """Tensors by our names, and the names that the table does not know.

    Args:
        tensors: by the authors' names.
        names: `BACKBONE_NAMES`, `REIN_AND_HEAD_NAMES`, or SoMA's.
    """
    patterns = [(_pattern(theirs), ours) for theirs, ours in names.items()]
    found, unknown = {}, []
    for name, tensor in tensors.items():
        match, ours = next(((m, ours) for pattern, ours in patterns if (m := pattern.fullmatch(name))), (None, ()))
        if match is None:
            unknown.append(name)
        if len(ours) == 1 and tensor.dim() == 0:
            tensor = tensor.reshape(1)
        for template, part in zip(ours, tensor.chunk(len(ours)) if ours else (), strict=True):
            found[_fill_template(template, match)] = part
    return found, unknown


def to_reference(tensors: Tensors, names: dict[str, list[str]]) -> tuple[Tensors, list[str]]:
    """The way back: tensors by the authors' names, and the names of ours that the table does not know."""
    patterns = [(_pattern(ours[0]), theirs, ours) for theirs, ours in names.items()]
    found, used = {}, set()
    for name in tensors:
        for pattern, theirs, ours in patterns:
            if match := pattern.fullmatch(name):
                parts = [_fill_template(template, match) for template in ours]
                used.update(parts)
                tensor = tensors[name] if len(parts) == 1 else torch.cat([tensors[part] for part in parts])
                found[_fill_template(theirs, match)] = (
                    tensor.reshape(()) if theirs == "backbone.reins.scale" else tensor
                )
    return found, [name for name in tensors if name not in used]


def compare_tensors(found: Tensors, expected: Tensors) -> list[str]:
    """What is unknown, missing or misshapen in `found`, a line each; empty if nothing is."""
    lines = [f"unknown key {name} {tuple(found[name].shape)}" for name in found if name not in expected]
    lines += [f"missing key {name} {tuple(expected[name].shape)}" for name in expected if name not in found]
    for name in (name for name in found if name in expected and found[name].shape != expected[name].shape):
        lines.append(f"misshapen key {name}: {tuple(found[name].shape)}, expected {tuple(expected[name].shape)}")
    return lines


def _pattern(template: str) -> re.Pattern:
    number = re.escape(template).replace(r"\{n\}", r"(?P<n>\d+)")
    return re.compile(number + r"(?P<leaf>\.weight|\.bias|)")


def _fill_template(template: str, match: re.Match) -> str:
    return template.replace("{n}", match.groupdict().get("n", "")) + match["leaf"]
