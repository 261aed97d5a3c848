"""An adapter on the Hub and on the disk: downloaded, checked, described, put onto its base model; its model card."""

from .base_config import read_adapter_config, with_base_config
from .card import Facts, read_facts, render_card
from .description import Description, describe
from .download import download_adapter, find_backbone
from .peft_model import SegmenterPeftModel, load_adapter_onto, name_in_errors
from .space import push_space, render_space


__all__ = [
    "Description",
    "Facts",
    "describe",
    "SegmenterPeftModel",
    "download_adapter",
    "find_backbone",
    "load_adapter_onto",
    "name_in_errors",
    "push_space",
    "read_adapter_config",
    "read_facts",
    "render_card",
    "render_space",
    "with_base_config",
]
