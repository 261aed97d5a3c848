"""Initial values of an adapter's weights, as in the paper's code."""

from __future__ import annotations

import math

import torch
from torch import nn

from .config import ReinConfig


def initial_weights(
    config: ReinConfig, num_blocks: int, hidden_size: int, query_dim: int | None
) -> dict[str, nn.Parameter | nn.Linear]:
    """New weights of one adapter for a stack of blocks, by the names of [`ReinLayer.adapter_layer_names`].

    Args:
        config ([`ReinConfig`]): the adapter's configuration.
        num_blocks (`int`): number of blocks L that it refines.
        hidden_size (`int`): hidden size c of the blocks.
        query_dim (`int`, *optional*): width q of the object queries, where the tokens are linked to them.
    """
    c, m, r, q = hidden_size, config.num_tokens, config.r, query_dim
    weights: dict[str, nn.Parameter | nn.Linear] = {}
    if r:
        bound = math.sqrt(6 / (3 * config.patch_size**2 + math.sqrt(c * r)))
        weights["rein_tokens_a"] = _uniform((num_blocks, m, r), bound)
        weights["rein_tokens_b"] = _uniform((num_blocks, r, c), bound)
    else:
        bound = math.sqrt(6 / (3 * config.patch_size**2 + c))
        weights["rein_tokens"] = _uniform((num_blocks, m, c), bound)
    # a new nn.Linear is what the authors use: Kaiming uniform with a = sqrt(5), uniform bias
    weights["rein_token_to_feature"] = nn.Linear(c, c)
    weights["rein_delta"] = delta = nn.Linear(c, c)
    if config.zero_init:
        nn.init.zeros_(delta.weight)
        nn.init.zeros_(delta.bias)
    else:
        weights["rein_scale"] = nn.Parameter(torch.full((1,), config.init_scale))
    if q is not None:
        weights["rein_query_proj"] = nn.Linear(c, q)
        weights["rein_query_merge"] = nn.Linear(3 * q, q)
    return weights


def _uniform(shape: tuple[int, ...], bound: float) -> nn.Parameter:
    """A parameter with values drawn uniformly between -bound and bound."""
    return nn.Parameter(torch.empty(shape).uniform_(-bound, bound))
