"""A tiny run of recipes/train.py: its backbone, its data and its recipe file."""

from pathlib import Path

import numpy as np
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from transformers import Dinov2Config, Dinov2Model

from rein_hf.commands import train


HEAD = {
    "feature_size": 32,
    "mask_feature_size": 32,
    "hidden_dim": 32,
    "encoder_layers": 1,
    "decoder_layers": 3,
    "encoder_feedforward_dim": 48,
    "dim_feedforward": 48,
    "num_attention_heads": 4,
    "train_num_points": 64,
}


def write_vit(folder: Path) -> Path:
    """A `Dinov2Model` checkpoint of patch 14 and image 56, as Meta's are of patch 14 and image 518."""
    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=32, num_hidden_layers=4, num_attention_heads=2, image_size=56, patch_size=14, layerscale_value=1.0
    )
    Dinov2Model(config).save_pretrained(folder)
    return folder


def write_recipe(folder: Path, vit: str, **values) -> Path:
    """A recipe file of four steps on six images of rectangles; `values` replace its own."""
    rng = np.random.default_rng(0)
    data = folder / "data"
    (data / "images").mkdir(parents=True)
    (data / "labels").mkdir()
    for index in range(6):
        label = np.zeros((72, 96), np.uint8)
        label[: rng.integers(10, 60)] = 10
        label[20:50, 10 : rng.integers(30, 90)] = 13
        image = np.stack([label * 15, 255 - label, rng.integers(0, 255, label.shape)], -1).astype(np.uint8)
        Image.fromarray(image).save(data / "images" / f"{index}.png")
        Image.fromarray(label).save(data / "labels" / f"{index}.png")
    recipe = {
        "backbone": str(vit),
        "train": [str(data)],
        "evaluate": [f"seen={data}"],
        "crop": 64,
        "num_queries": 8,
        "head": HEAD,
        "rein": {"r": 4},
        "max_steps": 4,
        "total_batch_size": 2,
        "save_steps": 2,
        "eval_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "output_dir": str(folder / "out"),
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump({**recipe, **values}))
    return path


def run_recipe(recipe: Path, *overrides: str):
    """Does in this process what `python recipes/train.py RECIPE OVERRIDES` does."""
    return train.main(*train.parse([str(recipe), *overrides]))


def adapter_weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(Path(folder) / "adapter_model.safetensors")


def equal_adapters(one: Path, other: Path) -> bool:
    """Whether two folders hold the same adapter, bit for bit."""
    one, other = adapter_weights(one), adapter_weights(other)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
