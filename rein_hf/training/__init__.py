"""Training: recipe files, the Trainer, the optimizer's parameter groups, checkpoints that survive interruptions."""

from .compiling import compile_before_loss
from .lost_connection import explain_lost_connection
from .optim import param_groups, use_fused_optimizer
from .optimizer_keys import OptimizerArguments
from .progress import CURVES, PICTURES, check_trackers, draw_curves
from .recipe import FOLLOW_A_SCORE, TUNINGS, RecipeArguments, config_fixed_on_resume, read_recipe, scores_decide
from .recipe_defaults import VALIDATION
from .recipe_sections import LORA, tuning_config
from .saving import FINAL_WEIGHTS
from .trainer import SegmentationTrainer


__all__ = [
    "CURVES",
    "FINAL_WEIGHTS",
    "FOLLOW_A_SCORE",
    "LORA",
    "OptimizerArguments",
    "PICTURES",
    "RecipeArguments",
    "SegmentationTrainer",
    "TUNINGS",
    "VALIDATION",
    "check_trackers",
    "compile_before_loss",
    "config_fixed_on_resume",
    "draw_curves",
    "explain_lost_connection",
    "param_groups",
    "read_recipe",
    "scores_decide",
    "tuning_config",
    "use_fused_optimizer",
]
