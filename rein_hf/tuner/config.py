"""Configuration of Rein (CVPR 2024, arXiv 2312.04265)."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from .base_config import BackboneTunerConfig


class ReinPeftType(str, Enum):
    """The value that stands for Rein where peft expects a member of its closed enum `PeftType`."""

    REIN = "REIN"


@dataclass
class ReinConfig(BackboneTunerConfig):
    """
    Configuration of a [`ReinModel`]. A set of learnable tokens refines the features of every layer of a frozen vision
    transformer (paper section 3.2), and the same tokens become the object queries of a Mask2Former (section 3.3): the
    paper's "embrace fewer trainable parameters".

    Notation: L blocks, m tokens per block, r rank, c hidden size of the backbone, q width of the object queries.

    Args:
        r (`int`, *optional*, defaults to 16):
            Rank r of the tokens, T_i = A_i @ B_i with A_i (m, r) and B_i (r, c). `None` or 0: full tokens (m, c).
        num_tokens (`int`, defaults to 100):
            Tokens m per block. With `link_queries` this is also the number of object queries and has to equal the
            model's.
        link_queries (`bool`, defaults to `True`):
            Let the tokens be the object queries. A model without object queries (a bare ViT) is only refined.
        init_scale (`float`, defaults to 1e-3):
            Initial value of the learnable factor of every refinement.
        use_softmax (`bool`, defaults to `True`):
            Divide the similarities by sqrt(c) and take their softmax over the tokens. `False` (ablation): neither.
        zero_init (`bool`, defaults to `False`):
            Initialise W_f and b_f with zeros, and have no scale (ablation).
        patch_size (`int`, defaults to 16):
            Patch size p in the bound of the tokens' uniform initialisation. Nothing else depends on it.
        layers_to_transform (`int` or `list[int]`, *optional*):
            Which blocks to refine, counted from 0, in ascending order; the count goes on from stage to stage. All
            blocks by default.
        target_modules (`list[str]`, *optional*):
            Name of the list of blocks, or the end of its name. By default that of the architecture, if it is one of
            `tuner.architectures.ARCHITECTURES`.
        modules_to_save (`list[str]`, *optional*):
            Further modules to train and to save with the adapter, by the ends of their names, e.g.
            `rein_hf.HEAD_MODULES`.
        num_prefix_tokens (`int`, *optional*):
            Number of tokens before the patches in a block's output (class token and registers), which pass unchanged.
            By default that of the architecture and the model's configuration; of a known one no other is accepted.
        hidden_size, num_hidden_layers (`int` or `list[int]`, *optional*):
            c and L of the backbone; lists with a number for each stage, if its blocks are in stages of different
            widths. Recorded when the adapter is made and checked when it is loaded.
        base_config (`dict`, *optional*):
            Configuration of the whole model around the backbone, recorded when the adapter is made, so that
            [`rein_hf.from_pretrained`] can rebuild that model from a pretrained backbone and this adapter alone.

    Raises:
        ValueError: a value is out of its range; the message names the field.

    Example:

    ```py
    >>> from transformers import Dinov2Config, Dinov2Model
    >>> from peft import get_peft_model
    >>> from rein_hf import ReinConfig

    >>> vit = Dinov2Model(Dinov2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, patch_size=16))
    >>> model = get_peft_model(vit, ReinConfig(r=4, num_tokens=10))
    >>> model.print_trainable_parameters()
    trainable params: 2,449 || all params: 59,025 || trainable%: 4.1491

    ```
    """

    r: int | None = field(default=16, metadata={"help": "Rank of the tokens; None or 0 for full tokens."})
    num_tokens: int = field(default=100, metadata={"help": "Tokens per block (= object queries where linked)."})
    link_queries: bool = field(default=True, metadata={"help": "Let the tokens be the object queries."})
    init_scale: float = field(default=1e-3, metadata={"help": "Initial factor of every refinement."})
    use_softmax: bool = field(default=True, metadata={"help": "Softmax over the tokens; False is an ablation."})
    zero_init: bool = field(default=False, metadata={"help": "Start at zero, without a scale; an ablation."})
    patch_size: int = field(default=16, metadata={"help": "Patch size in the bound of the tokens' initialisation."})
    num_prefix_tokens: int | None = field(default=None, metadata={"help": "Tokens before the patches."})

    def __post_init__(self):
        super().__post_init__()
        self.peft_type = ReinPeftType.REIN
        if self.r is not None and self.r < 0:
            raise ValueError(f"ReinConfig.r is {self.r}; expected a rank of at least 1, or None or 0 for full tokens.")
        if self.num_tokens < 2:
            raise ValueError(
                f"ReinConfig.num_tokens is {self.num_tokens}; expected at least 2, since the first token is a sink."
            )
