"""Tiny models, random but seeded; nothing is downloaded."""

import os


os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import pytest
import torch
from transformers import Dinov2Config, Dinov2Model

import rein_hf
from tests.hub_client import HubClient
from tests.hub_server import HubServer


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
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("vit")
    config = Dinov2Config(
        hidden_size=32, num_hidden_layers=4, num_attention_heads=2, image_size=56, patch_size=14, layerscale_value=1.0
    )
    Dinov2Model(config).save_pretrained(folder)
    return str(folder)


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


@pytest.fixture
def adapter_folder(rein_model, tmp_path):
    """What is uploaded of `rein_model`: adapter, naming its backbone by its Hub id, and image processor."""
    rein_model.peft_config["default"].base_model_name_or_path = "user/vit"
    rein_model.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    rein_hf.build_image_processor().save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.fixture(scope="session")
def hub_and_client(tmp_path_factory):
    with HubServer() as hub:
        client = HubClient(hub, tmp_path_factory.mktemp("home"))
        yield hub, client
        client.close()


@pytest.fixture
def hub(hub_and_client, vit_folder, adapter_folder):
    """A Hub on this machine with the tiny backbone `user/vit` and the adapter `user/adapter`."""
    hub, _ = hub_and_client
    hub.clear()
    hub.add("user/vit", vit_folder)
    hub.add("user/adapter", adapter_folder)
    return hub


@pytest.fixture
def client(hub_and_client):
    """A process that loads models from `hub`."""
    return hub_and_client[1]
