"""Rein's layer: a list of blocks whose outputs are refined.

Notation as in the paper: B batch, N patches, P prefix tokens, c hidden size, L refined blocks, m tokens, r rank,
q width of the object queries.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from .base import (
    NO_DATA_PARALLEL,
    ReinTunerLayer,
    is_autocast_enabled,
    linear_weight,
    prepend_forward_hook,
    with_weights,
    without_autocast,
)
from .block_list import BlockListLayer
from .config import ReinConfig
from .factors import Factors, RefinementWeights, add_to_patches, saves_time
from .initialization import initial_weights
from .refinement_hook import RefinementHook
from .shared_factors import SharedFactors, compute_factors


class ReinLayer(ReinTunerLayer, BlockListLayer):
    """
    A list of transformer blocks, whose outputs are refined, each with tokens of its own (paper section 3.2):

        S = softmax(f @ T_i^T / sqrt(c))
        f' = f + scale * (W_f (S[:, 1:] @ (W_T T_i[1:] + b_T) + f) + b_f)

    for the patch features f (B, N, c) or (B, H, W, c) of block i; prefix tokens pass unchanged. `W_T`, `W_f` and
    `scale` are shared by all blocks.

    The layer takes the place of the list of blocks and is iterated over like that list. The refinement is a forward
    hook of each block that runs before all others, so that whoever records hidden states sees the refined ones. It
    runs on the device of the features, wherever the weights are.

    The blocks share their [`Factors`], see [`SharedFactors`]. Autograd stores per block one map f (B, P + N, c),
    S (B, P + N, m), two maps of width r and r + 1, and O(r(m + c)) for factors; c^2 for those of all blocks.

    Args:
        base_layer (`nn.ModuleList`): the L blocks; each returns (B, P + N, c), or (B, H, W, c) without prefix tokens.
        adapter_name, config, query_dim: as of [`ReinLayer.update_layer`].
        hidden_size (`int`): hidden size c of the blocks.
        num_prefix_tokens (`int`): number P of tokens before the patches.
        register_blocks (`bool`): whether the blocks become submodules of this layer; `False` where they are those of
            another module already ([`ReinStages`]).

    Raises:
        ValueError: in the forward pass: a replica of `torch.nn.DataParallel`; weights never loaded, or quantised; no
            patches behind the prefix tokens; features of another type than the weights where peft's
            `disable_input_dtype_casting` is on.

    Adapter tensors, by name: `rein_tokens_a` (L, m, r) and `rein_tokens_b` (L, r, c), or `rein_tokens` (L, m, c);
    `rein_scale` (1,); linear layers `rein_token_to_feature` W_T (c -> c), `rein_delta` W_f (c -> c) and, if linked,
    `rein_query_proj` W_Q (c -> q) and `rein_query_merge` W_M (3q -> q).

    Example:

    ```py
    >>> import torch
    >>> from rein_hf import ReinConfig, ReinLayer

    >>> blocks, features = torch.nn.ModuleList([torch.nn.Linear(32, 32)]), torch.ones(1, 1 + 6, 32)
    >>> plain = blocks[0](features)
    >>> layer = ReinLayer(blocks, "default", ReinConfig(num_tokens=10), hidden_size=32, num_prefix_tokens=1)
    >>> refined = layer[0](features)
    >>> torch.equal(refined[:, :1], plain[:, :1]), torch.equal(refined[:, 1:], plain[:, 1:])
    (True, False)

    ```
    """

    adapter_layer_names = (
        "rein_tokens_a",
        "rein_tokens_b",
        "rein_tokens",
        "rein_scale",
        "rein_token_to_feature",
        "rein_delta",
        "rein_query_proj",
        "rein_query_merge",
    )

    def __init__(
        self,
        base_layer: nn.ModuleList,
        adapter_name: str,
        config: ReinConfig,
        hidden_size: int,
        num_prefix_tokens: int,
        query_dim: int | None = None,
        register_blocks: bool = True,
    ) -> None:
        super().__init__()
        if register_blocks:
            self.base_layer = base_layer
        else:
            object.__setattr__(self, "base_layer", base_layer)
        self.hidden_size = hidden_size
        self.num_prefix_tokens = num_prefix_tokens
        self.rein_tokens_a = nn.ParameterDict()
        self.rein_tokens_b = nn.ParameterDict()
        self.rein_tokens = nn.ParameterDict()
        self.rein_scale = nn.ParameterDict()
        self.rein_token_to_feature = nn.ModuleDict()
        self.rein_delta = nn.ModuleDict()
        self.rein_query_proj = nn.ModuleDict()
        self.rein_query_merge = nn.ModuleDict()
        self._shared_factors = SharedFactors()
        self._set_up(adapter_name)
        self.update_layer(adapter_name, config, query_dim)
        self._hooks = [
            prepend_forward_hook(block, RefinementHook(self, index)) for index, block in enumerate(base_layer)
        ]

    def update_layer(self, adapter_name: str, config: ReinConfig, query_dim: int | None = None) -> None:
        """Add one more adapter, with new weights. One of this name is replaced.

        Args:
            adapter_name (`str`): name of the adapter.
            config (`ReinConfig`): its configuration.
            query_dim (`int`, *optional*): width q of the object queries, where the tokens are linked to them.

        Raises:
            ValueError: `layers_to_transform` names a block that is not there.
        """
        config.check_blocks(len(self.base_layer))
        for name in self.adapter_layer_names:
            # the adapter that is replaced may have other tensors
            if adapter_name in (container := getattr(self, name)):
                del container[adapter_name]
        num_blocks = len(config.changed_blocks(len(self.base_layer)))
        for name, weight in initial_weights(config, num_blocks, self.hidden_size, query_dim).items():
            getattr(self, name)[adapter_name] = weight
        self.configs[adapter_name] = config
        self._finish_update(adapter_name)

    def tokens(self, adapter_name: str) -> torch.Tensor:
        """Tokens T of all refined blocks, (L, m, c)."""
        with with_weights(self.rein_tokens, self.rein_tokens_a, self.rein_tokens_b):
            if adapter_name in self.rein_tokens:
                return self.rein_tokens[adapter_name]
            return self.rein_tokens_a[adapter_name] @ self.rein_tokens_b[adapter_name]

    def object_queries(self, adapter_name: str) -> torch.Tensor:
        """The tokens as object queries Q (m, q): maximum, mean and last of the projected tokens (section 3.3)."""
        project = self.rein_query_proj[adapter_name]
        with with_weights(self.rein_tokens, self.rein_tokens_a, self.rein_tokens_b, project):
            if adapter_name in self.rein_tokens:
                projected = project(self.rein_tokens[adapter_name])
            else:
                # (A B) W_Q = A (B W_Q): r rows to project instead of m
                rows = nn.functional.linear(self.rein_tokens_b[adapter_name], linear_weight(project))
                projected = self.rein_tokens_a[adapter_name] @ rows + project.bias
        # interleaved by channel: inputs 3k, 3k + 1, 3k + 2 of W_M are maximum, mean and last of channel k
        summary = torch.stack([projected.max(dim=0).values, projected.mean(dim=0), projected[-1]], dim=-1)
        return self.rein_query_merge[adapter_name](summary.flatten(1))

    def factors(self, adapter_name: str, row: int | slice) -> Factors:
        """The products of an adapter's weights that a refinement needs, where the weights are and in their type; for
        one refined block, or for several if `row` is a slice."""
        config = self.configs[adapter_name]
        tokens = (self.rein_tokens_a, self.rein_tokens_b) if config.r else (self.rein_tokens,)
        to_feature, delta = self.rein_token_to_feature[adapter_name], self.rein_delta[adapter_name]
        with with_weights(*tokens, self.rein_scale, to_feature, delta):
            weights = RefinementWeights(
                tokens=tuple(container[adapter_name] for container in tokens),
                to_feature=(linear_weight(to_feature), to_feature.bias),
                delta=(linear_weight(delta), delta.bias),
                scale=None if config.zero_init else self.rein_scale[adapter_name],
                use_softmax=config.use_softmax,
                multiplied=saves_time(linear_weight(to_feature).device),
            )
            return compute_factors(weights, row)

    def _forget_computed(self) -> None:
        super()._forget_computed()
        self._shared_factors.forget()

    def refined_blocks(self, adapter_name: str) -> list[int] | range:
        """The blocks that an adapter refines, counted from 0, in the order of its tokens."""
        return self.configs[adapter_name].changed_blocks(len(self.base_layer))

    def attention(self, adapter_name: str, index: int, output: torch.Tensor) -> torch.Tensor:
        """Attention S of patches to tokens (section 3.2), see [`Factors.attention`].

        Args:
            adapter_name (`str`): name of the adapter.
            index (`int`): a block that it refines, counted from 0.
            output (`torch.Tensor`): what the block gives Rein, (B, P + N, c) or (B, H, W, c).

        Returns:
            (B, N, m) or (B, H, W, m), in the type of the adapter's weights, under autocast too.
        """
        with without_autocast(output.device.type):
            factors = self.factors(adapter_name, self.refined_blocks(adapter_name).index(index))
            factors = factors.to(output.device, factors.weight.dtype)
            return factors.attention(output[:, self.num_prefix_tokens :].to(factors.weight.dtype))

    def refine_output(
        self, index: int, block: nn.Module, output: torch.Tensor, in_place: bool = False
    ) -> torch.Tensor | None:
        """What [`RefinementHook`] calls after block `index`: its output (B, P + N, c) or (B, H, W, c) with the patches
        refined; `None` if the active adapter does not refine this block. `in_place` allows to write into the output,
        where that saves time."""
        adapter = self.adapter
        if adapter is None or index not in self.refined_blocks(adapter):
            return None
        if getattr(block, "_is_replica", False):
            raise ValueError(NO_DATA_PARALLEL)
        self.check_prefix(output)
        device, dtype = output.device, linear_weight(self.rein_delta[adapter]).dtype
        autocast = is_autocast_enabled(device.type)
        if autocast and dtype != torch.float64:
            dtype = torch.get_autocast_dtype(device.type)
        elif dtype != output.dtype and not self.cast_input_dtype_enabled:
            raise ValueError(
                f"The features are {output.dtype} and Rein's weights {dtype}, and disable_input_dtype_casting forbids "
                "to cast the features. Make both of one type, or leave the casting on."
            )
        # all is cast here once: autocast would cast the features at every use, and autograd store every result
        with without_autocast(device.type):
            factors = self._shared_factors.of_block(
                self.factors, adapter, self.refined_blocks(adapter), index, device, dtype, self.weights_are_fixed
            )
            if getattr(block, "gradient_checkpointing", False) and block.training and torch.is_grad_enabled():
                # transformers checkpoints the block's forward, and hooks run outside of that
                checkpoint = block._gradient_checkpointing_func
                return checkpoint(partial(self._refined, factors), output, *factors.tensors())
            return self._refined(factors, output, *factors.tensors(), in_place=in_place)

    def _refined(
        self, factors: Factors, output: torch.Tensor, *tensors: torch.Tensor, in_place: bool = False
    ) -> torch.Tensor:
        """The output of a block with the patches refined. `tensors` are those of the factors: checkpointing that is
        reentrant computes the gradients of its arguments alone."""
        # the delta of prefix tokens is computed as well and not used: the patches alone would have to be copied
        delta = factors.with_tensors(tensors).refine(output.to(factors.weight.dtype))
        return add_to_patches(output, delta, self.num_prefix_tokens, in_place)

    def extra_repr(self) -> str:
        return "; ".join(
            f"{name}: {config.num_tokens} tokens of rank {config.r or 'full'} for "
            f"{len(self.refined_blocks(name))} blocks"
            for name, config in self.configs.items()
        )
