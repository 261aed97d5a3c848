"""An adapter on the Hub and on the disk: downloaded, checked, described, put onto its base model; its model card."""

from .backbone_path import is_hub_id, is_lost_path, write_relative_backbone
from .base_config import read_adapter_config, with_base_config
from .card import render_card
from .description import Description, describe
from .download import download_adapter, find_backbone
from .errors import name_in_errors, say_no_such_folder
from .facts import Facts, read_facts
from .own_card import known_facts, write_own_card
from .peft_model import SegmenterPeftModel, load_adapter_onto
from .space import push_space, render_space


__all__ = [
    "Description",
    "Facts",
    "SegmenterPeftModel",
    "describe",
    "download_adapter",
    "find_backbone",
    "is_hub_id",
    "is_lost_path",
    "known_facts",
    "load_adapter_onto",
    "name_in_errors",
    "push_space",
    "read_adapter_config",
    "read_facts",
    "render_card",
    "render_space",
    "say_no_such_folder",
    "with_base_config",
    "write_own_card",
    "write_relative_backbone",
]
