"""Errors that name the adapter whose files cause them, or that is not there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError


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


@contextmanager
def say_no_such_folder(pretrained: str | os.PathLike) -> Iterator[None]:
    """Says that there is no such folder where transformers' message speaks of the Hub alone, of which two do not even
    say what was looked for.

    Raises:
        OSError: for that of transformers.
    """
    try:
        yield
    except OSError as error:
        if isinstance(error.__cause__, HFValidationError):
            raise OSError(
                f"{pretrained}: no such folder here, and no Hub id, which is of the form NAMESPACE/NAME."
            ) from error
        if isinstance(error.__cause__, LocalEntryNotFoundError):
            raise OSError(
                f"{pretrained}: no such folder here, and no copy of a repository of this name in the cache. {error}"
            ) from error
        raise
