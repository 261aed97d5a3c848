"""An adapter put onto its base: whole, or an error that names it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import PeftConfig, PeftModel, get_peft_model_state_dict
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors import safe_open


def load_adapter_onto(base: torch.nn.Module, folder: Path, config: PeftConfig) -> PeftModel:
    """The base with the adapter of a folder. peft itself only warns of tensors that are missing and leaves them as
    they were drawn; it says nothing of tensors that it does not know.

    Raises:
        ValueError: the folder lacks a tensor, or has one that this model has no place for.
        RuntimeError: a tensor is of another shape.
    """
    with safe_open(folder / SAFETENSORS_WEIGHTS_NAME, "pt") as file:
        found = set(file.keys())
    try:
        model = PeftModel.from_pretrained(base, str(folder), config=config)
    except KeyError as error:  # how peft misses a tensor of the head
        raise ValueError(f"{folder / SAFETENSORS_WEIGHTS_NAME} lacks {error}.") from error
    expected = get_peft_model_state_dict(model, save_embedding_layers=False).keys()
    if found != expected:
        raise ValueError(
            f"{folder / SAFETENSORS_WEIGHTS_NAME} is not the adapter that its configuration describes: missing "
            f"{sorted(expected - found)[:3]}, unknown {sorted(found - expected)[:3]}."
        )
    return model


@contextmanager
def name_in_errors(pretrained: str | os.PathLike) -> Iterator[None]:
    """Names the adapter in every error that its files cause.

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
        raise ValueError(f"{pretrained} cannot be loaded ({type(error).__name__}): {error}") from error
