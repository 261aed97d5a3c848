"""An adapter's configuration made complete from its model, and checked against it."""

from __future__ import annotations

import copy
from collections.abc import Callable

from accelerate.utils import has_offloaded_params
from peft.tuners.tuners_utils import check_target_module_exists
from torch import nn

from .architectures import Architecture, VisionEncoder, find_vision_encoder, unknown_architecture
from .base_config import BackboneTunerConfig
from .queries import find_query_positions


LOAD_SEGMENTER = "A segmentation adapter is loaded with rein_hf.from_pretrained, which builds its base model."
BLOCKS = "the list of blocks, e.g. target_modules=['encoder.layer']"


def blocks_of(encoder: VisionEncoder) -> set[str]:
    """The whole name of the list of blocks: heads and text encoders have such lists too."""
    return {encoder.blocks}


def complete_config(
    config: BackboneTunerConfig,
    model: nn.Module,
    model_config: dict,
    default_targets: Callable[[VisionEncoder], set[str] | str] = blocks_of,
    targets: str = BLOCKS,
) -> None:
    """Fill in, in place, what the model's configuration tells and the adapter's does not; check what both tell.

    Args:
        config ([`BackboneTunerConfig`]): the adapter's configuration.
        model (`nn.Module`): the base model, a vision transformer or a model that contains one.
        model_config (`dict`): configuration of the base model.
        default_targets: which modules of a vision transformer of a known architecture are replaced.
        targets (`str`): what these are, with an example, for messages.

    Raises:
        ValueError: see [`BackboneTuner`].
    """
    _refuse_disk_without_hooks(model)
    kind = type(config).__name__
    if config.base_config is None and hasattr(model, "config"):
        config.base_config = model.config.to_diff_dict()
    encoder = find_vision_encoder(model)
    if encoder is not None:
        architecture, model_config = encoder.architecture, encoder.model.config.to_dict()
    else:
        architecture = Architecture(blocks="")  # the blocks are named by target_modules
        while model_config.get("backbone_config"):
            model_config = model_config["backbone_config"]
    if config.target_modules is None:
        if encoder is None:
            unknown = unknown_architecture(model_config.get("model_type"))
            raise ValueError(
                f"{kind}.target_modules is not set and the backbone's {unknown}, or name {targets}. {LOAD_SEGMENTER}"
            )
        config.target_modules = default_targets(encoder)
    for name, found in architecture.sizes(model_config).items():
        made_for = getattr(config, name)
        if made_for is None:
            setattr(config, name, found)
        elif found is not None and made_for != found:
            raise ValueError(
                f"This {kind.removesuffix('Config')} adapter was made for a backbone of {name} {made_for}; found "
                f"{found}. {LOAD_SEGMENTER}"
            )
    if config.hidden_size is None:
        raise ValueError(f"{kind}.hidden_size is not set and the model's configuration does not tell it.")
    if hasattr(config, "num_prefix_tokens"):
        _complete_prefix(config, architecture.num_prefix_tokens(model_config), encoder)
    if not any(is_target(config, name) for name, _ in model.named_modules()):
        raise ValueError(
            f"{kind}.target_modules is {config.target_modules}; found no module of that name in the "
            f"{type(model).__name__}. Name {targets}."
        )
    positions = find_query_positions(model)
    if getattr(config, "link_queries", False) and positions is not None and len(positions.weight) != config.num_tokens:
        raise ValueError(
            f"ReinConfig.num_tokens is {config.num_tokens}, but the model has {len(positions.weight)} object "
            "queries. With link_queries=True the tokens are the queries: make both numbers equal, or set "
            "link_queries=False."
        )


def _complete_prefix(config: BackboneTunerConfig, found: int, encoder: VisionEncoder | None) -> None:
    """Fill in the number of tokens before the patches; refuse another one than that of a known architecture, whose
    class token would be refined, or whose patches would pass unchanged."""
    if config.num_prefix_tokens is None:
        config.num_prefix_tokens = found
    elif config.num_prefix_tokens != found and encoder is not None and is_target(config, encoder.blocks):
        raise ValueError(
            f"{type(config).__name__}.num_prefix_tokens is {config.num_prefix_tokens}; expected {found}, the number "
            "of tokens before the patches (class token and registers) in this "
            f"{encoder.model.config.model_type}. Leave num_prefix_tokens out."
        )


def _refuse_disk_without_hooks(model: nn.Module) -> None:
    """Refuse a base on which `PeftModel.from_pretrained` would fail: it takes accelerate's hooks off, and looks later
    for the weights on the disk under the names that the blocks had before."""
    on_disk = "disk" in (getattr(model, "hf_device_map", None) or {}).values()
    if on_disk and not any(map(has_offloaded_params, model.modules())):
        raise ValueError(
            "The base model has weights on the disk (device_map), and peft cannot load an adapter onto it. Load "
            "base and adapter first, and call accelerate.disk_offload(model, FOLDER) then."
        )


def is_target(config: BackboneTunerConfig, name: str):
    """Whether the configuration names the module, whatever blocks it is for; a match or a boolean, as in peft."""
    # peft looks for the numbers of layers_to_transform in module names; a list of blocks has none in its name
    config = copy.copy(config)
    config.layers_to_transform = None
    return check_target_module_exists(config, name)
