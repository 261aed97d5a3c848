"""Configuration of visual prompt tuning (ECCV 2022, arXiv 2203.12119), the deep one."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from ..tuner import BackboneTunerConfig


class VPTPeftType(str, Enum):
    """The value that stands for VPT where peft expects a member of its closed enum `PeftType`."""

    VPT = "VPT"


@dataclass
class VPTConfig(BackboneTunerConfig):
    """
    Configuration of a [`VPTModel`]: learnable tokens, called prompts, among the tokens that every block of a frozen
    vision transformer sees ("VPT-deep"). With the defaults it is what the paper of Rein compares with, 3.69M
    parameters in a ViT-L.

    Args:
        num_prompts (`int`, defaults to 150):
            Prompts m per block.
        patch_size (`int`, defaults to 16):
            Patch size p in the bound of the prompts' uniform initialisation. Nothing else depends on it.
        num_prefix_tokens (`int`, *optional*):
            Number of tokens before the patches in a block's input (class token and registers), behind which the
            prompts are put. By default that of the architecture and the model's configuration; of a known one no other
            is accepted.
        layers_to_transform, target_modules, modules_to_save, hidden_size, num_hidden_layers, base_config:
            See [`BackboneTunerConfig`]. What is replaced is the list of blocks.

    Raises:
        ValueError: a value is out of its range; the message names the field.

    Example:

    ```py
    >>> from transformers import Dinov2Config, Dinov2Model
    >>> from peft import get_peft_model
    >>> from rein_hf import VPTConfig

    >>> vit = Dinov2Model(Dinov2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, patch_size=16))
    >>> get_peft_model(vit, VPTConfig(num_prompts=5)).get_nb_trainable_parameters()[0]
    320

    ```
    """

    num_prompts: int = field(default=150, metadata={"help": "Prompts per block."})
    patch_size: int = field(default=16, metadata={"help": "Patch size in the bound of the prompts' initialisation."})
    num_prefix_tokens: int | None = field(default=None, metadata={"help": "Tokens before the patches."})

    def __post_init__(self):
        super().__post_init__()
        self.peft_type = VPTPeftType.VPT
        if self.num_prompts < 1:
            raise ValueError(f"VPTConfig.num_prompts is {self.num_prompts}; expected at least 1.")
