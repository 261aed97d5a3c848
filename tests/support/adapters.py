"""What tests do to the files of saved models: other tensors, other configurations."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


def change_tensors(
    folder: Path, change: Callable[[dict[str, torch.Tensor]], object], name: str = "adapter_model.safetensors"
) -> None:
    """Calls `change` with the tensors of a file and writes what it made of them."""
    tensors = load_file(folder / name)
    change(tensors)
    save_file(tensors, folder / name, metadata={"format": "pt"})


def change_config(folder: Path, *keys: str, value) -> None:
    """Sets a value in adapter_config.json; the keys lead to it."""
    path = folder / "adapter_config.json"
    config = inner = json.loads(path.read_text(encoding="utf-8"))
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    path.write_text(json.dumps(config), encoding="utf-8")
