"""Rein as a PEFT method, and what it shares with the other methods of this library. Importing this package registers
Rein with peft.

peft has no plug-in mechanism for methods outside its tree (`register_peft_method` accepts members of its own enum
only), so the three tables that method would fill are filled here.
"""

from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING

from .base import NO_DATA_PARALLEL, BackboneTunerLayer, fix_weights, is_autocast_enabled, without_autocast
from .base_config import BackboneTunerConfig
from .base_model import BackboneTuner
from .block_list import BlockListLayer
from .config import ReinConfig, ReinPeftType
from .layer import ReinLayer
from .model import ReinModel
from .queries import ReinQueries, query_weights
from .saved_modules import check_modules_to_save
from .stages import ReinStages


__all__ = [
    "NO_DATA_PARALLEL",
    "BackboneTuner",
    "BackboneTunerConfig",
    "BackboneTunerLayer",
    "BlockListLayer",
    "ReinConfig",
    "ReinLayer",
    "ReinModel",
    "ReinQueries",
    "ReinStages",
    "check_modules_to_save",
    "fix_weights",
    "is_autocast_enabled",
    "query_weights",
    "without_autocast",
]

PEFT_TYPE_TO_CONFIG_MAPPING[ReinPeftType.REIN] = ReinConfig
PEFT_TYPE_TO_TUNER_MAPPING[ReinPeftType.REIN] = ReinModel
PEFT_TYPE_TO_PREFIX_MAPPING[ReinPeftType.REIN] = ReinModel.prefix
