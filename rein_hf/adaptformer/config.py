"""Configuration of AdaptFormer (NeurIPS 2022, arXiv 2205.13535)."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from ..tuner import BackboneTunerConfig


class AdaptFormerPeftType(str, Enum):
    """The value that stands for AdaptFormer where peft expects a member of its closed enum `PeftType`."""

    ADAPTFORMER = "ADAPTFORMER"


@dataclass
class AdaptFormerConfig(BackboneTunerConfig):
    """
    Configuration of an [`AdaptFormerModel`]: a bottleneck beside the MLP of every block of a frozen vision
    transformer. With the defaults it is what the paper of Rein compares with, 3.17M parameters in a ViT-L.

    Args:
        bottleneck_size (`int`, defaults to 64):
            Width d of the bottleneck.
        scale (`float`, defaults to 0.1):
            Factor s of what the bottleneck adds to the residual stream. It is not trained.
        layers_to_transform, modules_to_save, hidden_size, num_hidden_layers, base_config:
            See [`BackboneTunerConfig`].
        target_modules (`list[str]` or `str`, *optional*):
            Names of the MLPs of all blocks, or the ends of their names, or a regular expression that matches them. By
            default those of the architecture, if it is one of `tuner.architectures.ARCHITECTURES`.

    Raises:
        ValueError: a value is out of its range; the message names the field.

    Example:

    ```py
    >>> from transformers import Dinov2Config, Dinov2Model
    >>> from peft import get_peft_model
    >>> from rein_hf import AdaptFormerConfig

    >>> vit = Dinov2Model(Dinov2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, patch_size=16))
    >>> get_peft_model(vit, AdaptFormerConfig(bottleneck_size=4)).get_nb_trainable_parameters()[0]
    584

    ```
    """

    bottleneck_size: int = field(default=64, metadata={"help": "Width of the bottleneck beside every MLP."})
    scale: float = field(default=0.1, metadata={"help": "Factor of what the bottleneck adds."})

    def __post_init__(self):
        super().__post_init__()
        self.peft_type = AdaptFormerPeftType.ADAPTFORMER
        if self.bottleneck_size < 1:
            raise ValueError(
                f"AdaptFormerConfig.bottleneck_size is {self.bottleneck_size}; expected a width of at least 1."
            )
        if self.scale == 0:
            raise ValueError("AdaptFormerConfig.scale is 0, with which nothing is added; expected another factor.")
