"""The vision transformer inside the backbone: loaded from a checkpoint, resampled to other sizes, or newly built."""

from __future__ import annotations

import copy
import os
from pathlib import Path

import torch
from huggingface_hub.constants import ENDPOINT
from huggingface_hub.errors import GatedRepoError
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig

from ..files import check_finite, check_no_pointer
from ..tuner.architectures import ARCHITECTURES, VisionEncoder, find_vision_encoder, unknown_architecture
from .positions import use_any_size_modules
from .resampling import resample


# A hierarchical transformer has no single patch size. The stride of its third feature map takes its place.
HIERARCHICAL_PATCH = 16

# Set in every configuration: a frozen backbone must give the same features in training as in evaluation.
NO_DROPOUT = {
    "drop_path_rate": 0.0,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "attention_dropout": 0.0,
    "pos_embed_shift": None,
    "pos_embed_jitter": None,
    "pos_embed_rescale": None,
}


def load_vit(
    pretrained: str | os.PathLike, image_size: int, patch_size: int, **kwargs
) -> tuple[PreTrainedConfig, dict[str, torch.Tensor]]:
    """Loads a pretrained vision transformer and resamples it to an image size and a patch size.

    Args:
        pretrained: local folder or Hub id of a checkpoint. It is a vision transformer of one of the architectures of
            `tuner.architectures.ARCHITECTURES`, or contains one, as a CLIP or a SAM does.
        image_size (`int`): side in pixels of the square images that its positions are resampled to.
        patch_size (`int`): side in pixels of a patch.
        kwargs: further arguments of `AutoModel.from_pretrained` (`dtype`, `revision`, `token`, ...).

    Returns:
        The configuration, with the new sizes and without dropout, and the state dict, see [`resample_to`].

    Raises:
        OSError: the checkpoint cannot be found; its repository is gated, and nobody is logged in who may read it.
        ValueError: the checkpoint holds no such vision transformer, or lacks weights of it, or has NaN or
            infinities among them, or is a pointer of git-lfs; the image size is not a
            multiple of the patch size; the architecture cannot be resampled to this patch size.
    """
    if image_size % patch_size:
        raise ValueError(f"image_size is {image_size}; expected a multiple of patch_size {patch_size}.")
    check_no_pointer(*Path(pretrained).glob("*.safetensors"))
    try:
        # none of these architectures needs code from the Hub; without this transformers may ask whether to run some
        model, report = AutoModel.from_pretrained(
            pretrained, output_loading_info=True, trust_remote_code=False, **kwargs
        )
    except OSError as error:
        if isinstance(error.__cause__, GatedRepoError):
            raise OSError(
                f"{pretrained} is a gated repository. Accept its licence at {ENDPOINT}/{pretrained}, wait until "
                "access is granted, and log in with `hf auth login`, or pass token=...; a folder to which it was "
                f"downloaded works, too. {error}"
            ) from error
        raise
    encoder = find_vision_encoder(model)
    if encoder is None:
        raise ValueError(
            f"{pretrained} holds a {type(model).__name__}, whose {unknown_architecture(model.config.model_type)}."
        )
    config, weights = resample_to(encoder.model.config, encoder.model.state_dict(), image_size, patch_size)
    # transformers only warns about weights that a checkpoint lacks, and leaves them random
    missing = sorted({f"{encoder.name}.{name}".lstrip(".") for name in weights} & set(report["missing_keys"]))
    if missing:
        raise ValueError(f"{pretrained} lacks weights of its {type(encoder.model).__name__}: {', '.join(missing)}.")
    check_finite(((f"{encoder.name}.{name}".lstrip("."), tensor) for name, tensor in weights.items()), pretrained)
    return config, weights


def resample_to(
    config: PreTrainedConfig, state_dict: dict[str, torch.Tensor], image_size: int, patch_size: int
) -> tuple[PreTrainedConfig, dict[str, torch.Tensor]]:
    """Resamples a vision transformer to an image size and a patch size.

    Args:
        config: its configuration.
        state_dict: its weights.
        image_size, patch_size (`int`): sides in pixels.

    Returns:
        The configuration, with the new sizes and without dropout (a frozen backbone must give the same features in
        training as in evaluation), and the resampled weights, without those that only pre-training uses.

    Raises:
        ValueError: the architecture is hierarchical, with fixed strides, and `patch_size` is not 16.
    """
    config = copy.deepcopy(feature_config(config))
    architecture = ARCHITECTURES[config.model_type]
    if architecture.in_stages(config.to_dict()) and patch_size != HIERARCHICAL_PATCH:
        raise ValueError(
            f"patch_size is {patch_size}; a {config.model_type} has strides of its own, as of {HIERARCHICAL_PATCH}."
        )
    config.update({"image_size": image_size, "patch_size": patch_size})
    config.update({name: value for name, value in NO_DROPOUT.items() if hasattr(config, name)})
    if hasattr(config, "use_mask_token"):
        config.use_mask_token = False
    with torch.device("meta"):
        expected = build_vit(config).model.state_dict()
    kinds = architecture.resampled
    weights = {}
    for name in (name for name in expected if name in state_dict):
        kind = next((kinds[end] for end in kinds if name.endswith(end)), None)
        weights[name] = state_dict[name]
        if kind is not None:
            weights[name] = resample(weights[name], expected[name].shape, kind, architecture.class_tokens)
    return config, weights


def build_vit(config: PreTrainedConfig) -> VisionEncoder:
    """A new vision transformer with random weights that accepts images of any size. Modules after its blocks that no
    feature needs, such as poolers, are left out."""
    # in the dtype in which the surrounding model is being built; its configuration may record another one
    encoder = find_vision_encoder(AutoModel.from_config(config, dtype=torch.get_default_dtype()))
    for name in encoder.architecture.unused:
        if hasattr(encoder.model, name):
            setattr(encoder.model, name, nn.Identity())
    use_any_size_modules(encoder.model)
    return encoder


def feature_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """The configuration with which transformers builds this network as a feature extractor. It differs from `config`
    where the architecture's own model does something else, as a masked autoencoder does.

    Raises:
        ValueError: the architecture is unknown.
    """
    if config.model_type not in ARCHITECTURES:
        raise ValueError(f"The backbone's {unknown_architecture(config.model_type)}.")
    model_type = ARCHITECTURES[config.model_type].loaded_as
    if model_type is None:
        return config
    known = AutoConfig.for_model(model_type).to_dict().keys() - {"model_type", "architectures"}
    return AutoConfig.for_model(model_type, **{k: v for k, v in config.to_dict().items() if k in known})
