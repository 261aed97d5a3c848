"""Which modules of a model become AdaptFormer's layers."""

from __future__ import annotations

import re
from itertools import accumulate

from torch import nn

from ..tuner import BackboneTuner
from ..tuner.architectures import VisionEncoder, find_vision_encoder
from ..tuner.preparation import is_target
from .config import AdaptFormerConfig
from .layer import AdaptFormerLayer


# the number of a block in the name of its MLP
BLOCK_NUMBER = re.compile(r"(?:^|\.)(\d+)\.[^.]+$")


class AdaptFormerModel(BackboneTuner):
    """
    Puts a bottleneck beside every MLP of a frozen vision transformer (https://arxiv.org/abs/2205.13535).

    It works on every architecture of `tuner.architectures.ARCHITECTURES`, those in stages of different widths too.

    Args:
        model (`torch.nn.Module`): a vision transformer, or a model that contains one.
        config ([`AdaptFormerConfig`]): the configuration of the adapter.
        adapter_name (`str`, defaults to `"default"`): its name.
        low_cpu_mem_usage (`bool`, defaults to `False`): create the weights on the meta device.

    Raises:
        ValueError: `target_modules` matches something else than MLPs of blocks; `layers_to_transform` names a block
            that is not there; what [`BackboneTuner`] refuses.

    Example:

    ```py
    >>> from transformers import Dinov2Config, Dinov2Model
    >>> from peft import get_peft_model
    >>> from rein_hf import AdaptFormerConfig

    >>> vit = Dinov2Model(Dinov2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, patch_size=16))
    >>> type(get_peft_model(vit, AdaptFormerConfig()).base_model).__name__
    'AdaptFormerModel'

    ```
    """

    prefix: str = "adaptformer_"
    config_class = AdaptFormerConfig
    tuner_layer_cls = AdaptFormerLayer
    targets = "the MLPs of all blocks, e.g. target_modules=['mlp']"

    @staticmethod
    def default_targets(encoder: VisionEncoder) -> str:
        """A regular expression for the names of the MLPs: heads and text encoders have some, too."""
        return rf"{re.escape(encoder.blocks)}\.\d+\.mlp"

    def _prepare_adapter_config(self, peft_config: AdaptFormerConfig, model_config: dict) -> AdaptFormerConfig:
        peft_config = super()._prepare_adapter_config(peft_config, model_config)
        blocks = set()
        for name, module in self.model.named_modules():
            if is_target(peft_config, name):
                found = BLOCK_NUMBER.search(name)
                if found is None or isinstance(module, (nn.ModuleList, nn.Linear)):
                    raise ValueError(
                        f"AdaptFormerConfig.target_modules matches {name}, a {type(module).__name__}; expected "
                        f"{self.targets}."
                    )
                blocks.add(int(found[1]))
        peft_config.check_blocks(max(blocks) + 1)
        return peft_config

    @staticmethod
    def _check_target_module_exists(peft_config: AdaptFormerConfig, key: str):
        found = BLOCK_NUMBER.search(key)
        layers = peft_config.layers_to_transform
        if found is None or layers is not None and int(found[1]) not in layers:
            return False
        return is_target(peft_config, key)

    def _create_and_replace(
        self,
        peft_config: AdaptFormerConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        if isinstance(target, AdaptFormerLayer):
            target.update_layer(adapter_name, peft_config)
            return
        encoder = find_vision_encoder(self.model)
        end = encoder.architecture.mlp_end if encoder is not None else None
        width = width_of_block(peft_config, int(BLOCK_NUMBER.search(current_key)[1]))
        layer = AdaptFormerLayer(target, adapter_name, peft_config, width, block=parent, end=end)
        self._replace_module(parent, target_name, layer, target)


def width_of_block(config: AdaptFormerConfig, index: int) -> int:
    """Hidden size c of a block, counted from 0, in a backbone whose blocks may be in stages."""
    if not isinstance(config.hidden_size, list):
        return config.hidden_size
    ends = accumulate(config.num_hidden_layers)
    return next(width for width, end in zip(config.hidden_size, ends, strict=True) if index < end)
