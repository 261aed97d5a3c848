"""What the tuners of all methods in this package have in common: from a configuration to layers in a model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import nn

from .adapter_tensors import check_tensors
from .architectures import ARCHITECTURES, VisionEncoder
from .base import NO_DATA_PARALLEL, BackboneTunerLayer
from .preparation import BLOCKS, blocks_of, complete_config, is_target
from .recorded import check_model_types, check_recorded


class BackboneTuner(BaseTuner):
    """
    Puts an adapter of one method into a frozen vision transformer, alone or inside of a segmenter.

    A method is a subclass that says which modules become which layers (`_create_and_replace`), and names its
    configuration, its layers and the prefix of its tensors.

    Attributes:
        config_class (`type`): class of the method's configuration.
        tuner_layer_cls (`type`): class of its layers.
        prefix (`str`): what the names of its tensors begin with.
        targets (`str`): which modules are replaced, with an example, for messages.

    Raises:
        BaseModelError: an adapter of a whole segmenter, put onto something else.
        ValueError: an unknown architecture without `target_modules`; an adapter made for a backbone of another size,
            or trained with other classes, another crop or another backbone; adapters of different methods in one
            model; another adapter's weights offloaded by accelerate; several adapters in one batch; a state dict that
            lacks tensors of the adapter or has unknown ones; a replica of `torch.nn.DataParallel`; merging.
    """

    config_class: type[PeftConfig]
    tuner_layer_cls: type[BackboneTunerLayer]
    targets = BLOCKS
    target_module_mapping = {model_type: [known.blocks] for model_type, known in ARCHITECTURES.items()}

    @staticmethod
    def default_targets(encoder: VisionEncoder) -> set[str] | str:
        """Which modules of a vision transformer are replaced, if the configuration does not say it."""
        return blocks_of(encoder)

    def _prepare_adapter_config(self, peft_config: PeftConfig, model_config: dict) -> PeftConfig:
        """Complete the adapter's configuration from the model, and compare what both tell."""
        check_model_types(peft_config.base_config, getattr(self.model, "config", None))
        complete_config(peft_config, self.model, model_config, self.default_targets, self.targets)
        others = {name: other for name, other in self.peft_config.items() if other is not peft_config}
        check_recorded(peft_config, self.model, others)
        return peft_config

    def _check_new_adapter_config(self, config: PeftConfig) -> None:
        others = [
            type(other).__name__ for other in self.peft_config.values() if not isinstance(other, self.config_class)
        ]
        for module in self.model.modules():
            if isinstance(module, self.tuner_layer_cls):
                module.refuse_offloaded()
            elif isinstance(module, BaseTunerLayer):
                others.append(type(module).__module__)
        if others:
            raise ValueError(
                f"{self.tuner_layer_cls.method} cannot be added to a model that has adapters of another method; found "
                f"{others[0]}. Take them off with PeftModel.unload() first, or use a model of its own for each method."
            )
        super()._check_new_adapter_config(config)

    @staticmethod
    def _check_target_module_exists(peft_config: PeftConfig, key: str):
        return is_target(peft_config, key)

    def inject_adapter(
        self,
        model: nn.Module,
        adapter_name: str,
        autocast_adapter_dtype: bool = True,
        low_cpu_mem_usage: bool = False,
        state_dict: dict | None = None,
    ) -> None:
        # Without state_dict, peft's other way to find the modules to replace: by the names of tensors. What has no
        # tensor of its own, as Rein's query positions, would be left out.
        try:
            super().inject_adapter(model, adapter_name, autocast_adapter_dtype, low_cpu_mem_usage)
        except Exception:
            if not any(
                isinstance(module, self.tuner_layer_cls) and adapter_name in module.configs
                for module in model.modules()
            ):
                # a refused adapter is not listed, though peft lists it before it asks
                self.peft_config.pop(adapter_name, None)
            raise

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: PeftConfig, adapter_name: str, state_dict: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Called by peft before an adapter's tensors are written into the model, on every way to load it."""
        state_dict = super()._remap_adapter_state_dict_for_load(model, config, adapter_name, state_dict)
        check_tensors(model, adapter_name, state_dict)
        return state_dict

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        # peft's own copies `weight` between the modules; lists of blocks, MLPs and queries have none
        setattr(parent, child_name, new_module)

    @contextmanager
    def _enable_peft_forward_hooks(self, *args, **kwargs) -> Iterator[None]:
        """What peft enters around a forward pass, with its arguments."""
        if getattr(self, "_is_replica", False):
            raise ValueError(NO_DATA_PARALLEL)
        if kwargs.get("adapter_names") is not None:
            raise ValueError(
                f"adapter_names is given, but {self.tuner_layer_cls.method} cannot mix adapters in one batch: the "
                "object queries and the head are those of one adapter. Sort the images by adapter and call "
                "set_adapter before each group."
            )
        yield

    def _check_merge_allowed(self) -> None:
        raise ValueError(self.tuner_layer_cls.not_mergeable)
