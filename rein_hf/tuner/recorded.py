"""What an adapter records of the model that it was trained in, compared with the model that it is put into."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterator
from typing import Any

from peft import PeftConfig
from torch import nn
from transformers import PreTrainedConfig


# Keys of a configuration on which the outputs of a trained model do not depend: bookkeeping, losses, initialisation.
# A name with dots is that of one place, others are of any.
IRRELEVANT = {
    *("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "label2id", "stage_names"),
    "palette",
    *("chunk_size_feed_forward", "is_encoder_decoder", "output_attentions", "output_hidden_states", "problem_type"),
    *("return_dict", "use_cache", "output_auxiliary_logits", "use_auxiliary_loss", "auxiliary_loss_weight"),
    *("class_weight", "mask_weight", "dice_weight", "no_object_weight", "ignore_value", "loss_ignore_index"),
    *("train_num_points", "oversample_ratio", "importance_sample_ratio"),
    *("init_std", "init_xavier_std", "initializer_range", "initializer_factor", "layerscale_value"),
    # of a vision transformer that is a backbone of its own, which it is not in here
    *("apply_layernorm", "reshape_hidden_states"),
    *(f"backbone_config.backbone_config.{name}" for name in ("out_features", "out_indices")),
    # at work in training alone
    *("dropout", "attention_dropout", "hidden_dropout_prob", "attention_probs_dropout_prob", "drop_path_rate"),
}
CLASSES = "id2label"


class BaseModelError(Exception):
    """An adapter of a whole segmenter is put onto something else, e.g. onto its bare backbone.

    Not a `ValueError`: a pipeline of transformers tries one class of models after the other, and hides the
    `ValueError` of each in a text of many pages.
    """


def check_model_types(recorded: Any, model_config: Any) -> None:
    """Compares the kinds of the models around a backbone.

    Args:
        recorded: `base_config` of an adapter; those of a bare backbone are not compared.
        model_config: configuration of the model that the adapter is put into, an object or a dictionary.

    Raises:
        BaseModelError: they differ.
    """
    if not _is_segmenter(recorded):
        return
    if hasattr(model_config, "to_dict"):
        model_config = model_config.to_dict()
    expected, found = list(_model_types(recorded)), list(_model_types(model_config))
    if expected != found:
        raise BaseModelError(
            f"Use rein_hf.from_pretrained to load this adapter: it belongs to a whole segmenter, {_nested(expected)}, "
            f"and not to the {_nested(found) or 'model'} found, and rein_hf.from_pretrained builds that segmenter."
        )


def check_recorded(config: PeftConfig, model: nn.Module, others: dict[str, PeftConfig]) -> None:
    """Compares what an adapter of a segmenter records with the segmenter that it is put into.

    Args:
        config: of the adapter; without a `base_config`, or with that of a bare backbone, only its backbone's name is
            compared.
        model: the segmenter, with its `config`.
        others: configurations of the adapters that the segmenter has already, by name.

    Raises:
        BaseModelError: the model is no such segmenter.
        ValueError: they differ in something that the outputs depend on: classes, crop, patch, blocks, sizes; or the
            adapters are of different backbones.
    """
    recorded, model_config = getattr(config, "base_config", None), getattr(model, "config", None)
    if _is_segmenter(recorded):
        check_model_types(recorded, model_config)
        if lines := differences(recorded, model_config):
            raise ValueError(
                "This adapter was trained in another model than the one found here. Load it into a model of its own, "
                f"with rein_hf.from_pretrained. What differs: {'; '.join(lines)}."
            )
    if others:
        _check_backbone_name(config, model, others)


def differences(recorded: dict[str, Any], model_config: PreTrainedConfig) -> list[str]:
    """What the outputs depend on and differs between a recorded configuration and a model's, a line each.

    Raises:
        ValueError: what was recorded is no configuration of that kind.
    """
    return [
        f"{'classes' if key == CLASSES else key} {expected} in the adapter, {found} in the model"
        for key, (expected, found) in differing_values(recorded, model_config).items()
    ]


def differing_values(recorded: dict[str, Any], model_config: PreTrainedConfig) -> dict[str, tuple[Any, Any]]:
    """The values of [`differences`], the recorded one and the model's, by the names that lead to them. The names of
    the classes, as lists, are under "id2label"."""
    try:
        expected = _plain(type(model_config).from_dict(copy.deepcopy(recorded)))
    except Exception as error:  # values of a wrong kind end in any of a dozen types
        raise ValueError(
            f"base_config in adapter_config.json is no {type(model_config).__name__} ({type(error).__name__}): {error}"
        ) from error
    found, differing = _plain(model_config), {}
    names, names_here = expected.pop(CLASSES, None), found.pop(CLASSES, None)
    if names != names_here:
        differing[CLASSES] = _class_names(names), _class_names(names_here)
    expected, found = dict(_flatten(expected)), dict(_flatten(found))
    for key in sorted(expected.keys() | found.keys()):
        if expected.get(key) != found.get(key):
            differing[key] = expected.get(key), found.get(key)
    return differing


def _check_backbone_name(config: PeftConfig, model: nn.Module, others: dict[str, PeftConfig]) -> None:
    """The backbone itself cannot be compared, since an adapter holds nothing of it; its name can."""
    name = config.base_model_name_or_path
    known = [other.base_model_name_or_path for other in others.values()] + [getattr(model, "name_or_path", None)]
    known = [of_other for of_other in dict.fromkeys(known) if of_other]
    if name and known and not any(_is_same_place(name, of_other) for of_other in known):
        raise ValueError(
            f"This adapter was trained on the backbone {name}; the model's is {' or '.join(known)}. Load it into a "
            "model of its own, with rein_hf.from_pretrained. If both are the same weights under two names, pass "
            f"load_adapter(..., backbone={known[0]!r}), or write that name as base_model_name_or_path into its "
            "adapter_config.json."
        )


def _is_same_place(one: str, other: str) -> bool:
    if os.path.isdir(one) and os.path.isdir(other):
        return os.path.samefile(one, other)
    if str(one).startswith(("./", "../")) != str(other).startswith(("./", "../")):
        # one counts from the adapter's folder, which peft and transformers do not say: only its last part can be known
        return os.path.basename(os.path.normpath(one)) == os.path.basename(os.path.normpath(other))
    return str(one) == str(other)


def _is_segmenter(recorded: Any) -> bool:
    return isinstance(recorded, dict) and bool(recorded.get("backbone_config"))


def _model_types(config: Any) -> Iterator[str | None]:
    """The model types of a segmenter, of its backbone, and so on inwards."""
    while isinstance(config, dict):
        yield config.get("model_type")
        config = config.get("backbone_config")


def _nested(model_types: list[str | None]) -> str:
    return " on a ".join(map(str, model_types))


def _class_names(id2label: dict | None) -> list | dict | None:
    return list(id2label.values()) if isinstance(id2label, dict) else id2label


def _plain(config: PreTrainedConfig) -> dict[str, Any]:
    """A configuration with all its values, as it would be read from a file."""
    return json.loads(config.to_json_string(use_diff=False))


def _flatten(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values that matter, by the names that lead to them. The classes of inner models are of no use here."""
    for key, value in values.items():
        if key in IRRELEVANT or prefix + key in IRRELEVANT or key == CLASSES:
            continue
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
