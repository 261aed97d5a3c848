"""The checkpoint files of the paper's authors, and SoMA's: names and sizes of their tensors."""

from .names import BACKBONE_NAMES, REIN_AND_HEAD_NAMES, Tensors, compare_tensors, from_reference, to_reference
from .sizes import default_out_indices, head_sizes, rein_sizes, vit_config
from .soma import (
    SOMA_BACKBONE_NAMES,
    SOMA_NAMES,
    from_plain_lora,
    is_soma,
    soma_sizes,
    split_soma,
    to_plain_lora,
)


__all__ = [
    "BACKBONE_NAMES",
    "REIN_AND_HEAD_NAMES",
    "SOMA_BACKBONE_NAMES",
    "SOMA_NAMES",
    "Tensors",
    "compare_tensors",
    "default_out_indices",
    "from_plain_lora",
    "from_reference",
    "head_sizes",
    "is_soma",
    "rein_sizes",
    "soma_sizes",
    "split_soma",
    "to_plain_lora",
    "to_reference",
    "vit_config",
]
