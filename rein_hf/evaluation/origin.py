"""What results come from: the weights of a model, the images of a domain. A run that is resumed compares them."""

from __future__ import annotations

import json
import zlib
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from torch import nn

from ..backbone import backbone_of


if TYPE_CHECKING:
    from ..data import Domain


def weights_checksum(model: nn.Module) -> str:
    """CRC-32 of a segmenter's parameters and buffers, eight hexadecimal digits; a gigabyte takes about 0.2 s.

    Of a segmenter with an adapter those of the backbone and what is saved of the adapter, since the layers that its
    head replaces are still there, with weights of no meaning.
    """
    if isinstance(model, PeftModel):
        saved = get_peft_model_state_dict(model, save_embedding_layers=False)
        weights = {**backbone_of(model).state_dict(prefix="backbone."), **saved}
    else:
        weights = model.state_dict()
    checksum = 0
    for name, tensor in sorted(weights.items()):
        checksum = zlib.crc32(name.encode(), checksum)
        values = tensor.detach().contiguous().flatten().view(torch.uint8)
        checksum = zlib.crc32(values.cpu().numpy(), checksum)
    return f"{checksum:08x}"


def origin_of(domain: Domain, spec: str) -> dict[str, Any]:
    """What is evaluated under a domain's name, as JSON: its description, how many images, and their size if it is not
    their own."""
    origin: dict[str, Any] = {"data": spec}
    if not domain.is_streamed:
        origin["images"] = len(domain.dataset)
    if domain.size is not None:
        origin["size"] = "{}x{}".format(*domain.size)
    return origin


def comment_of_maps(model: nn.Module, options: dict[str, Any]) -> str:
    """What label maps come from, to be written into their files: a model's weights, and options that are not None or
    False."""
    options = {key: value for key, value in options.items() if value is not None and value is not False}
    return json.dumps({"weights": weights_checksum(model), **options})


def is_comment_of_maps(text: str | None) -> bool:
    """Whether a file's comment is one of [`comment_of_maps`], of whatever model and options.

    Example:

    ```py
    >>> from rein_hf.evaluation.origin import is_comment_of_maps
    >>> is_comment_of_maps('{"weights": "0123abcd", "crop": 512}'), is_comment_of_maps("Made by a camera")
    (True, False)

    ```
    """
    try:
        found = json.loads(text or "")
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict) and "weights" in found
