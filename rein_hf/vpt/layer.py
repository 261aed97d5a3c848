"""VPT's layer: a list of blocks that see prompts among their tokens.

Notation: B batch, N patches, P prefix tokens, c hidden size, L blocks, m prompts.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from ..tuner import BlockListLayer
from ..tuner.base import prepend_forward_hook, with_weights
from .config import VPTConfig
from .hooks import CleanStem, InsertPrompts, RemovePrompts


class VPTLayer(BlockListLayer):
    """
    A list of transformer blocks, each of which sees prompts of its own:

        (B, P + N, c)  ->  (B, P + m + N, c)  ->  block  ->  (B, P + m + N, c)  ->  (B, P + N, c)

    The layer takes the place of the list of blocks and is iterated over like that list. Forward hooks of each block
    put the prompts behind the prefix tokens before it, and take them away after it, before all other hooks, so that
    whoever records hidden states sees none. Rotary positions of transformers belong to the last N tokens, and
    learned ones are added before the blocks: prompts have no position.

    Args:
        base_layer (`nn.ModuleList`): the L blocks; each takes and returns (B, P + N, c).
        adapter_name, config: as of [`VPTLayer.update_layer`].
        hidden_size (`int`): hidden size c of the blocks.
        num_prefix_tokens (`int`): number P of tokens before the patches.

    Raises:
        ValueError: in the forward pass: a replica of `torch.nn.DataParallel`; weights never loaded; other tokens than
            (B, P + N, c), or an attention mask of another size.

    Adapter tensors, by name: `vpt_prompts` (L, m, c).

    Example:

    ```py
    >>> import torch
    >>> from rein_hf import VPTConfig, VPTLayer

    >>> blocks, tokens = torch.nn.ModuleList([torch.nn.Softmax(dim=1)]), torch.ones(1, 1 + 6, 32)
    >>> config = VPTConfig(num_prompts=4)
    >>> blocks[0].register_parameter("weight", torch.nn.Parameter(torch.ones(1)))
    >>> layer = VPTLayer(blocks, "default", config, hidden_size=32, num_prefix_tokens=1)
    >>> layer[0](tokens).shape, bool((layer[0](tokens).sum(1) < 0.9).all())
    (torch.Size([1, 7, 32]), True)

    ```
    """

    adapter_layer_names = ("vpt_prompts",)
    method = "VPT"
    not_mergeable = (
        "VPT cannot be merged into the backbone: its prompts are tokens that blocks attend to, so no weight of the "
        "backbone can stand for them. Use unload() to get the backbone back."
    )

    def __init__(
        self,
        base_layer: nn.ModuleList,
        adapter_name: str,
        config: VPTConfig,
        hidden_size: int,
        num_prefix_tokens: int,
    ) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.hidden_size = hidden_size
        self.num_prefix_tokens = num_prefix_tokens
        self.vpt_prompts = nn.ParameterDict()
        self._set_up(adapter_name)
        self.update_layer(adapter_name, config)
        self._hooks = []
        for index, block in enumerate(base_layer):
            insert, remove = InsertPrompts(self, index), RemovePrompts(self, index)
            # outermost: before all pre-hooks the tokens of the model, after all others those with prompts
            self._hooks.append(block.register_forward_pre_hook(insert, with_kwargs=True))
            self._hooks.append(prepend_forward_hook(block, remove))

    def update_layer(self, adapter_name: str, config: VPTConfig) -> None:
        """Add one more adapter, with new weights, uniform in +-sqrt(6 / (3 p^2 + c)). One of this name is replaced.

        Args:
            adapter_name (`str`): name of the adapter.
            config ([`VPTConfig`]): its configuration.

        Raises:
            ValueError: `layers_to_transform` names a block that is not there.
        """
        config.check_blocks(len(self.base_layer))
        bound = math.sqrt(6 / (3 * config.patch_size**2 + self.hidden_size))
        shape = (len(config.changed_blocks(len(self.base_layer))), config.num_prompts, self.hidden_size)
        self.vpt_prompts[adapter_name] = nn.Parameter(torch.empty(shape).uniform_(-bound, bound))
        self.configs[adapter_name] = config
        self._finish_update(adapter_name)

    def watch_stem(self, encoder: nn.Module) -> None:
        """Take the prompts away from the first hidden state, that before the blocks, too. transformers records it as
        the first block's input, where the prompts are in already.

        Args:
            encoder (`nn.Module`): the vision transformer around these blocks, which returns the hidden states.
        """
        self._hooks.append(prepend_forward_hook(encoder, CleanStem(self)))

    def number_of_prompts(self, index: int) -> int:
        """Number of prompts m that the active adapter has for a block, counted from 0; 0 if it has none."""
        adapter = self.adapter
        if adapter is None or index not in self.configs[adapter].changed_blocks(len(self.base_layer)):
            return 0
        return self.configs[adapter].num_prompts

    def insert(self, index: int, tokens: torch.Tensor) -> torch.Tensor:
        """The tokens (B, P + N, c) of block `index` with its prompts among them, (B, P + m + N, c)."""
        adapter = self.adapter
        self.check_prefix(tokens)
        row = list(self.configs[adapter].changed_blocks(len(self.base_layer))).index(index)
        with with_weights(self.vpt_prompts):
            prompts = self.vpt_prompts[adapter][row]
            if prompts.dtype != tokens.dtype and not self.cast_input_dtype_enabled:
                raise ValueError(
                    f"The tokens are {tokens.dtype} and VPT's prompts {prompts.dtype}, and "
                    "disable_input_dtype_casting forbids to cast. Make both of one type, or leave the casting on."
                )
            prompts = prompts.to(tokens.device, tokens.dtype).expand(len(tokens), -1, -1)
        return torch.cat([tokens[:, : self.num_prefix_tokens], prompts, tokens[:, self.num_prefix_tokens :]], dim=1)

    def extend_mask(self, index: int, length: int, mask: torch.Tensor) -> torch.Tensor:
        """An attention mask for `length` tokens of block `index`, for those with its prompts: all tokens see the
        prompts, and these see what the first token sees.

        Args:
            index (`int`): number of the block.
            length (`int`): number of tokens P + N.
            mask (`torch.Tensor`): (..., P + N) of keys, or (B, heads, 1 or P + N, P + N) of queries and keys; 1 or
                `True` where a key is seen, or what is added to the attention's logits.

        Raises:
            ValueError: it has another shape.
        """
        if (
            mask.dim() not in (2, 4)
            or mask.shape[-1] != length
            or mask.dim() == 4
            and mask.shape[2] not in (1, length)
        ):
            raise ValueError(
                f"Block {index} is called with {length} tokens and an attention mask of the shape "
                f"{tuple(mask.shape)}, in which VPT's prompts have no place. Leave the mask out, or use Rein, "
                "AdaptFormer or LoRA."
            )
        number, prefix = self.number_of_prompts(index), self.num_prefix_tokens
        seen = (mask.new_zeros if mask.is_floating_point() else mask.new_ones)((*mask.shape[:-1], number))
        mask = torch.cat([mask[..., :prefix], seen, mask[..., prefix:]], dim=-1)
        if mask.dim() == 2 or mask.shape[2] == 1:
            return mask
        rows = mask[:, :, :1].expand(-1, -1, number, -1)
        return torch.cat([mask[:, :, :prefix], rows, mask[:, :, prefix:]], dim=2)

    def remove(self, number: int, tokens: torch.Tensor) -> torch.Tensor:
        """The tokens (B, P + m + N, c) without `number` prompts, (B, P + N, c)."""
        patches = tokens[:, self.num_prefix_tokens + number :]
        if self.num_prefix_tokens == 0:
            return patches.contiguous()
        return torch.cat([tokens[:, : self.num_prefix_tokens], patches], dim=1)

    def extra_repr(self) -> str:
        return "; ".join(
            f"{name}: {config.num_prompts} prompts for {len(config.changed_blocks(len(self.base_layer)))} blocks"
            for name, config in self.configs.items()
        )
