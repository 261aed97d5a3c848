"""Which modules of a model become VPT's layers."""

from __future__ import annotations

from torch import nn

from ..tuner import BackboneTuner
from ..tuner.architectures import find_vision_encoder
from .config import VPTConfig
from .layer import VPTLayer


OTHERS = "Use Rein, AdaptFormer or LoRA on it."


class VPTModel(BackboneTuner):
    """
    Puts learnable prompts among the tokens of every block of a frozen vision transformer
    (https://arxiv.org/abs/2203.12119, "deep").

    It works on those architectures of `tuner.architectures.ARCHITECTURES` whose blocks take a sequence of tokens.
    SAM's and Hiera's attend within windows of a grid, and BEiT's have a bias for every pair of positions: prompts have
    no place there.

    Args:
        model (`torch.nn.Module`): a vision transformer, or a model that contains one.
        config ([`VPTConfig`]): the configuration of the adapter.
        adapter_name (`str`, defaults to `"default"`): its name.
        low_cpu_mem_usage (`bool`, defaults to `False`): create the weights on the meta device.

    Raises:
        ValueError: the backbone is one of these; `target_modules` matches something else than a list of blocks; what
            [`BackboneTuner`] refuses.

    Example:

    ```py
    >>> from transformers import Dinov2Config, Dinov2Model
    >>> from peft import get_peft_model
    >>> from rein_hf import VPTConfig

    >>> vit = Dinov2Model(Dinov2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, patch_size=16))
    >>> type(get_peft_model(vit, VPTConfig()).base_model).__name__
    'VPTModel'

    ```
    """

    prefix: str = "vpt_"
    config_class = VPTConfig
    tuner_layer_cls = VPTLayer

    def _prepare_adapter_config(self, peft_config: VPTConfig, model_config: dict) -> VPTConfig:
        refuse_without_place(self.model)
        return super()._prepare_adapter_config(peft_config, model_config)

    def _create_and_replace(
        self,
        peft_config: VPTConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        if isinstance(target, VPTLayer):
            target.update_layer(adapter_name, peft_config)
            return
        if not isinstance(target, nn.ModuleList):
            raise ValueError(
                f"VPTConfig.target_modules matches {current_key}, a {type(target).__name__}; expected the "
                "nn.ModuleList of the backbone's blocks."
            )
        layer = VPTLayer(target, adapter_name, peft_config, peft_config.hidden_size, peft_config.num_prefix_tokens)
        encoder = find_vision_encoder(self.model)
        if encoder is not None:
            layer.watch_stem(encoder.model)
        self._replace_module(parent, target_name, layer, target)


def refuse_without_place(model: nn.Module) -> None:
    """Refuse a vision transformer among whose tokens no prompt can be.

    Raises:
        ValueError: names the reason, and what to use instead.
    """
    encoder = find_vision_encoder(model)
    if encoder is None:
        return
    config = encoder.model.config
    if encoder.architecture.grid:
        raise ValueError(
            f"VPT cannot tune a {config.model_type}: its blocks attend within windows of a grid of patches, in which "
            f"prompts have no place. {OTHERS}"
        )
    biases = ("use_relative_position_bias", "use_shared_relative_position_bias")
    if any(getattr(config, name, False) for name in biases):
        raise ValueError(
            f"VPT cannot tune a {config.model_type} with relative positions: its attention has a bias for every pair "
            f"of positions, and prompts have none. {OTHERS}"
        )
