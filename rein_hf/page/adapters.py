"""Adapters that a page switches between, on one backbone in memory."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import AutoImageProcessor

from ..backbone import backbone_of
from ..hub import describe
from ..inference import prepare_for_inference
from ..labels import class_names_of, palette_of_model
from ..loading import from_pretrained
from ..views import rein_layers


@dataclass(frozen=True)
class AdapterFacts:
    """What the page says of one adapter.

    Args:
        name (`str`): what the page calls it.
        method (`str`): "Rein" or another; "whole segmenter" if there is no adapter.
        adapter_parameters, head_parameters, backbone_parameters (`int`): how many there are.
        explains (`bool`): whether there is a view of what it does in each block.
    """

    name: str
    method: str
    adapter_parameters: int
    head_parameters: int
    backbone_parameters: int
    explains: bool


class Adapters:
    """One model with several adapters.

    Args:
        sources: folders or Hub ids of adapters, or of one whole segmenter.
        backbone (*optional*): folder or Hub id of the backbone, instead of the one that the adapters name.
        device (*optional*): "cpu", "cuda" or another of torch's; a GPU by default, if there is one.

    Attributes:
        model: with the adapter that was chosen last.
        facts: by name.
        classes: name and colour (R, G, B) of each class, by id.
        crop (`int`): side of the windows in which the model sees photos.

    Raises:
        OSError: an adapter is not there.
        ValueError: adapters do not fit onto one model, or one cannot be loaded; see [`rein_hf.from_pretrained`].
    """

    def __init__(
        self,
        sources: Sequence[str | os.PathLike],
        backbone: str | os.PathLike | None = None,
        device: str | None = None,
    ) -> None:
        if not sources:
            raise ValueError("no adapter is given; expected one folder or Hub id at least.")
        twice = sorted({str(source) for source in sources if list(map(str, sources)).count(str(source)) > 1})
        if twice:
            raise ValueError(f"{', '.join(twice)} is given twice; expected each adapter once.")
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        model = from_pretrained(sources[0], backbone, device_map=None if device == "cpu" else device)
        self.model = prepare_for_inference(model)
        if len(sources) > 1 and not isinstance(self.model, PeftModel):
            raise ValueError(
                f"{sources[0]} is a whole segmenter, onto which no adapter is loaded; expected it alone, or adapters."
            )
        names = display_names(sources)
        self._keys, self._processors, self.facts = {}, {}, {}
        for index, (name, source) in enumerate(zip(names, sources, strict=True)):
            # peft's name of it: the first has its own, and names of ours may hold dots, which peft refuses
            self._keys[name] = "default" if index == 0 else f"adapter_{index}"
            if index:
                try:
                    self.model.load_adapter(source, self._keys[name], backbone=backbone)
                except ValueError as error:
                    raise ValueError(
                        f"{error} Adapters of one page share one model; show this one on a page of its own."
                    ) from error
            self._processors[name] = AutoImageProcessor.from_pretrained(source)
            self.use(name)
            self.facts[name] = _facts(name, self._keys[name], source, self.model)
        self.model.eval()
        class_names = class_names_of(self.model.config.id2label, f"{sources[0]}: id2label")
        self.classes = tuple(zip(class_names, palette_of_model(self.model.config), strict=True))
        self.crop = self.model.config.backbone_config.backbone_config.image_size
        self.use(names[0])

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._keys)

    @property
    def device(self) -> str:
        """What the model runs on, in words: "CPU", or the GPU's name."""
        device = self.model.device
        return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()

    def use(self, name: str) -> Any:
        """Switches to an adapter; gives its image processor."""
        if isinstance(self.model, PeftModel):
            # frozen: on a CPU the last bit of a product depends on whether weights require gradients
            self.model.set_adapter(self._keys[name], inference_mode=True)
        self.model.requires_grad_(False)
        return self._processors[name]


def display_names(sources: Sequence[str | os.PathLike]) -> list[str]:
    """What a page calls adapters: a Hub id as it is, a folder by its own name, with those of folders above it only
    where two would have one name.

    Example:

    ```py
    >>> from rein_hf.page.adapters import display_names
    >>> display_names(["runs/day/rein", "runs/night/rein", "user/frozen"])
    ['day/rein', 'night/rein', 'user/frozen']

    ```
    """
    parts = []
    for source in sources:
        is_id = not os.path.exists(source) and str(source).count("/") == 1
        parts.append((str(source),) if is_id else Path(source).resolve().parts)
    names = []
    for own in parts:
        others, depth = [other for other in parts if other != own], 1
        while depth < len(own) and any(other[-depth:] == own[-depth:] for other in others):
            depth += 1
        names.append("/".join(own[-depth:]))
    return names


def _facts(name: str, key: str, source: str | os.PathLike, model: nn.Module) -> AdapterFacts:
    """Of the active adapter, whose name in peft is `key`."""
    backbone = backbone_of(model)
    if not isinstance(model, PeftModel):
        in_backbone = sum(parameter.numel() for parameter in backbone.parameters())
        head = sum(parameter.numel() for parameter in model.parameters()) - in_backbone
        return AdapterFacts(name, "whole segmenter", 0, head, in_backbone, False)
    sizes = {f".{path}.": parameter.numel() for path, parameter in model.named_parameters()}
    tuned = f".{model.base_model.prefix}"
    in_backbone = sum(parameter.numel() for path, parameter in backbone.named_parameters() if tuned not in f".{path}")
    try:
        about = describe(source)
        method, own, head = about.method, about.rein_parameters, about.head_parameters
    except ValueError:  # of another method, LoRA for one
        method = model.peft_config[key].peft_type.value
        own = sum(size for path, size in sizes.items() if tuned in path and f".{key}." in path)
        head = sum(size for path, size in sizes.items() if f".modules_to_save.{key}." in path)
    try:
        explains = bool(rein_layers(model))
    except ValueError:
        explains = False
    return AdapterFacts(name, method, own, head, in_backbone, explains)
