"""Which modules of a model become Rein's layers."""

from __future__ import annotations

from torch import nn

from .base import ReinTunerLayer
from .base_model import BackboneTuner
from .config import ReinConfig
from .layer import ReinLayer
from .preparation import is_target
from .queries import QUERY_CONTENT, QUERY_POSITION, ReinQueries, find_query_positions
from .stages import ReinStages


class ReinModel(BackboneTuner):
    """
    Refines the features of a frozen vision transformer with Rein (https://arxiv.org/abs/2312.04265) and lets its
    tokens be the object queries of the segmentation head around it, if there is one.

    Args:
        model (`torch.nn.Module`): a vision transformer, or a model that contains one.
        config ([`ReinConfig`]): the configuration of the adapter.
        adapter_name (`str`, defaults to `"default"`): its name.
        low_cpu_mem_usage (`bool`, defaults to `False`): create the weights on the meta device.

    Raises:
        ValueError: linked queries of another number than the tokens; adapters with and without linked queries in one
            model; what [`BackboneTuner`] refuses.

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
    config_class = ReinConfig
    tuner_layer_cls = ReinTunerLayer

    def _check_new_adapter_config(self, config: ReinConfig) -> None:
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

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args, **kwargs) -> None:
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        rein_layers = tuple(module for module in model.modules() if isinstance(module, ReinLayer))
        for module in model.modules():
            if isinstance(module, ReinQueries):
                module.link(rein_layers)
