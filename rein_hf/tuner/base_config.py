"""What the configurations of all methods in this package have in common."""

from __future__ import annotations

from dataclasses import dataclass, field

from peft import PeftConfig


@dataclass
class BackboneTunerConfig(PeftConfig):
    """
    Configuration of an adapter in the blocks of a vision transformer.

    Args:
        layers_to_transform (`int` or `list[int]`, *optional*):
            Which blocks to change, counted from 0, in ascending order; the count goes on from stage to stage. All
            blocks by default.
        target_modules (`list[str]` or `str`, *optional*):
            Names of the modules to replace, or the ends of their names. By default those of the architecture, if it is
            one of `tuner.architectures.ARCHITECTURES`.
        modules_to_save (`list[str]`, *optional*):
            Further modules to train and to save with the adapter, by the ends of their names, e.g.
            `rein_hf.HEAD_MODULES`.
        hidden_size, num_hidden_layers (`int` or `list[int]`, *optional*):
            c and L of the backbone; lists with a number for each stage, if its blocks are in stages of different
            widths. Recorded when the adapter is made and checked when it is loaded.
        base_config (`dict`, *optional*):
            Configuration of the whole model around the backbone, recorded when the adapter is made, so that
            [`rein_hf.from_pretrained`] can rebuild that model from a pretrained backbone and this adapter alone.

    Raises:
        ValueError: `layers_to_transform` names no block, or one twice, or not in ascending order; `num_prefix_tokens`,
            where the method has it, is negative.
    """

    layers_to_transform: list[int] | int | None = field(
        default=None, metadata={"help": "Blocks to change, counted from 0; all by default."}
    )
    target_modules: list[str] | str | None = field(default=None, metadata={"help": "Names of what is replaced."})
    modules_to_save: list[str] | None = field(default=None, metadata={"help": "Modules trained and saved as well."})
    hidden_size: list[int] | int | None = field(
        default=None, metadata={"help": "Hidden size of the backbone; recorded."}
    )
    num_hidden_layers: list[int] | int | None = field(
        default=None, metadata={"help": "Blocks of the backbone; recorded."}
    )
    base_config: dict | None = field(default=None, metadata={"help": "Configuration of the base model; recorded."})

    def __post_init__(self):
        super().__post_init__()
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)
        if isinstance(self.layers_to_transform, int):
            self.layers_to_transform = [self.layers_to_transform]
        layers, name = self.layers_to_transform, type(self).__name__
        # the last of them stands for the last layer: see ReinLayer.object_queries
        if layers is not None and (not layers or list(layers) != sorted(set(layers))):
            raise ValueError(
                f"{name}.layers_to_transform is {layers}; expected one or more different blocks in ascending order, "
                "or None for all."
            )
        prefix = getattr(self, "num_prefix_tokens", None)
        if prefix is not None and prefix < 0:
            raise ValueError(
                f"{name}.num_prefix_tokens is {prefix}; expected the number of tokens before the patches, 0 if there "
                "are none, or None for that of the architecture."
            )

    def check_blocks(self, depth: int) -> None:
        """Refuses blocks that a backbone of `depth` blocks does not have.

        Raises:
            ValueError: `layers_to_transform` names a block that is not there.
        """
        layers = self.layers_to_transform
        if layers is not None and not set(layers) <= set(range(depth)):
            raise ValueError(
                f"{type(self).__name__}.layers_to_transform is {list(layers)}; the backbone has blocks 0 to "
                f"{depth - 1}."
            )

    def changed_blocks(self, depth: int) -> list[int] | range:
        """The blocks that the adapter changes in a backbone of `depth` blocks, in the order of their weights."""
        return range(depth) if self.layers_to_transform is None else self.layers_to_transform
