"""Files on the disk: written atomically; text in UTF-8, YAML read as plain values, weights that are numbers."""

from .atomic import atomic_write, sync_folder
from .text import read_text, suggestion
from .weights import check_finite, check_no_pointer
from .yaml_file import parse_yaml, read_yaml


__all__ = [
    "atomic_write",
    "check_finite",
    "check_no_pointer",
    "parse_yaml",
    "read_text",
    "read_yaml",
    "suggestion",
    "sync_folder",
]
