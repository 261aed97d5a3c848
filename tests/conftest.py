"""Tiny models, random but seeded; nothing is downloaded."""

import os


os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

from pathlib import Path

import pytest
import torch

import rein_hf
from tests.runs import HEAD, write_recipe, write_vit


def perturb(model: torch.nn.Module, seed: int = 0) -> None:
    """Moves every trainable weight, so that a tensor lost on the way would be seen."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


@pytest.fixture(scope="session")
def vit_folder(tmp_path_factory) -> str:
    """A `Dinov2Model` checkpoint of patch 14 and image 56, as Meta's are of patch 14 and image 518."""
    return str(write_vit(tmp_path_factory.mktemp("vit")))


@pytest.fixture
def recipe(vit_folder, tmp_path) -> Path:
    """A recipe file of four steps on six painted rectangles."""
    return write_recipe(tmp_path, vit_folder)


@pytest.fixture
def build(vit_folder):
    """A function that builds the tiny segmenter: three classes, eight queries, crops of 64."""

    def build(**kwargs):
        arguments = {"id2label": {0: "road", 1: "car", 2: "sky"}, "image_size": 64, "num_queries": 8, "head": HEAD}
        torch.manual_seed(0)
        return rein_hf.build_segmenter(vit_folder, **{**arguments, **kwargs})

    return build


@pytest.fixture
def segmenter(build):
    return build()


@pytest.fixture
def rein_model(segmenter):
    """The tiny segmenter with Rein, every trainable weight moved away from its initial value."""
    model = rein_hf.add_rein(segmenter, rein_hf.ReinConfig(r=4, num_tokens=8))
    perturb(model)
    return model.eval()


@pytest.fixture
def pixel_values():
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
