"""SoMA's checkpoint files: names of their tensors, and the plain LoRA that they are.

Such a file holds `state_dict` and, of runs with a moving average, `ema_state_dict`, with the same keys and `module.`
before each. The code that writes them exchanges the two: `state_dict` is what is evaluated, the moving average, and
`ema_state_dict` the weights that it was made of. Neither holds the frozen rest of a weight, W - B0 A0: B0 A0 is made
again from the backbone. Biases of the backbone that were not trained are in them, too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import torch

from .names import BACKBONE_NAMES, HEAD_NAMES, STACK, Tensors, with_prefixes


MASK_TOKEN = "backbone.model.mask_token"  # a copy of the backbone's, which nothing uses

_LAYERS = {
    **{f"attn.{name}": f"attention.{name}_proj" for name in "qkv"},
    "attn.proj": "attention.o_proj",
    **{f"mlp.{name}": f"mlp.{name}" for name in ("fc1", "fc2")},
}
# Their name -> ours in a `Mask2FormerForUniversalSegmentation` with a LoRA. The second is the layer's bias.
SOMA_NAMES = HEAD_NAMES | with_prefixes(
    "backbone.model.blocks.{n}.",
    f"{STACK}{{n}}.",
    {
        theirs + leaf: ours + our_leaf
        for theirs, ours in _LAYERS.items()
        for leaf, our_leaf in ((".lora_A", ".lora_A"), (".lora_B", ".lora_B"), ("", ".base_layer"))
    },
)
# The backbone's own, without the prefix: DINOv2's, but for q, k and v apart.
SOMA_BACKBONE_NAMES = BACKBONE_NAMES | with_prefixes(
    "blocks.{n}.", "encoder.layer.{n}.", {f"attn.{name}": f"attention.{name}_proj" for name in "qkv"}
)


def is_soma(names: Iterable[str]) -> bool:
    """Whether tensors of these names, theirs, are SoMA's."""
    return any(re.fullmatch(r"(module\.)?backbone\.model\.blocks\.\d+\..*\.lora_[AB]\.weight", name) for name in names)


def split_soma(tensors: Tensors) -> tuple[Tensors, Tensors]:
    """The tensors that were trained, and the backbone's that were not: biases, and the token of masked patches.

    Args:
        tensors: by their names.
    """
    tuned = tuple(name.removesuffix("lora_A.weight") for name in tensors if name.endswith(".lora_A.weight"))
    frozen = {
        name
        for name in tensors
        if name == MASK_TOKEN or name.startswith("backbone.") and name.endswith(".bias") and not name.startswith(tuned)
    }
    prefix = "backbone.model."
    return (
        {name: tensor for name, tensor in tensors.items() if name not in frozen},
        {name.removeprefix(prefix): tensors[name] for name in sorted(frozen)},
    )


def soma_sizes(tensors: Tensors) -> dict[str, int]:
    """`r` and `first_block`, counted from 1, of tensors by their names.

    Raises:
        ValueError: the ranks differ, or are not those of two-dimensional tensors.
    """
    ranks = {tensor.shape[:1] for name, tensor in tensors.items() if name.endswith(".lora_A.weight")}
    if len(ranks) != 1 or ranks == {torch.Size([])}:
        raise ValueError(f"tensors lora_A.weight have the ranks {sorted(map(list, ranks))}; expected one for all.")
    blocks = [int(match[1]) for name in tensors if (match := re.match(r"backbone\.model\.blocks\.(\d+)\.", name))]
    return {"r": ranks.pop()[0], "first_block": min(blocks) + 1}


def to_plain_lora(tensors: Tensors, start: dict[str, tuple[torch.Tensor, torch.Tensor]]) -> Tensors:
    """The tensors of the LoRA of rank 2r on the untouched weights.

    Args:
        tensors: by our names, with A (r, m) and B (n, r).
        start: B0 (n, r) and A0 (r, m) of each layer, by its name.
    """
    found = dict(tensors)
    for layer, (start_b, start_a) in start.items():
        a, b = f"{layer}.lora_A.weight", f"{layer}.lora_B.weight"
        found[a] = torch.cat([tensors[a], start_a])
        found[b] = torch.cat([tensors[b], -start_b], dim=1)
    return found


def from_plain_lora(tensors: Tensors, start: dict[str, tuple[torch.Tensor, torch.Tensor]]) -> Tensors:
    """The way back: A and B alone.

    Raises:
        ValueError: names the layers whose LoRA does not subtract `start`: it is none that SoMA has made.
    """
    found, wrong = dict(tensors), []
    for layer, (start_b, start_a) in start.items():
        a, b = f"{layer}.lora_A.weight", f"{layer}.lora_B.weight"
        r = len(start_a)
        found[a], found[b] = tensors[a][:r].contiguous(), tensors[b][:, :r].contiguous()
        subtracted, expected = -tensors[b][:, r:] @ tensors[a][r:], start_b @ start_a
        if (subtracted - expected).abs().max() > 1e-3 * expected.abs().max():
            wrong.append(layer)
    if wrong:
        lines = ["these layers have a LoRA that does not subtract the smallest singular components:", *wrong]
        raise ValueError("\n  ".join(lines))
    return found
