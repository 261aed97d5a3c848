"""A recipe trained: its file, the Trainer, the optimizer's parameter groups, and checkpoints that survive
interruptions."""

from .optim import param_groups
from .recipe import TUNINGS, RecipeArguments, config_fixed_on_resume, read_recipe
from .trainer import FINAL_WEIGHTS, SegmentationTrainer


__all__ = [
    "FINAL_WEIGHTS",
    "RecipeArguments",
    "SegmentationTrainer",
    "TUNINGS",
    "config_fixed_on_resume",
    "param_groups",
    "read_recipe",
]
