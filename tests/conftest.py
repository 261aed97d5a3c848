"""Settings of the whole suite, and its fixtures: tiny models with seeded random weights; nothing is downloaded."""

import os


os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
# One thread, here and in the processes that tests start: the last bit of a sum depends on the number of threads, and
# runs are compared bit for bit.
os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"
os.environ.setdefault("TRITON_INTERPRET", "1")  # kernels for GPUs run on the CPU

import copy
import gc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from peft import PeftConfig, PeftModel, get_peft_model
from transformers import AutoModel

import rein_hf
from tests.support.hub_client import HubClient
from tests.support.hub_server import HubServer
from tests.support.models import BuiltOnce, perturb
from tests.support.runs import HEAD, write_recipe, write_vit


torch.set_num_threads(1)  # if a plugin has imported torch before the variables were set


def keep_from_garbage_collector() -> None:
    """Takes all objects that there are now out of what the garbage collector looks through: each training run collects
    garbage, which would take longer than the run."""
    gc.collect()
    gc.freeze()


def pytest_collection_finish(session):
    keep_from_garbage_collector()  # imported modules


@pytest.fixture(scope="module", autouse=True)
def caches_of_libraries():
    """What a file of tests leaves behind when its fixtures have ended: caches, above all those of torch.compile."""
    yield
    keep_from_garbage_collector()


def pytest_unconfigure(config):
    gc.unfreeze()


@pytest.fixture(scope="session")
def vit_folder(tmp_path_factory) -> str:
    """A `Dinov2Model` checkpoint of patch 14 and image 56, as Meta's are of patch 14 and image 518."""
    return str(write_vit(tmp_path_factory.mktemp("vit")))


@pytest.fixture
def recipe(vit_folder, tmp_path) -> Path:
    """A recipe file of four steps on six painted rectangles."""
    return write_recipe(tmp_path, vit_folder)


@pytest.fixture(scope="session")
def built_once(vit_folder):
    return BuiltOnce(rein_hf.build_segmenter, vit_folder)


@pytest.fixture
def build(built_once):
    """A function that builds the tiny segmenter: three classes, eight queries, crops of 64."""

    def build(**kwargs):
        arguments = {"id2label": {0: "road", 1: "car", 2: "sky"}, "image_size": 64, "head": HEAD, **kwargs}
        queries = {"num_queries": 8} if "model_type" not in arguments["head"] else {}
        return built_once(**{**queries, **arguments})

    return build


@pytest.fixture
def segmenter(build):
    return build()


@pytest.fixture
def rein_model(segmenter):
    """The tiny segmenter with Rein; every trainable weight differs from its initial value."""
    model = rein_hf.add_rein(segmenter, rein_hf.ReinConfig(r=4, num_tokens=8))
    perturb(model)
    return model.eval()


@pytest.fixture
def pixel_values():
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def adapter_folder(rein_model, tmp_path):
    """`rein_model` as it is uploaded: the adapter, which names its backbone by a Hub id, and the image processor."""
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


@dataclass
class Tunable:
    """A kind of base model: how to build it, to tune it, and to compare what it computes."""

    build: Callable[[], torch.nn.Module]
    arguments: dict
    pixel_values: torch.Tensor
    config_class: type[PeftConfig] = rein_hf.ReinConfig

    def config(self, **kwargs) -> PeftConfig:
        return self.config_class(**{**self.arguments, **kwargs})

    def tuned(self, adapter_name: str = "default", seed: int = 0, **kwargs) -> PeftModel:
        """A new base model with an adapter whose weights differ from their initial values."""
        model = get_peft_model(self.build(), self.config(**kwargs), adapter_name)
        perturb(model, seed)
        return model.eval()

    def output(self, model: torch.nn.Module) -> torch.Tensor:
        """All outputs of the model as one tensor. No weight requires gradients here: on a CPU the last bit of a matrix
        product depends on that."""
        model = copy.deepcopy(model).eval().requires_grad_(False)
        output = model(pixel_values=self.pixel_values.to(next(model.parameters()).dtype))
        if "last_hidden_state" in output:
            return output.last_hidden_state
        return torch.cat([output.class_queries_logits.flatten(), output.masks_queries_logits.flatten()])

    def loss(self, model: torch.nn.Module) -> torch.Tensor:
        """A loss that depends on every tensor of the adapter; equal weights give equal losses."""
        if not hasattr(model.config, "num_queries"):
            target = torch.linspace(-1, 1, 32)
            return (model(pixel_values=self.pixel_values).last_hidden_state - target).square().mean()
        torch.manual_seed(0)  # the points at which masks are compared
        masks = [(torch.rand(2, 64, 64) > 0.5).float() for _ in self.pixel_values]
        classes = [torch.tensor([0, 2]) for _ in self.pixel_values]
        return model(pixel_values=self.pixel_values, mask_labels=masks, class_labels=classes).loss


@pytest.fixture(params=["vit", "segmenter"])
def tunable(request, vit_folder, build, pixel_values):
    """The two kinds of base model: a bare `Dinov2Model`, and the segmenter, whose head is tuned as well."""
    if request.param == "segmenter":
        return Tunable(build, {"r": 4, "num_tokens": 8, "modules_to_save": rein_hf.HEAD_MODULES}, pixel_values)
    return Tunable(
        lambda: AutoModel.from_pretrained(vit_folder, dtype=torch.float32).eval(),
        {"r": 4, "num_tokens": 6},
        pixel_values[..., :56, :56],
    )
