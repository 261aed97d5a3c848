"""The checkpoint files of the paper's authors: names and sizes of their tensors."""

from .names import BACKBONE_NAMES, REIN_AND_HEAD_NAMES, Tensors, compare_tensors, from_reference, to_reference
from .sizes import default_out_indices, head_sizes, rein_sizes, vit_config


__all__ = [
    "BACKBONE_NAMES",
    "REIN_AND_HEAD_NAMES",
    "Tensors",
    "compare_tensors",
    "default_out_indices",
    "from_reference",
    "head_sizes",
    "rein_sizes",
    "to_reference",
    "vit_config",
]
