"""Errors that name the adapter whose files cause them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def name_in_errors(pretrained: str | os.PathLike) -> Iterator[None]:
    """Names the adapter or model in every error that its files cause.

    Raises:
        ValueError: for errors of all other kinds than those of files, networks and memory.
    """
    try:
        yield
    except (OSError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # a configuration with values of a wrong kind ends in any of a dozen types
        if isinstance(error, ValueError) and str(pretrained) in str(error):
            raise
        kind = "" if isinstance(error, ValueError) else f" ({type(error).__name__})"
        raise ValueError(f"{pretrained} cannot be loaded{kind}: {error}") from error
