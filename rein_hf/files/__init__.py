"""Files on the disk: written atomically, and YAML read as plain values."""

from .atomic import atomic_write, sync_folder
from .yaml_file import parse_yaml, read_yaml


__all__ = [
    "atomic_write",
    "parse_yaml",
    "read_yaml",
    "sync_folder",
]
