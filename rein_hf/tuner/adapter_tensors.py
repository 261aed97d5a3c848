"""The tensors that a file of an adapter must have."""

from __future__ import annotations

from collections.abc import Iterable

from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from .base import BackboneTunerLayer


PEFT_PREFIX = "base_model.model."


def check_tensors(model: nn.Module, adapter_name: str, found: Iterable[str]) -> None:
    """Refuse a state dict that is not exactly the adapter.

    peft only warns of tensors that are missing, which keep their random values, and says nothing of unknown ones.

    Args:
        model: a `PeftModel`, or a base model that an adapter was injected into.
        adapter_name (`str`): name of the adapter in the model.
        found: names of tensors, as in the model's state dict.

    Raises:
        ValueError: tensors are missing or unknown; the message names them.
    """
    expected = {_plain(f"{name}.{tensor}") for name, tensor in _adapter_tensors(model, adapter_name)}
    found = {_plain(name) for name in found}
    if found != expected:
        missing, unknown = (
            sorted(PEFT_PREFIX + _as_saved(name, adapter_name) for name in names)
            for names in (expected - found, found - expected)
        )
        raise ValueError(
            f"The tensors given for adapter {adapter_name!r} are not those of its configuration: "
            f"{len(missing)} missing {missing[:3]}, {len(unknown)} unknown {unknown[:3]}. The file "
            "(adapter_model.safetensors) is damaged, or belongs to another adapter_config.json or another base model."
        )


def _adapter_tensors(model: nn.Module, adapter_name: str) -> Iterable[tuple[str, str]]:
    """Name of a module and of a tensor in it, for each tensor of an adapter: its method's and `modules_to_save`."""
    for name, module in model.named_modules():
        if isinstance(module, BackboneTunerLayer):
            yield from ((name, tensor) for tensor, _ in module.named_tensors(adapter_name))
        elif isinstance(module, AuxiliaryTrainingWrapper):
            yield from ((name, tensor) for tensor in module.adapter_state_dict_load_map(adapter_name).values())


def _plain(name: str) -> str:
    """A tensor's name without what wrappers of the whole model put in."""
    return name.replace("_fsdp_wrapped_module.", "").removeprefix(PEFT_PREFIX)


def _as_saved(name: str, adapter_name: str) -> str:
    """A tensor's name as it is in a file, where the adapter has no name."""
    return ".".join(part for part in name.split(".") if part not in ("modules_to_save", adapter_name))
