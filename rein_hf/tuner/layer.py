"""Rein's layer: a stack of blocks whose outputs are refined.

Notation as in the paper: B batch, N patches, P prefix tokens, c hidden size, L refined blocks, m tokens, r rank,
q width of the object queries.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from functools import partial

import torch
from torch import nn

from .base import ReinTunerLayer
from .config import ReinConfig
from .factors import Factors


class ReinLayer(nn.Module, ReinTunerLayer):
    """
    A stack of transformer blocks, each one's output refined by its tokens (paper section 3.2):

        S = softmax(f @ T_i^T / sqrt(c))
        f' = f + scale * (W_f (S[:, 1:] @ (W_T T_i[1:] + b_T) + f) + b_f)

    for the patch features f (B, N, c) or (B, H, W, c) of block i; prefix tokens pass unchanged. `W_T`, `W_f` and
    `scale` are shared by all blocks. It takes the place of the list of blocks and is iterated over like that list; the
    refinement is a hook that runs before all others of a block, so that whoever records hidden states sees the refined
    ones.

    [`Factors`] are what that needs of the weights alone.
    - Without gradients the first block computes those of all blocks, and the last one drops them: they outlive no
      forward pass, so that nothing has to notice new weights.
    - With gradients each block computes its own, which gradient checkpointing may repeat. Autograd stores per block:
      one map f (B, P + N, c), S (B, P + N, m), two maps of width r and r + 1, and c^2 + O(r(m + c)) for the factors.

    Args:
        base_layer (`nn.ModuleList`): the L blocks; each returns (B, P + N, c), or (B, H, W, c) without prefix tokens.
        adapter_name, config, hidden_size, num_prefix_tokens, query_dim: see [`update_layer`].

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
    ) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.configs: dict[str, ReinConfig] = {}
        self.rein_tokens_a = nn.ParameterDict()
        self.rein_tokens_b = nn.ParameterDict()
        self.rein_tokens = nn.ParameterDict()
        self.rein_scale = nn.ParameterDict()
        self.rein_token_to_feature = nn.ModuleDict()
        self.rein_delta = nn.ModuleDict()
        self.rein_query_proj = nn.ModuleDict()
        self.rein_query_merge = nn.ModuleDict()
        self.hidden_size = hidden_size
        self.num_prefix_tokens = num_prefix_tokens
        self._active_adapter = adapter_name
        self._disable_adapters = False
        # the factors of all blocks during a forward pass without gradients, and for which block they are meant next
        self._shared: tuple[tuple[str, int, torch.dtype], Factors] | None = None
        self.update_layer(adapter_name, config, query_dim)
        self._hooks = [
            # first among the block's hooks: transformers records hidden states in a later one
            block.register_forward_hook(partial(self._refine_output, index), prepend=True)
            for index, block in enumerate(base_layer)
        ]

    def update_layer(self, adapter_name: str, config: ReinConfig, query_dim: int | None = None) -> None:
        """Add the weights of one more adapter, initialised as in the paper's code.

        Args:
            adapter_name (`str`): name of the adapter.
            config (`ReinConfig`): its configuration.
            query_dim (`int`, *optional*): width q of the object queries, where the tokens are linked to them.

        Raises:
            ValueError: `layers_to_transform` names a block that is not there.
        """
        depth, c, m, q = len(self.base_layer), self.hidden_size, config.num_tokens, query_dim
        layers = config.layers_to_transform
        if layers is not None and not set(layers) <= set(range(depth)):
            raise ValueError(
                f"ReinConfig.layers_to_transform is {list(layers)}; the backbone has blocks 0 to {depth - 1}."
            )
        for name in self.adapter_layer_names:
            # an adapter of this name may be replaced by one of another form, with other tensors
            if adapter_name in (container := getattr(self, name)):
                del container[adapter_name]
        rows = depth if layers is None else len(layers)
        self.configs[adapter_name] = config
        if config.r:
            bound = math.sqrt(6 / (3 * config.patch_size**2 + math.sqrt(c * config.r)))
            self.rein_tokens_a[adapter_name] = nn.Parameter(torch.empty(rows, m, config.r).uniform_(-bound, bound))
            self.rein_tokens_b[adapter_name] = nn.Parameter(torch.empty(rows, config.r, c).uniform_(-bound, bound))
        else:
            bound = math.sqrt(6 / (3 * config.patch_size**2 + c))
            self.rein_tokens[adapter_name] = nn.Parameter(torch.empty(rows, m, c).uniform_(-bound, bound))
        # a new nn.Linear is what the authors use: Kaiming uniform with a = sqrt(5), uniform bias
        self.rein_token_to_feature[adapter_name] = nn.Linear(c, c)
        self.rein_delta[adapter_name] = nn.Linear(c, c)
        if config.zero_init:
            nn.init.zeros_(self.rein_delta[adapter_name].weight)
            nn.init.zeros_(self.rein_delta[adapter_name].bias)
        else:
            self.rein_scale[adapter_name] = nn.Parameter(torch.full((1,), config.init_scale))
        if q is not None:
            self.rein_query_proj[adapter_name] = nn.Linear(c, q)
            self.rein_query_merge[adapter_name] = nn.Linear(3 * q, q)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def tokens(self, adapter_name: str) -> torch.Tensor:
        """Tokens T of all refined blocks, (L, m, c)."""
        if adapter_name in self.rein_tokens:
            return self.rein_tokens[adapter_name]
        return self.rein_tokens_a[adapter_name] @ self.rein_tokens_b[adapter_name]

    def object_queries(self, adapter_name: str) -> torch.Tensor:
        """The tokens as object queries Q (m, q): maximum, mean and last of the projected tokens (section 3.3)."""
        project = self.rein_query_proj[adapter_name]
        if adapter_name in self.rein_tokens:
            projected = project(self.rein_tokens[adapter_name])
        else:
            # (A B) W_Q = A (B W_Q): r rows to project instead of m
            rows = nn.functional.linear(self.rein_tokens_b[adapter_name], project.weight)
            projected = self.rein_tokens_a[adapter_name] @ rows + project.bias
        # interleaved by channel: inputs 3k, 3k + 1, 3k + 2 of W_M are maximum, mean and last of channel k
        summary = torch.stack([projected.max(dim=0).values, projected.mean(dim=0), projected[-1]], dim=-1)
        return self.rein_query_merge[adapter_name](summary.flatten(1))

    def factors(self, adapter_name: str, row: int | slice) -> Factors:
        """What the refinement needs of the weights alone.

        Args:
            adapter_name (`str`): name of the adapter.
            row (`int` or `slice`): for which refined block, or blocks.
        """
        config = self.configs[adapter_name]
        names = ("rein_tokens_a", "rein_tokens_b") if config.r else ("rein_tokens",)
        return Factors.of_weights(
            tokens=tuple(getattr(self, name)[adapter_name][row] for name in names),
            to_feature=self.rein_token_to_feature[adapter_name],
            delta=self.rein_delta[adapter_name],
            scale=None if config.zero_init else self.rein_scale[adapter_name],
            use_softmax=config.use_softmax,
        )

    def refined_blocks(self, adapter_name: str) -> list[int] | range:
        """The blocks that an adapter refines, counted from 0, in the order of its tokens."""
        layers = self.configs[adapter_name].layers_to_transform
        return range(len(self.base_layer)) if layers is None else layers

    def attention(self, adapter_name: str, index: int, output: torch.Tensor) -> torch.Tensor:
        """Attention S of patches to tokens (section 3.2), see [`Factors.attention`].

        Args:
            adapter_name (`str`): name of the adapter.
            index (`int`): a block that it refines, counted from 0.
            output (`torch.Tensor`): what the block gives Rein, (B, P + N, c) or (B, H, W, c).

        Returns:
            (B, N, m) or (B, H, W, m), in the type of the adapter's weights, under autocast too.
        """
        with torch.autocast(output.device.type, enabled=False):
            factors = self.factors(adapter_name, self.refined_blocks(adapter_name).index(index))
            return factors.attention(output[:, self.num_prefix_tokens :].to(factors.weight.dtype))

    def _factors_of_block(self, adapter_name: str, index: int, dtype: torch.dtype) -> Factors:
        """The factors of block `index`; without gradients out of those that the first block computed for all."""
        blocks = self.refined_blocks(adapter_name)
        row = blocks.index(index)
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return self.factors(adapter_name, row).to(dtype)
        shared, self._shared = self._shared, None
        if index == min(blocks):
            factors = self.factors(adapter_name, slice(None)).to(dtype)
        elif shared is not None and shared[0] == (adapter_name, index, dtype):
            factors = shared[1]
        else:  # this block was called out of order, or from another thread
            return self.factors(adapter_name, row).to(dtype)
        later = [block for block in blocks if block > index]
        if later:
            self._shared = (adapter_name, min(later), dtype), factors
        return factors.of_block(row)

    def _refine_output(self, index: int, block: nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor | None:
        """Forward hook of block `index`: its output (B, P + N, c) or (B, H, W, c), with the patches refined."""
        adapter = self.adapter
        if adapter is None or index not in self.refined_blocks(adapter):
            return None
        if getattr(block, "gradient_checkpointing", False) and block.training and torch.is_grad_enabled():
            # transformers checkpoints the block's forward, and hooks run outside of that
            return block._gradient_checkpointing_func(partial(self._refined, adapter, index), output)
        return self._refined(adapter, index, output)

    def _refined(self, adapter: str, index: int, output: torch.Tensor) -> torch.Tensor:
        device, dtype = output.device.type, self.rein_delta[adapter].weight.dtype
        autocast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
        if autocast and dtype != torch.float64:
            dtype = torch.get_autocast_dtype(device)
        # all is cast here once: autocast would cast the features at every use, and autograd store every result
        with torch.autocast(device, enabled=False) if autocast else nullcontext():
            factors = self._factors_of_block(adapter, index, dtype)
            # of the prefix too, which passes nevertheless: the patches alone are not contiguous and would be copied
            delta = factors.refine(self._cast_input_dtype(output, dtype))
            delta[:, : self.num_prefix_tokens] = 0
            return (output + delta).to(output.dtype)

    def unload_and_optionally_merge_module(self, merge, safe_merge, adapter_names) -> nn.ModuleList:
        base_layer = super().unload_and_optionally_merge_module(merge, safe_merge, adapter_names)
        for hook in self._hooks:
            hook.remove()
        return base_layer

    def forward(self, *args, **kwargs):
        raise NotImplementedError("A stack of blocks is iterated over, not called.")

    def __len__(self) -> int:
        return len(self.base_layer)

    def __iter__(self):
        return iter(self.base_layer)

    def __getitem__(self, index):
        return self.base_layer[index]

    def extra_repr(self) -> str:
        return "; ".join(
            f"{name}: {cfg.num_tokens} tokens of rank {cfg.r or 'full'} for {len(self.refined_blocks(name))} blocks"
            for name, cfg in self.configs.items()
        )
