"""SoMA as a PEFT method: a LoRA that starts as the smallest singular components of each weight, and is saved as a
plain LoRA. Importing this package registers it with peft."""

from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING

from .config import SomaConfig, SomaPeftType
from .layer import SomaLinear, minor_components
from .model import SomaModel, default_first_block, target_pattern


__all__ = ["SomaConfig", "SomaLinear", "SomaModel", "default_first_block", "minor_components", "target_pattern"]

PEFT_TYPE_TO_CONFIG_MAPPING[SomaPeftType.SOMA] = SomaConfig
PEFT_TYPE_TO_TUNER_MAPPING[SomaPeftType.SOMA] = SomaModel
PEFT_TYPE_TO_PREFIX_MAPPING[SomaPeftType.SOMA] = SomaModel.prefix
