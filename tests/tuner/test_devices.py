"""Rein on a model that is spread over devices, offloaded by accelerate, or replicated by torch.nn.DataParallel."""

import accelerate
import pytest
import torch
from accelerate import dispatch_model
from peft import PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from torch import nn
from transformers import AutoModel

from rein_hf import ReinConfig, ReinQueries
from rein_hf.tuner.architectures import find_vision_encoder
from tests.support.models import perturb
from tests.support.vision_encoders import make_encoder


CPU, META = torch.device("cpu"), torch.device("meta")


@pytest.fixture
def vit(vit_folder):
    return AutoModel.from_pretrained(vit_folder, dtype=torch.float32).eval()


@pytest.fixture
def images():
    return torch.randn(2, 3, 56, 56, generator=torch.Generator().manual_seed(0))


def tuned(vit, **kwargs):
    model = get_peft_model(vit, ReinConfig(**{"r": 4, "num_tokens": 6, **kwargs})).eval()
    perturb(model)
    return model.requires_grad_(False)


def features(model, images):
    return model(images).last_hidden_state


# Several devices


def two_devices(vit, blocks: str, count: int) -> dict[str, str]:
    """A device map: the second half of the blocks on meta, all else on the CPU."""
    of_blocks = {f"{blocks}.{index}": "meta" if index >= count // 2 else "cpu" for index in range(count)}
    others = (name for name in vit.state_dict() if not name.startswith(tuple(f"{block}." for block in of_blocks)))
    return of_blocks | dict.fromkeys(others, "cpu")


class Done(Exception):
    pass


@pytest.mark.parametrize(
    ("name", "dispatched"),
    [("dinov2", "before"), ("dinov2", "after"), ("sam vision", "before"), ("sam2 hiera", "before"), ("vit", "after")],
)
def test_the_refinement_follows_the_features(name, dispatched):
    """meta stands for a second device: operations on tensors of both devices fail as on two GPUs."""
    encoder = find_vision_encoder(make_encoder(name))
    vit, blocks = encoder.model, encoder.architecture.blocks
    count = len(vit.get_submodule(blocks))
    if dispatched == "before":
        dispatch_model(vit, two_devices(vit, blocks, count), main_device="cpu", force_hooks=True)
    tuned(vit)
    if dispatched == "after":
        dispatch_model(vit, two_devices(vit, f"{blocks}.base_layer", count), main_device="cpu", force_hooks=True)
    seen = []

    def see(block, args, output):
        seen.append(output.device.type)
        if len(seen) == count:  # accelerate would bring the result back to the CPU, and meta has no values
            raise Done

    for block in vit.get_submodule(blocks):
        block.register_forward_hook(see)
    with torch.no_grad(), pytest.raises(Done):
        vit(torch.zeros(1, 3, 96, 96), **encoder.architecture.arguments)
    assert seen == ["cpu"] * (count // 2) + ["meta"] * (count - count // 2)


@pytest.mark.parametrize("training", [False, True])
def test_shared_factors_are_right_on_every_device_and_back(vit, training):
    layer = tuned(vit).base_model.model.encoder.layer
    for parameters in (layer.rein_tokens_a, layer.rein_delta):
        parameters.requires_grad_(training)
    computed = []

    def compute(adapter_name, row):
        computed.append(row)
        return layer.factors(adapter_name, row)

    with torch.set_grad_enabled(training):
        expected = [layer.factors("default", row) for row in range(4)]
        for index, device in enumerate((CPU, META, CPU, CPU)):
            found = layer._shared_factors.of_block(compute, "default", range(4), index, device, torch.float32)
            tensors = [*found.keys, *found.values, found.weight, found.bias]
            assert {tensor.device for tensor in tensors} == {device}
            of_block = expected[index]
            for tensor, right in zip(
                tensors, [*of_block.keys, *of_block.values, of_block.weight, of_block.bias], strict=True
            ):
                assert tensor.shape == right.shape
                if device == CPU:
                    torch.testing.assert_close(tensor, right)
    # once for each change of the device, for all blocks; not for the last block
    assert computed == [slice(None)] * 3 and layer._shared_factors.pending is None


@pytest.mark.parametrize("adapter", [None, "default"])
def test_object_queries_follow_their_embedding(segmenter, adapter):
    """The tokens' device is the blocks', the queries' that of the decoder that reads them."""
    model = get_peft_model(segmenter, ReinConfig(r=4, num_tokens=8)).requires_grad_(False)
    decoder = model.base_model.model.model.transformer_module.to("meta")
    with model.disable_adapter() if adapter is None else torch.no_grad():
        for queries in (decoder.queries_embedder, decoder.queries_features):
            assert isinstance(queries, ReinQueries)
            assert queries.weight.device == META and queries.weight.shape == (
                8,
                decoder.queries_embedder.weight.shape[1],
            )


# Offloaded weights


def cpu_offloaded(model, folder):
    return accelerate.cpu_offload(model, "cpu")


def disk_offloaded(model, folder):
    return accelerate.disk_offload(model, folder, "cpu")


@pytest.mark.parametrize(("offload", "options"), [(cpu_offloaded, {"r": None}), (disk_offloaded, {})])
def test_offloaded_weights_are_loaded_when_they_are_read(vit, images, tmp_path, offload, options):
    model = tuned(vit, **options)
    layer = model.base_model.model.encoder.layer
    with torch.no_grad():
        expected, tokens = features(model, images), layer.tokens("default")
        offload(model, tmp_path)
        assert {parameter.device for parameter in model.parameters()} == {META}
        assert torch.equal(features(model, images), expected)
        assert torch.equal(layer.tokens("default"), tokens)
    assert {parameter.device for parameter in model.parameters()} == {META}
    with pytest.raises(ValueError, match=r"accelerate has offloaded .*remove_hook_from_submodules"):
        model.add_adapter("night", ReinConfig(r=4, num_tokens=6))
    assert list(model.peft_config) == ["default"]


@pytest.mark.parametrize("offload", [cpu_offloaded, disk_offloaded])
def test_rein_on_an_offloaded_base(vit_folder, vit, images, tmp_path, offload):
    model = tuned(vit)
    model.save_pretrained(tmp_path / "adapter")
    base = offload(AutoModel.from_pretrained(vit_folder, dtype=torch.float32).eval(), tmp_path / "weights")
    loaded = PeftModel.from_pretrained(base, tmp_path / "adapter")
    of_rein = {parameter.device for name, parameter in loaded.named_parameters() if ".rein_" in name}
    assert of_rein == {CPU} and next(base.encoder.layer[0].parameters()).device == META
    with torch.no_grad():
        assert torch.equal(features(loaded, images), features(model, images))


def test_a_device_map_that_offloads_to_the_cpu(vit_folder, vit, images, tmp_path):
    """peft takes the hooks off, loads the adapter and dispatches anew."""
    model = tuned(vit)
    model.save_pretrained(tmp_path)
    base = AutoModel.from_pretrained(vit_folder, dtype=torch.float32).eval()
    device_map = {"embeddings": "cpu", "layernorm": "cpu", **{f"encoder.layer.{i}": "cpu" for i in range(4)}}
    dispatch_model(base, device_map, main_device="cpu", force_hooks=True)
    loaded = PeftModel.from_pretrained(base, tmp_path)
    with torch.no_grad():
        assert torch.equal(features(loaded, images), features(model, images))


def test_a_device_map_that_offloads_to_the_disk(vit_folder, vit, images, tmp_path):
    model = tuned(vit)
    model.save_pretrained(tmp_path / "adapter")
    blocks = {f"encoder.layer.{index}": "cpu" if index < 2 else "disk" for index in range(4)}

    def build():
        device_map = {"embeddings": "cpu", "layernorm": "cpu", **blocks}
        base = AutoModel.from_pretrained(
            vit_folder, dtype=torch.float32, device_map=device_map, offload_folder=str(tmp_path / "weights")
        )
        return base.eval()

    with pytest.raises(ValueError, match=r"weights on the disk .* Load base and adapter first, .*disk_offload"):
        PeftModel.from_pretrained(build(), tmp_path / "adapter")
    new = get_peft_model(build(), ReinConfig(r=4, num_tokens=6)).eval()
    set_peft_model_state_dict(new, get_peft_model_state_dict(model))
    with torch.no_grad():
        assert torch.equal(features(new, images), features(model, images))


def test_object_queries_come_from_an_offloaded_backbone(rein_model, pixel_values):
    rein_model.requires_grad_(False)
    with torch.no_grad():
        expected = rein_model(pixel_values=pixel_values)
        accelerate.cpu_offload(rein_model.base_model.model.model.pixel_level_module.encoder, "cpu")
        found = rein_model(pixel_values=pixel_values)
    assert torch.equal(found.masks_queries_logits, expected.masks_queries_logits)


# Replicas of torch.nn.DataParallel


def replicate(module: nn.Module) -> nn.Module:
    """What torch.nn.parallel.replicate makes for one device, without its copies to GPUs."""
    replica = module._replicate_for_data_parallel()
    for name, child in module._modules.items():
        replica._modules[name] = None if child is None else replicate(child)
    for name, parameter in module._parameters.items():
        if parameter is not None:
            setattr(replica, name, parameter.detach().clone().requires_grad_(parameter.requires_grad).clone())
    return replica


def test_replicas_are_refused(vit, images):
    """Their hooks are the original's, which would compute with its weights and send its gradients nowhere."""
    model = tuned(vit)
    expected = features(model, images)
    with pytest.raises(ValueError, match=r"replica of torch.nn.DataParallel.* \(accelerate launch, torchrun\)"):
        replicate(model)(images)
    # injected, without peft's own module around it
    with pytest.raises(ValueError, match=r"replica of torch.nn.DataParallel"):
        replicate(model.base_model.model)(images)
    assert torch.equal(features(model, images), expected)


def test_a_segmenter_is_refused_before_anything_else_fails(rein_model, pixel_values):
    with pytest.raises(ValueError, match=r"replica of torch.nn.DataParallel"):
        replicate(rein_model)(pixel_values=pixel_values)


def test_object_queries_of_a_replica_are_refused(rein_model):
    queries = rein_model.base_model.model.model.transformer_module.queries_features
    with pytest.raises(ValueError, match=r"replica of torch.nn.DataParallel"):
        replicate(queries).weight  # noqa: B018
