"""Files of weights: those that hold none, and weights that no model can compute with."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import torch


POINTER = b"version https://git-lfs"


def check_no_pointer(*files: Path) -> None:
    """
    Raises:
        ValueError: git has checked a file out without git-lfs, as the few lines that say where its content is.
    """
    for path in files:
        with path.open("rb") as file:
            if file.read(len(POINTER)) == POINTER:
                raise ValueError(
                    f"{path} is a pointer of git-lfs, expected the weights that it stands for: run `git lfs pull` in "
                    "its repository."
                )


def check_finite(tensors: Iterable[tuple[str, torch.Tensor]], source: str | os.PathLike) -> None:
    """
    Args:
        tensors: by their names. Those without memory (meta) are passed over.
        source: the file, folder or Hub id that they come from.

    Raises:
        ValueError: one holds NaN or infinities, which would make every pixel class 0.
    """
    for name, tensor in tensors:
        if tensor.is_floating_point() and not tensor.is_meta and not _is_finite(tensor):
            raise ValueError(
                f"{source}: {name} holds {int((~tensor.isfinite()).sum())} of {tensor.numel()} values that are NaN or "
                "infinite; expected finite numbers. The run that wrote it has diverged, or the file is damaged: take "
                "another one."
            )


def _is_finite(tensor: torch.Tensor) -> bool:
    # one number tells it nearly always, without a copy: a finite sum has finite terms alone
    total = tensor.sum(dtype=torch.promote_types(tensor.dtype, torch.float32))
    return bool(total.isfinite()) or bool(tensor.isfinite().all())
