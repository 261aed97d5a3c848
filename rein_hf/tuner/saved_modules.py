"""What `modules_to_save` of an adapter names in a model, checked before the model is changed."""

from __future__ import annotations

import copy
from itertools import permutations

from peft import PeftConfig
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from torch import nn

from .architectures import find_vision_encoder
from .base_model import BackboneTuner


def check_modules_to_save(config: PeftConfig, model: nn.Module) -> None:
    """Refuses names of modules with which peft trains something else than is asked for, or saves what it cannot load.

    A module may lie in a block that an adapter tunes, as the norms do: it is trained beside the adapter.

    Args:
        config: of an adapter of any method, complete with the names of the head's modules.
        model: what the adapter is to be put into.

    Raises:
        ValueError: a name is that of no module; of one that lies in another that is saved; of one that the method
            replaces by a layer of its own, or around such a one; or of one that it does not name once its layers are
            there. The message says which.
    """
    names = [name for name, _ in model.named_modules(remove_duplicate=False) if name]
    argument, saved = f"{type(config).__name__}.modules_to_save", {}
    for end in config.modules_to_save or ():
        found = [name for name in names if name.endswith(end)]  # as peft looks for them
        if not found:
            raise ValueError(
                f"{argument} has {end!r}, but no module of the {type(model).__name__} has a name that ends so; "
                "expected the end of a name in model.named_modules()."
            )
        saved.update((name, end) for name in found)
    for (inner, inner_end), (outer, end) in permutations(saved.items(), 2):
        if inner.startswith(f"{outer}."):
            raise ValueError(
                f"{argument}, with the head's own modules, has {end!r}, a name of {outer}, and {inner_end!r}, a name "
                f"of {inner}, which lies in it. An adapter that holds a module twice cannot be loaded: leave one of "
                "them out, or write more of its name if another module is meant."
            )
    for replaced in _replaced_modules(config, model):
        for name, end in saved.items():
            if f"{replaced}.".startswith(f"{name}."):
                raise ValueError(
                    f"{argument} has {end!r}, a name of {name}, where the method puts a layer of its own in the place "
                    f"of {replaced}; expected modules in that one, or beside it."
                )
            inside = name.removeprefix(f"{replaced}.")
            if inside != name and not inside.endswith(end):
                raise ValueError(
                    f"{argument} has {end!r}, a name of {name}, which lies in {replaced}, and the method puts a layer "
                    f"of its own in the place of that; expected a name that begins in it, such as {inside!r}."
                )


def _replaced_modules(config: PeftConfig, model: nn.Module) -> list[str]:
    """The modules in whose place a method of this package puts its layers. Other methods leave out what is saved."""
    tuner = PEFT_TYPE_TO_TUNER_MAPPING.get(config.peft_type)
    if not isinstance(tuner, type) or not issubclass(tuner, BackboneTuner):
        return []
    config = copy.copy(config)
    config.modules_to_save = None  # which peft takes out of what it tunes
    if config.target_modules is None:
        encoder = find_vision_encoder(model)
        if encoder is None:  # refused when the adapter is added
            return []
        config.target_modules = tuner.default_targets(encoder)
    return [name for name, _ in model.named_modules() if name and tuner._check_target_module_exists(config, name)]
