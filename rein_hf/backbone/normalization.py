"""The mean and deviation by which a backbone's images are normalised."""

from __future__ import annotations

import os

from transformers import BaseImageProcessor, PreTrainedConfig
from transformers.utils import IMAGE_PROCESSOR_NAME, cached_file

from ..tuner.architectures import ARCHITECTURES


def own_normalization(pretrained: str | os.PathLike, **hub) -> dict[str, list[float]]:
    """The mean and deviation of a checkpoint's own image processor, if checkpoints of its architecture differ in them:
    those of DINOv3 that were trained on satellite images have others than those trained on photos.

    Args:
        pretrained: local folder or Hub id of a checkpoint.
        hub: `revision`, `token`, `cache_dir`, `local_files_only` of the Hub.

    Returns:
        `image_mean` and `image_std`, a number from 0 to 1 for each channel; nothing where ImageNet's hold, or the
        checkpoint has no image processor.

    Raises:
        OSError: the checkpoint cannot be found.
        ValueError: its image processor has no mean and deviation of three channels.
    """
    config, _ = PreTrainedConfig.get_config_dict(pretrained, **hub)
    if not config:
        raise OSError(f"{pretrained} has no config.json; expected the folder or Hub id of a checkpoint.")
    architecture = ARCHITECTURES.get(config.get("model_type"))
    if architecture is None or not architecture.own_normalization:
        return {}
    if cached_file(pretrained, IMAGE_PROCESSOR_NAME, _raise_exceptions_for_missing_entries=False, **hub) is None:
        return {}
    values, _ = BaseImageProcessor.get_image_processor_dict(pretrained, **hub)
    found = {name: values.get(name) for name in ("image_mean", "image_std")}
    for name, numbers in found.items():
        if not isinstance(numbers, list) or len(numbers) != 3 or not all(0 < number < 1 for number in numbers):
            raise ValueError(
                f"{pretrained}: {name} in {IMAGE_PROCESSOR_NAME} is {numbers}; expected three numbers between 0 and 1."
            )
    return found
