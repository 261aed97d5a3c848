"""peft's model around a segmenter, with adapters that are loaded whole or not at all."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_base_model_state_dict, get_peft_model_state_dict
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors import safe_open
from transformers.pipelines.base import SUPPORTED_PEFT_TASKS

from ..files import check_finite
from ..tuner.architectures import find_vision_encoder
from ..tuner.base import refuse_prepared
from ..tuner.recorded import check_recorded
from .backbone_path import write_relative_backbone
from .base_config import read_adapter_config
from .download import BACKBONE_FOLDER, download_adapter
from .errors import name_in_errors
from .own_card import write_own_card


MODULES_TO_SAVE = "modules_to_save"  # as peft names what holds a trained copy of a module for each adapter


class SegmenterPeftModel(PeftModel):
    """
    A segmenter with adapters of any method of peft. It is a subclass because peft reads an adapter without comparing
    what the adapter records with the model: a missing tensor stays random, an unknown one is left out, other classes
    or another crop are not noticed. Here each of these is an error, and the model stays as it was. It also saves
    adapter and backbone together.

    Args:
        model, peft_config, adapter_name: see `PeftModel`. [`rein_hf.add_rein`] and [`rein_hf.from_pretrained`] make
            such models.

    Example:

    ```py
    >>> import tempfile
    >>> from rein_hf import add_rein, build_segmenter, from_pretrained
    >>> day, night = tempfile.mkdtemp(), tempfile.mkdtemp()
    >>> for folder in (day, night):
    ...     base = build_segmenter("recipes/demo/vit", {0: "road", 1: "sky"}, image_size=256, num_queries=10)
    ...     add_rein(base).save_pretrained(folder)
    >>> model = from_pretrained(day)
    >>> _ = model.load_adapter(night, "night")
    >>> model.set_adapter("night")
    >>> model.active_adapters
    ['night']

    ```
    """

    def load_adapter(
        self,
        model_id: str | os.PathLike,
        adapter_name: str,
        is_trainable: bool = False,
        *,
        backbone: str | os.PathLike | None = None,
        **kwargs: Any,
    ):
        """Loads one more adapter, or new weights of one that is there. [`set_adapter`] switches to it.

        Args:
            model_id: folder or Hub id of an adapter of this method, backbone, crop and classes.
            adapter_name (`str`): its name in this model.
            is_trainable (`bool`): whether it is trained further.
            backbone (*optional*): name of the backbone to compare with this model's, instead of the one that the
                adapter records: of the same weights under another name.
            kwargs: `revision`, `token`, `cache_dir`, `local_files_only`, `subfolder` of the Hub; other arguments of
                `PeftModel.load_adapter`.

        Returns:
            What `PeftModel.load_adapter` does: the result of `load_state_dict`.

        Raises:
            OSError: there is no adapter, or it has no weights.
            ValueError: the adapter was trained with other classes, another crop, another backbone, another head; its
                file lacks a tensor, has an unknown or misshapen one, or one with NaN or
                infinities; what was downloaded is damaged.
        """
        names = ("token", "cache_dir", "local_files_only", "subfolder")
        hub = {name: kwargs.pop(name) for name in names if name in kwargs}
        folder = download_adapter(model_id, kwargs.pop("revision", None), **hub)
        if folder is None:
            raise OSError(f"{model_id} has no adapter_config.json; expected the folder or Hub id of an adapter.")
        with name_in_errors(model_id):
            is_new = adapter_name not in self.peft_config
            try:
                with warnings.catch_warnings():
                    if not is_new:  # whoever made the adapter of this name was told of unknown keys then
                        warnings.filterwarnings("ignore", message="Unexpected keyword arguments")
                    config = read_adapter_config(folder)
                if backbone is not None:
                    config.base_model_name_or_path = str(backbone)
                check_recorded(config, self.get_base_model(), self.peft_config if is_new else {})
                if is_new:
                    # not by peft's load_adapter, which reads a configuration without its base_config
                    self._add_for_weights(adapter_name, config, is_trainable, kwargs)
                _compare_tensors(folder / SAFETENSORS_WEIGHTS_NAME, self, adapter_name)
                return super().load_adapter(str(folder), adapter_name, is_trainable=is_trainable, **kwargs)
            except Exception:
                if is_new and adapter_name in self.peft_config:
                    self.delete_adapter(adapter_name)
                raise

    def _add_for_weights(self, adapter_name: str, config: PeftConfig, is_trainable: bool, kwargs: dict) -> None:
        """Adds an adapter whose weights are loaded next; `kwargs` are those of `load_adapter`."""
        config.inference_mode = not is_trainable
        options = {name: kwargs[name] for name in ("low_cpu_mem_usage", "autocast_adapter_dtype") if name in kwargs}
        self.add_adapter(adapter_name, config, **options)
        if is_trainable:
            self.set_requires_grad(adapter_name)

    def create_or_update_model_card(self, output_dir: str) -> None:
        """Does nothing: [`save_pretrained`] writes a card when the files are there that it tells of."""

    def train(self, mode: bool = True):
        if mode:
            refuse_prepared(self)  # before any part is in training mode
        return super().train(mode)

    def save_pretrained(self, save_directory: str | os.PathLike, with_backbone: bool = False, **kwargs: Any) -> None:
        """Saves the adapters, the head among them, and on demand the backbone.

        A backbone on the disk is named by its path from the adapter's folder, so that both can be moved together.
        `README.md` says what the adapter is (see [`rein_hf.hub.own_card`]), unless a person has written one.

        Args:
            save_directory: folder of the adapter; a folder in it for each further one.
            with_backbone (`bool`): whether to save the backbone as well, into the folder `backbone`, where
                [`rein_hf.from_pretrained`] finds it: then nothing else is needed to load the model.
            kwargs: further arguments of `PeftModel.save_pretrained`.

        Raises:
            ValueError: weights to be saved were cast to half precision: the head's, as by `prepare_for_inference` with
                a type, or the backbone's, if it is to be saved, as they are while a run in bfloat16 trains.
        """
        types = {name: getattr(module, "autocast_dtype", None) for name, module in self.named_modules()}
        cast = {dtype for dtype in types.values() if dtype}
        of_head = {dtype for name, dtype in types.items() if dtype and f".{MODULES_TO_SAVE}." in name}
        if of_head:
            raise ValueError(
                f"The head's weights were cast to {of_head.pop()} (by prepare_for_inference with this type): they "
                "would be saved rounded. Save a model that rein_hf.from_pretrained has loaded anew."
            )
        if with_backbone and cast:
            raise ValueError(
                f"with_backbone is true, and the backbone's weights were cast to {cast.pop()} (by a run in this "
                "precision, or by cast_frozen_weights): they would be saved rounded. Save the adapter alone, load it "
                "with rein_hf.from_pretrained, and save that with_backbone."
            )
        # no embedding of words is there to be saved, and by default peft asks the Hub whether there is
        kwargs.setdefault("save_embedding_layers", False)
        super().save_pretrained(save_directory, **kwargs)
        if not kwargs.get("is_main_process", True):
            return
        for name in kwargs.get("selected_adapters") or self.peft_config:
            folder = Path(save_directory, "" if name == "default" else name)
            write_relative_backbone(folder)
            write_own_card(folder)
        if with_backbone:
            encoder, tensors = find_vision_encoder(self.get_base_model()), get_base_model_state_dict(self)
            prefix = f"{encoder.name}."
            weights = {name.removeprefix(prefix): tensors[name] for name in tensors if name.startswith(prefix)}
            encoder.model.save_pretrained(Path(save_directory, BACKBONE_FOLDER), state_dict=weights)


def load_adapter_onto(base: torch.nn.Module, folder: Path, config: PeftConfig) -> SegmenterPeftModel:
    """The base with the adapter of a folder, or an error; see [`SegmenterPeftModel.load_adapter`]."""
    return SegmenterPeftModel.from_pretrained(base, str(folder), config=config)


def _compare_tensors(weights: Path, model: PeftModel, adapter_name: str) -> None:
    """Compares the tensors in a file, by name and shape, with those that the adapter has.

    Raises:
        ValueError: they differ; one holds NaN or infinities.
    """
    with safe_open(weights, "pt") as file:
        found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
    expected = get_peft_model_state_dict(model, adapter_name=adapter_name, save_embedding_layers=False)
    expected = {name: tuple(tensor.shape) for name, tensor in expected.items()}
    missing, unknown = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    if missing or unknown:
        raise ValueError(
            f"{weights} is not the adapter that its configuration describes: missing {missing[:3]}, unknown "
            f"{unknown[:3]}."
        )
    misshapen = [f"{name} {found[name]}, expected {expected[name]}" for name in found if found[name] != expected[name]]
    if misshapen:
        raise ValueError(
            f"{weights} is not the adapter that its configuration describes: misshapen {'; '.join(misshapen[:3])}."
        )
    with safe_open(weights, "pt") as file:
        check_finite(((name, file.get_tensor(name)) for name in file.keys()), weights)


# The table of adapted models that a pipeline of transformers knows, and calls others unsupported.
SUPPORTED_PEFT_TASKS.setdefault("image-segmentation", []).append(SegmenterPeftModel.__name__)
