"""Which modules of a model become Rein's layers."""

from __future__ import annotations

import copy
from contextlib import contextmanager

from peft.tuners.tuners_utils import BaseTuner, check_target_module_exists
from torch import nn

from .architectures import ARCHITECTURES, Architecture, find_vision_encoder, unknown_architecture
from .base import NOT_MERGEABLE, ReinTunerLayer
from .config import ReinConfig
from .layer import ReinLayer
from .queries import ReinQueries
from .recorded import check_model_types, check_recorded
from .stages import ReinStages


# Embeddings of object queries that only give their `weight`: query position, query content (Mask2Former).
QUERY_POSITION, QUERY_CONTENT = "queries_embedder", "queries_features"


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
            or trained with other classes, another crop or another backbone; as many tokens as queries are needed and
            the numbers differ; adapters with and without linked queries in one model; several adapters in one batch;
            on merging.

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
        """Fill in what the backbone's configuration tells; check what the adapter's says of its backbone."""
        check_model_types(peft_config.base_config, getattr(self.model, "config", None))
        if peft_config.base_config is None and hasattr(self.model, "config"):
            peft_config.base_config = self.model.config.to_diff_dict()
        encoder = find_vision_encoder(self.model)
        if encoder is not None:
            architecture, model_config = encoder.architecture, encoder.model.config.to_dict()
        else:
            architecture = Architecture(blocks="")  # named by target_modules, and otherwise like most
            while model_config.get("backbone_config"):
                model_config = model_config["backbone_config"]
        if peft_config.target_modules is None:
            if encoder is None:
                unknown = unknown_architecture(model_config.get("model_type"))
                raise ValueError(
                    f"ReinConfig.target_modules is not set and the backbone's {unknown}, or name the list of blocks, "
                    "e.g. target_modules=['encoder.layer']. A segmentation adapter is loaded with "
                    "rein_hf.from_pretrained, which builds its base model."
                )
            # the whole name: heads and text towers have lists of blocks too
            peft_config.target_modules = {encoder.blocks}
        for name, found in architecture.sizes(model_config).items():
            made_for = getattr(peft_config, name)
            if made_for is None:
                setattr(peft_config, name, found)
            elif found is not None and made_for != found:
                raise ValueError(
                    f"This Rein adapter was made for a backbone of {name} {made_for}; found {found}. A segmentation "
                    "adapter is loaded with rein_hf.from_pretrained, which builds its base model."
                )
        if peft_config.hidden_size is None:
            raise ValueError("ReinConfig.hidden_size is not set and the model's configuration does not tell it.")
        if peft_config.num_prefix_tokens is None:
            peft_config.num_prefix_tokens = architecture.num_prefix_tokens(model_config)
        if not any(_is_target(peft_config, name) for name, _ in self.model.named_modules()):
            raise ValueError(
                f"ReinConfig.target_modules is {peft_config.target_modules}; found no module of that name in the "
                f"{type(self.model).__name__}. Name the list of blocks, e.g. target_modules=['encoder.layer']."
            )
        positions = self._query_positions()
        if peft_config.link_queries and positions is not None and len(positions.weight) != peft_config.num_tokens:
            raise ValueError(
                f"ReinConfig.num_tokens is {peft_config.num_tokens}, but the model has {len(positions.weight)} object "
                "queries. With link_queries=True the tokens are the queries: make both numbers equal, or set "
                "link_queries=False."
            )
        others = {name: other for name, other in self.peft_config.items() if other is not peft_config}
        check_recorded(peft_config, self.model, others)
        return peft_config

    def _check_new_adapter_config(self, config: ReinConfig) -> None:
        super()._check_new_adapter_config(config)
        linked = {name: adapter.link_queries for name, adapter in self.peft_config.items()}
        if len(set(linked.values())) > 1 and self._query_positions() is not None:
            raise ValueError(
                f"ReinConfig.link_queries differs between the adapters of this model: {linked}. Its object queries "
                "are either computed from tokens or trained themselves: load such adapters into models of their own."
            )

    @staticmethod
    def _check_target_module_exists(peft_config: ReinConfig, key: str):
        is_query = key.rpartition(".")[-1] in (QUERY_POSITION, QUERY_CONTENT)
        return (peft_config.link_queries and is_query) or _is_target(peft_config, key)

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

    def _query_positions(self) -> nn.Module | None:
        """The embedding of the model's query positions, `weight` (m, q); `None` if it has no object queries."""
        for name, module in self.model.named_modules():
            if name.rpartition(".")[-1] == QUERY_POSITION:
                return module
        return None

    def _query_dim(self, peft_config: ReinConfig) -> int | None:
        """Width q of the model's object queries; `None` if there are none or they are not linked."""
        positions = self._query_positions()
        return positions.weight.shape[1] if peft_config.link_queries and positions is not None else None

    def inject_adapter(
        self,
        model: nn.Module,
        adapter_name: str,
        autocast_adapter_dtype: bool = True,
        low_cpu_mem_usage: bool = False,
        state_dict: dict | None = None,
    ) -> None:
        # the configuration alone tells which modules to replace: the query positions have no tensor of their own, so
        # matching by the names in a state dict, which is peft's other way, would leave them out
        super().inject_adapter(model, adapter_name, autocast_adapter_dtype, low_cpu_mem_usage)
        stacks = tuple(module for module in model.modules() if isinstance(module, ReinLayer))
        for module in model.modules():
            if isinstance(module, ReinQueries):
                module.link(stacks)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        # peft's own copies `weight` between the modules; neither a list of blocks nor a head has one
        setattr(parent, child_name, new_module)

    @contextmanager
    def _enable_peft_forward_hooks(self, *args, **kwargs):
        """What peft enters around a forward pass, with its arguments."""
        if kwargs.get("adapter_names") is not None:
            raise ValueError(
                "adapter_names is given, but Rein cannot mix adapters in one batch: the object queries and the head "
                "are those of one adapter. Sort the images by adapter and call set_adapter before each group."
            )
        yield

    def _check_merge_allowed(self) -> None:
        raise ValueError(NOT_MERGEABLE)


def _is_target(peft_config: ReinConfig, key: str):
    """Whether the configuration names the module `key`; a match or a boolean, as peft has it."""
    # peft takes layers_to_transform for numbers in the names of modules; a list of blocks has none in its name
    config = copy.copy(peft_config)
    config.layers_to_transform = None
    return check_target_module_exists(config, key)
