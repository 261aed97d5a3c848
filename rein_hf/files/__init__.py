"""Files on the disk: written atomically; text in UTF-8, and YAML read as plain values."""

from .atomic import atomic_write, sync_folder
from .text import read_text
from .yaml_file import parse_yaml, read_yaml


__all__ = [
    "atomic_write",
    "parse_yaml",
    "read_text",
    "read_yaml",
    "sync_folder",
]
