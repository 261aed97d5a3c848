"""Visual prompt tuning as a PEFT method. Importing this package registers it with peft; see [`rein_hf.tuner`]."""

from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING

from .config import VPTConfig, VPTPeftType
from .layer import VPTLayer
from .model import VPTModel


__all__ = ["VPTConfig", "VPTLayer", "VPTModel"]

PEFT_TYPE_TO_CONFIG_MAPPING[VPTPeftType.VPT] = VPTConfig
PEFT_TYPE_TO_TUNER_MAPPING[VPTPeftType.VPT] = VPTModel
PEFT_TYPE_TO_PREFIX_MAPPING[VPTPeftType.VPT] = VPTModel.prefix
