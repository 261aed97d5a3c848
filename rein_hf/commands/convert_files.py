"""Files of the authors' code and folders of adapters, as `convert.py` reads, writes and compares them."""

from __future__ import annotations

import os
import pickle
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import PeftConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from transformers import Dinov2Config, Dinov2Model, Mask2FormerForUniversalSegmentation

import rein_hf

from .. import ReinConfig
from ..reference import Tensors


PEFT_PREFIX = "base_model.model."


def read_tensors(path: str | os.PathLike, key: str = "state_dict") -> Tensors:
    """The tensors of a .pth file, or of the `state_dict` in it, as float32. `key`: of another dictionary in it, whose
    names have `module.` before them."""
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path} is no file; expected a checkpoint of the authors' code (.pth).")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        code = re.search(r"GLOBAL (\S+)", str(error))
        found = f"pickled code ({code[1]})" if code else "something else than PyTorch's format"
        raise ValueError(f"{path} holds {found}; only files of tensors are read. Nothing in it was run.") from error
    except Exception as error:  # a damaged file ends in any of a dozen types
        reason = str(error).partition(". ")[0]
        raise ValueError(f"{path} is truncated or no PyTorch file ({type(error).__name__}: {reason}).") from error
    tensors = content.get(key, content if key == "state_dict" else None) if isinstance(content, dict) else None
    if key != "state_dict":
        if not isinstance(tensors, dict):
            raise ValueError(f"{path} holds no {key}; leave --weights {key} out.")
        steps = {"steps"}  # their number of updates
        tensors = {name.removeprefix("module."): x for name, x in tensors.items() if name not in steps}
    if not isinstance(tensors, dict) or not tensors:
        raise ValueError(f"{path} holds no state dict; expected names with tensors, or `state_dict` with them.")
    wrong = [f"{name!r}: {type(x).__name__}" for name, x in tensors.items() if not isinstance(x, torch.Tensor)]
    wrong += [
        f"{name}: {x.dtype}, or not finite"
        for name, x in tensors.items()
        if isinstance(x, torch.Tensor) and not (x.is_floating_point() and x.isfinite().all())
    ]
    if wrong:
        raise ValueError("\n  ".join([f"{path}: expected finite floating point tensors; found", *wrong]))
    return {name: x.float() for name, x in tensors.items()}


def write_backbone(vit: Dinov2Config, weights: Tensors, folder: Path) -> None:
    model = Dinov2Model(vit)
    model.load_state_dict(weights)
    model.save_pretrained(folder)


def write_adapter(
    base: Mask2FormerForUniversalSegmentation, config: PeftConfig, adapter: Tensors, backbone: str, folder: Path
) -> None:
    """Saves the adapter of a model, Rein or a LoRA, and the name of the backbone that it belongs to."""
    base.name_or_path = base.config.name_or_path = base.config.backbone_config.backbone_config.name_or_path = backbone
    model = rein_hf.add_rein(base, config) if isinstance(config, ReinConfig) else rein_hf.add_adapter(base, config)
    set_peft_model_state_dict(model, {PEFT_PREFIX + name: tensor for name, tensor in adapter.items()})
    model.save_pretrained(folder, save_embedding_layers=False)
    rein_hf.build_image_processor().save_pretrained(folder)


def split_tensors(model: PeftModel) -> tuple[Tensors, Tensors]:
    """The adapter's tensors and the backbone's, by our names. The adapter is gone from the model after it."""
    adapter = get_peft_model_state_dict(model, save_embedding_layers=False)
    adapter = {name.removeprefix(PEFT_PREFIX): tensor for name, tensor in adapter.items()}
    return adapter, model.unload().model.pixel_level_module.encoder.vit.state_dict()


def check_equal(expected: Tensors, found: Tensors) -> None:
    names = [name for name in expected if name not in found or not torch.equal(expected[name], found[name])]
    names += [name for name in found if name not in expected]
    if names:
        raise ValueError("\n  ".join(["these tensors came back changed, nothing was written:", *names]))


def print_counts(title: str, tensors: Iterable[torch.Tensor]) -> None:
    sizes = [tensor.numel() for tensor in tensors]
    print(f"{title}: {len(sizes)} tensors, {sum(sizes):,} parameters")


def new_folder(path: str | os.PathLike) -> Path:
    path = Path(os.path.abspath(path))
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FileExistsError(f"{path} is there already; expected a new or an empty folder.")
    return path


def replace_folder(source: Path, target: Path) -> None:
    if target.exists():
        target.rmdir()  # empty, see new_folder; moving would put the source into it
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(source, target)


@contextmanager
def staging_folder(output_dir: Path) -> Iterator[Path]:
    """A folder beside the output, moved there when all is right and gone otherwise."""
    output_dir.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output_dir.parent, prefix=f".{output_dir.name}-") as stage:
        yield Path(stage)
