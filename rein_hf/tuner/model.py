"""Which modules of a model become Rein's layers."""

from __future__ import annotations

from contextlib import contextmanager

import torch
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import nn

from .adapter_tensors import check_tensors
from .architectures import ARCHITECTURES
from .base import NO_DATA_PARALLEL, NOT_MERGEABLE, ReinTunerLayer
from .config import ReinConfig
from .layer import ReinLayer
from .preparation import complete_config, is_target
from .queries import QUERY_CONTENT, QUERY_POSITION, ReinQueries, find_query_positions
from .recorded import check_model_types, check_recorded
from .stages import ReinStages


class ReinModel(BaseTuner):
    """
    Refines the features of a frozen vision transformer with Rein (https://arxiv.org/abs/2312.04265) and lets its
    tokens be the object queries of the segmentation head around it, if there is one.

    Args:
        model (`torch.nn.Module`): a vision transformer, or a model that contains one.
        config ([`ReinConfig`]): the configuration of the adapter.
        adapter_name (`str`, defaults to `"default"`): its name.
        low_cpu_mem_usage (`bool`, defaults to `False`): create the weights on the meta device.

    Raises:
        BaseModelError: an adapter of a whole segmenter, put onto something else.
        ValueError: an unknown architecture without `target_modules`; an adapter made for a backbone of another size,
            or trained with other classes, another crop or another backbone; linked queries of another number than the
            tokens; adapters with and without linked queries, or of other methods, in one model; another adapter's
            weights offloaded by accelerate; several adapters in one batch; a state dict that lacks tensors of the
            adapter or has unknown ones; a replica of `torch.nn.DataParallel`; merging.

    Example:

    ```py
    >>> from transformers import Dinov2Config, Dinov2Model
    >>> from peft import get_peft_model
    >>> from rein_hf import ReinConfig

    >>> vit = Dinov2Model(Dinov2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, patch_size=16))
    >>> type(get_peft_model(vit, ReinConfig(num_tokens=10)).base_model).__name__
    'ReinModel'

    ```
    """

    prefix: str = "rein_"
    tuner_layer_cls = ReinTunerLayer
    target_module_mapping = {model_type: [known.blocks] for model_type, known in ARCHITECTURES.items()}

    def _prepare_adapter_config(self, peft_config: ReinConfig, model_config: dict) -> ReinConfig:
        """Complete the adapter's configuration from the model, and compare what both tell."""
        check_model_types(peft_config.base_config, getattr(self.model, "config", None))
        complete_config(peft_config, self.model, model_config)
        others = {name: other for name, other in self.peft_config.items() if other is not peft_config}
        check_recorded(peft_config, self.model, others)
        return peft_config

    def _check_new_adapter_config(self, config: ReinConfig) -> None:
        others = [type(other).__name__ for other in self.peft_config.values() if not isinstance(other, ReinConfig)]
        for module in self.model.modules():
            if isinstance(module, ReinTunerLayer):
                module.refuse_offloaded()
            elif isinstance(module, BaseTunerLayer):
                others.append(type(module).__module__)
        if others:
            raise ValueError(
                f"Rein cannot be added to a model that has adapters of another method; found {others[0]}. Take them "
                "off with PeftModel.unload() first, or use a model of its own for each method."
            )
        super()._check_new_adapter_config(config)
        linked = {name: adapter.link_queries for name, adapter in self.peft_config.items()}
        if len(set(linked.values())) > 1 and find_query_positions(self.model) is not None:
            raise ValueError(
                f"ReinConfig.link_queries differs between the adapters of this model: {linked}. Its object queries "
                "are either computed from tokens or trained themselves: load such adapters into models of their own."
            )

    @staticmethod
    def _check_target_module_exists(peft_config: ReinConfig, key: str):
        is_query = key.rpartition(".")[-1] in (QUERY_POSITION, QUERY_CONTENT)
        return (peft_config.link_queries and is_query) or is_target(peft_config, key)

    def _create_and_replace(
        self,
        peft_config: ReinConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        if isinstance(target, (ReinLayer, ReinStages)):
            target.update_layer(adapter_name, peft_config, self._query_dim(peft_config))
        elif isinstance(target, ReinQueries):
            target.update_layer(adapter_name, peft_config)
        else:
            if isinstance(target, nn.ModuleList) and isinstance(peft_config.hidden_size, list):
                new_module = ReinStages(target, adapter_name, peft_config, self._query_dim(peft_config))
            elif isinstance(target, nn.ModuleList):
                new_module = ReinLayer(
                    target,
                    adapter_name,
                    peft_config,
                    hidden_size=peft_config.hidden_size,
                    num_prefix_tokens=peft_config.num_prefix_tokens,
                    query_dim=self._query_dim(peft_config),
                )
            elif isinstance(target, nn.Embedding):
                new_module = ReinQueries(target, adapter_name, peft_config, content=target_name == QUERY_CONTENT)
            else:
                raise ValueError(
                    f"ReinConfig.target_modules matches {current_key}, a {type(target).__name__}; expected the "
                    "nn.ModuleList of the backbone's blocks."
                )
            self._replace_module(parent, target_name, new_module, target)

    def _query_dim(self, peft_config: ReinConfig) -> int | None:
        """Width q of the model's object queries; `None` if there are none or they are not linked."""
        positions = find_query_positions(self.model)
        return positions.weight.shape[1] if peft_config.link_queries and positions is not None else None

    def inject_adapter(
        self,
        model: nn.Module,
        adapter_name: str,
        autocast_adapter_dtype: bool = True,
        low_cpu_mem_usage: bool = False,
        state_dict: dict | None = None,
    ) -> None:
        # Without state_dict, peft's other way to find the modules to replace: by the names of tensors. The query
        # positions have no tensor of their own and would be left out.
        try:
            super().inject_adapter(model, adapter_name, autocast_adapter_dtype, low_cpu_mem_usage)
        except Exception:
            if not any(
                isinstance(module, ReinTunerLayer) and adapter_name in module.configs for module in model.modules()
            ):
                # a refused adapter is not listed, though peft lists it before it asks
                self.peft_config.pop(adapter_name, None)
            raise
        rein_layers = tuple(module for module in model.modules() if isinstance(module, ReinLayer))
        for module in model.modules():
            if isinstance(module, ReinQueries):
                module.link(rein_layers)

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: ReinConfig, adapter_name: str, state_dict: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Called by peft before an adapter's tensors are written into the model, on every way to load it."""
        state_dict = super()._remap_adapter_state_dict_for_load(model, config, adapter_name, state_dict)
        check_tensors(model, adapter_name, state_dict)
        return state_dict

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        # peft's own copies `weight` between the modules; neither a list of blocks nor a head has one
        setattr(parent, child_name, new_module)

    @contextmanager
    def _enable_peft_forward_hooks(self, *args, **kwargs):
        """What peft enters around a forward pass, with its arguments."""
        if getattr(self, "_is_replica", False):
            raise ValueError(NO_DATA_PARALLEL)
        if kwargs.get("adapter_names") is not None:
            raise ValueError(
                "adapter_names is given, but Rein cannot mix adapters in one batch: the object queries and the head "
                "are those of one adapter. Sort the images by adapter and call set_adapter before each group."
            )
        yield

    def _check_merge_allowed(self) -> None:
        raise ValueError(NOT_MERGEABLE)
