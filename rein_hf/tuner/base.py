"""What the layers of all methods in this package have in common, as peft sees them."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext

import torch
from accelerate.utils import align_module_device, has_offloaded_params
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from torch.utils.hooks import RemovableHandle


NO_DATA_PARALLEL = (
    "An adapter found itself in a replica of torch.nn.DataParallel, where its weights are missing. Use one process "
    "for each GPU (accelerate launch, torchrun), or let the process see one GPU alone (CUDA_VISIBLE_DEVICES=0)."
)


class BackboneTunerLayer(BaseTunerLayer):
    """A layer of an adapter in a vision transformer: one active adapter at a time, and no way to merge.

    Attributes:
        method (`str`): name of the method, for messages.
        not_mergeable (`str`): what is said to whoever wants to merge.
        configs (`dict[str, PeftConfig]`): configuration of each adapter, by its name.
        times_loaded (`int`): how often weights were made or loaded, or said to be others: what was computed of them
            before is of no use.
    """

    method: str
    not_mergeable: str
    times_loaded = 0
    # listed here so that peft deletes it with the adapter
    other_param_names = ("configs",)
    # the handles of what a layer has registered on modules that stay when it is taken off
    _hooks: Sequence[RemovableHandle] = ()
    # peft.helpers.disable_input_dtype_casting sets it
    cast_input_dtype_enabled = True

    def _set_up(self, adapter_name: str) -> None:
        """Set what every layer has, before its first adapter is added."""
        self.configs = {}
        self._active_adapter = adapter_name
        self._disable_adapters = False
        # adapters whose weights were found to be loaded, see `_check_loaded`
        self._found_loaded: set[str] = set()
        self.register_load_state_dict_pre_hook(_note_loaded_tensors)

    @property
    def adapter(self) -> str | None:
        """Name of the adapter that this layer applies; `None` if it is disabled or has no weights here.

        Raises:
            ValueError: the adapter was made to be loaded, and some of its tensors were not.
        """
        if self._disable_adapters or not self.active_adapters:
            return None
        name = self.active_adapters[0]
        if name not in self.configs:
            return None
        # asked in this order, so that a compiled graph does not depend on what was found
        if not torch.compiler.is_compiling() and name not in self._found_loaded:
            self._check_loaded(name)
        return name

    def named_tensors(self, adapter_name: str) -> Iterator[tuple[str, nn.Parameter]]:
        """The weights of an adapter in this layer, by their names in it."""
        for container in self.adapter_layer_names:
            if adapter_name not in (entries := getattr(self, container)):
                continue
            entry, name = entries[adapter_name], f"{container}.{adapter_name}"
            if isinstance(entry, nn.Module):
                yield from entry.named_parameters(name)
            else:
                yield name, entry

    def _finish_update(self, adapter_name: str) -> None:
        """Called when all weights of an adapter are made: moves them to the base, sets what requires gradients, and
        marks them as not loaded."""
        config = self.configs[adapter_name]
        self._forget_computed()
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)
        self._found_loaded.discard(adapter_name)
        for _, parameter in self.named_tensors(adapter_name):
            # the mark goes with the parameter object, which transformers replaces when it loads
            parameter._adapter_initial = "to be loaded" if config.inference_mode else "to be trained"

    def _forget_computed(self) -> None:
        """Called when weights are made or loaded."""
        self.times_loaded += 1

    def _check_loaded(self, adapter_name: str) -> None:
        """Refuse an adapter that was loaded in part, or was made for inference and not loaded.

        `load_adapter` of transformers only logs that a tensor is missing, and calls nothing of the method afterwards.
        """
        tensors = dict(self.named_tensors(adapter_name))
        marks = {name: getattr(tensor, "_adapter_initial", None) for name, tensor in tensors.items()}
        from_transformers = any(getattr(tensor, "_is_hf_initialized", False) for tensor in tensors.values())
        initial = [
            name for name, mark in marks.items() if mark == "to be loaded" or (mark is not None and from_transformers)
        ]
        if initial:
            raise ValueError(
                f"{self.method} adapter {adapter_name!r} cannot be used: {len(initial)} of its {len(tensors)} tensors "
                f"in this {type(self).__name__} were never loaded and have random values: {', '.join(initial[:5])}. "
                "Load a complete file; an adapter that is to be trained has inference_mode=False (load_adapter: "
                "is_trainable=True)."
            )
        self._found_loaded.add(adapter_name)

    def refuse_offloaded(self) -> None:
        """Refuse to add an adapter where accelerate keeps the weights of others outside of the model."""
        containers = (getattr(self, name) for name in self.adapter_layer_names)
        if any(has_offloaded_params(module) for container in containers for module in container.modules()):
            raise ValueError(
                f"No {self.method} adapter can be added: accelerate has offloaded the weights of this model's "
                "adapters. Add all adapters first and offload then, or take the hooks off with "
                "accelerate.hooks.remove_hook_from_submodules(model)."
            )

    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        if not isinstance(adapter_names, str) and len(adapter_names) > 1:
            raise ValueError(
                f"{self.method} works with one active adapter at a time; found {list(adapter_names)}. Two of them "
                "have no sum: activate one with set_adapter."
            )
        super().set_adapter(adapter_names, inference_mode=inference_mode)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        raise ValueError(self.not_mergeable)

    def unmerge(self) -> None:
        raise ValueError(self.not_mergeable)

    def _get_base_layer_device_and_dtype(self, base_layer: nn.Module) -> tuple[torch.device, torch.dtype]:
        """Device and type that peft gives an adapter's weights: the base's, be it blocks or an embedding."""
        return execution_device(base_layer), next(base_layer.parameters()).dtype

    def unload_and_optionally_merge_module(
        self, merge: bool, safe_merge: bool, adapter_names: list[str] | None
    ) -> nn.Module:
        """Called by peft's `unload` and `merge_and_unload`: the module that stood here before, without this layer's
        hooks."""
        if merge:
            self.merge(safe_merge, adapter_names)
        for hook in self._hooks:
            hook.remove()
        return self.base_layer


class ReinTunerLayer(BackboneTunerLayer):
    """A [`ReinLayer`], [`ReinStages`] or [`ReinQueries`]."""

    method = "Rein"
    # whether the weights stay as they are, so that what is computed of them alone is computed once, see `fix_weights`
    weights_are_fixed = False
    not_mergeable = (
        "Rein cannot be merged into the backbone: its refinement depends on the features (a softmax over tokens), so "
        "no weight of the backbone can stand for it. Use unload() to get the backbone back."
    )

    def train(self, mode: bool = True):
        if mode:
            refuse_prepared(self)
        return super().train(mode)


class LayerHook(nn.Module):
    """
    Hook of a block, or of a part of one, that belongs to a [`BackboneTunerLayer`] around the blocks.

    It is a module, though no submodule of any other, because torch.compile keeps the attributes of a module constant.
    An integer that a function closes over or that `functools.partial` binds becomes symbolic as soon as the hook of a
    second block is traced, and a symbolic integer cannot say which block it is.

    Args:
        layer: the layer. It is neither a submodule nor kept alive: it has the block, which has this hook, and in such
            a circle a model's memory would not be free when the model is deleted.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = weakref.ref(layer)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "layer": self.layer()}

    def __setstate__(self, state: dict) -> None:
        super().__setstate__({**state, "layer": weakref.ref(state["layer"])})


def refuse_prepared(model: nn.Module) -> None:
    """
    Raises:
        ValueError: the model is to be trained, and was prepared for inference.
    """
    if any(getattr(module, "weights_are_fixed", False) for module in model.modules()):
        raise ValueError(
            "This model was prepared for inference (prepare_for_inference): products of its weights are kept, and "
            "would not follow new weights. Load it anew to train it."
        )


def execution_device(module: nn.Module) -> torch.device:
    """Where a module computes: the device of its first weight, or the one accelerate will load that to."""
    device = next(module.parameters()).device
    if device.type == "meta":
        hooks = (part._hf_hook for part in module.modules() if has_offloaded_params(part))
        device = next((torch.device(hook.execution_device) for hook in hooks), device)
    return device


def fix_weights(model: nn.Module) -> None:
    """Says that the weights of Rein in a model stay as they are from now on. What a forward pass without gradients
    computes of them alone, factors and object queries, is then computed once and kept, for each adapter. Adapters can
    still be loaded and switched."""
    for module in model.modules():
        if isinstance(module, ReinTunerLayer):
            module.weights_are_fixed = True
            module._forget_computed()


def with_weights(*modules: nn.Module) -> AbstractContextManager:
    """A context in which the own weights of modules are there, even if accelerate has offloaded them.

    accelerate loads them when a module is called; these layers read them without calling.
    """
    # no function call without a hook: torch.compile traces this
    offloaded = [module for module in modules if hasattr(module, "_hf_hook") and has_offloaded_params(module)]
    if not offloaded:
        return nullcontext()
    stack = ExitStack()
    for module in offloaded:
        stack.enter_context(align_module_device(module))
    return stack


def is_autocast_enabled(device_type: str) -> bool:
    """Whether autocast is on for a type of device; it never is for one that has no autocast, as `meta`."""
    # not every torch that pyproject.toml allows can trace the question whether a device has autocast
    if device_type == "meta" or not (torch.compiler.is_compiling() or torch.amp.is_autocast_available(device_type)):
        return False
    return torch.is_autocast_enabled(device_type)


def without_autocast(device_type: str) -> AbstractContextManager:
    """A context in which a type of device computes without autocast; for one that has none, nothing."""
    return torch.autocast(device_type, enabled=False) if is_autocast_enabled(device_type) else nullcontext()


def linear_weight(linear: nn.Module) -> torch.Tensor:
    """The weight of one of Rein's linear layers, read without calling the layer.

    Raises:
        ValueError: it is no floating point tensor any more, since the layer was quantised.
    """
    weight = linear.weight
    if isinstance(weight, torch.Tensor) and weight.is_floating_point():
        return weight
    raise ValueError(
        f"A linear layer of Rein has become a {type(linear).__module__}.{type(linear).__name__}. Rein multiplies its "
        "weights with one another and cannot compute with quantised ones: quantise the backbone and the head alone, "
        "e.g. before Rein is added."
    )


def _note_loaded_tensors(module, state_dict, prefix, *_) -> None:
    """Before `load_state_dict` writes into a layer: take the marks off the tensors that it will write."""
    module._forget_computed()
    for name, parameter in module.named_parameters():
        found = state_dict.get(prefix + name)
        if found is not None and found.shape == parameter.shape and hasattr(parameter, "_adapter_initial"):
            del parameter._adapter_initial


def prepend_forward_hook(module: nn.Module, hook: Callable) -> RemovableHandle:
    """Registers a forward hook before all others: transformers records hidden states in one of its own.

    `register_forward_hook(hook, prepend=True)` only moves the hook to the front of an `OrderedDict`. torch.compile, up
    to torch 2.11, looks hooks up in the order in which they were inserted, and takes another one for it.
    """
    handle = module.register_forward_hook(hook, prepend=True)
    hooks = list(module._forward_hooks.items())
    module._forward_hooks.clear()
    module._forward_hooks.update(hooks)
    return handle
