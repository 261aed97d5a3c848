"""Configuration of SoMA (CVPR 2025)."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from enum import Enum
from typing import Any

from peft import LoraConfig, PeftType


class SomaPeftType(str, Enum):
    """The value that stands for SoMA in training, where peft expects a member of its closed enum `PeftType`."""

    SOMA = "SOMA"


# Fields of LoraConfig that SoMA leaves free; the others have to be as in a plain LoRA.
FREE = frozenset(
    "peft_type auto_mapping peft_version base_model_name_or_path revision task_type inference_mode r lora_alpha "
    "target_modules exclude_modules modules_to_save bias init_lora_weights base_config first_block".split()
)


@dataclass
class SomaConfig(LoraConfig):
    """
    Configuration of a [`SomaModel`]: singular value decomposed minor components adaptation. A weight W = U S V^T is
    split into its r smallest singular components B0 A0, with B0 = U_r sqrt(S_r) and A0 = sqrt(S_r) V_r^T, and the
    rest, which is frozen. B and A start as B0 and A0 and are trained, and so are the biases of these layers.

    What is trained is W - B0 A0 + B A, so that the change of W is a plain LoRA of rank 2r: `[B, -B0] [A; A0]`. As that
    it is saved, and peft alone loads it: the saved configuration is a `LoraConfig` with twice this rank.

    Args:
        r (`int`, defaults to 16): number of singular components r.
        first_block (`int`, *optional*): first block that is tuned, counted from 1. By default the first third of the
            blocks is left alone: 9 of 24, 5 of 12, 14 of 40.
        target_modules (*optional*): as in `LoraConfig`; by default the linear layers of attention and MLP in the
            blocks from `first_block` on. A matrix that holds queries, keys and values together is decomposed as one.
        bias (`str`, defaults to "lora_only"): which biases are trained.
        modules_to_save, base_model_name_or_path, ...: see `LoraConfig`. Other fields of it have no place here.

    Raises:
        ValueError: a field of `LoraConfig` has a value that SoMA has no place for; r or first_block is below 1; both
            first_block and target_modules are given.

    Example:

    ```py
    >>> from rein_hf import SomaConfig, add_adapter, build_segmenter
    >>> model = build_segmenter("recipes/demo/vit", {0: "road", 1: "sky"}, image_size=256, num_queries=10)
    >>> tuned = add_adapter(model, SomaConfig(r=4))
    >>> tuned.peft_config["default"].to_dict()["r"]  # as it is saved
    8

    ```
    """

    r: int = field(default=16, metadata={"help": "Number of singular components, the smallest of each weight."})
    lora_alpha: int | None = field(default=None, metadata={"help": "r, since the scaling of SoMA is 1."})
    bias: str = field(default="lora_only", metadata={"help": "Which biases are trained."})
    first_block: int | None = field(
        default=None, metadata={"help": "First block that is tuned, from 1; by default a third is left alone."}
    )

    def __post_init__(self):
        plain = LoraConfig()
        for name in (known.name for known in fields(LoraConfig) if known.name not in FREE):
            if getattr(self, name) != getattr(plain, name):
                raise ValueError(
                    f"SomaConfig.{name} is {getattr(self, name)!r}; expected {getattr(plain, name)!r}, since SoMA "
                    "starts from the weights alone."
                )
        if self.r < 1 or (self.first_block is not None and self.first_block < 1):
            raise ValueError(
                f"SomaConfig has r {self.r} and first_block {self.first_block}; expected numbers of at least 1."
            )
        if self.first_block is not None and self.target_modules is not None:
            raise ValueError("SomaConfig.first_block has no effect: target_modules says what is tuned.")
        if self.lora_alpha not in (None, self.r):
            raise ValueError(f"SomaConfig.lora_alpha is {self.lora_alpha}; expected r, {self.r}: the scaling is 1.")
        self.lora_alpha = self.r
        super().__post_init__()
        self.peft_type = SomaPeftType.SOMA

    def to_dict(self) -> dict[str, Any]:
        """What is saved: the configuration of the plain LoRA of rank 2r that the weights are saved as."""
        values = super().to_dict()
        del values["first_block"]
        return {
            **values,
            "peft_type": PeftType.LORA,
            "r": 2 * self.r,
            "lora_alpha": 2 * self.r,
            "init_lora_weights": True,
        }
