"""AdaptFormer as a PEFT method. Importing this package registers it with peft; see [`rein_hf.tuner`]."""

from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING

from .config import AdaptFormerConfig, AdaptFormerPeftType
from .layer import AdaptFormerLayer
from .model import AdaptFormerModel


__all__ = ["AdaptFormerConfig", "AdaptFormerLayer", "AdaptFormerModel"]

PEFT_TYPE_TO_CONFIG_MAPPING[AdaptFormerPeftType.ADAPTFORMER] = AdaptFormerConfig
PEFT_TYPE_TO_TUNER_MAPPING[AdaptFormerPeftType.ADAPTFORMER] = AdaptFormerModel
PEFT_TYPE_TO_PREFIX_MAPPING[AdaptFormerPeftType.ADAPTFORMER] = AdaptFormerModel.prefix
