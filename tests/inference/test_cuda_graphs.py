"""Recorded calls: the same numbers bit for bit, whatever changes. On a CPU operators are recorded instead of kernels;
where there is a GPU, its graphs are tested too."""

import copy
import gc
import weakref
from unittest import mock

import pytest
import torch
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from transformers import Dinov2Config

from rein_hf import ReinConfig, ViTPyramidBackbone, ViTPyramidConfig, slide_inference
from rein_hf.backbone import backbone_of
from rein_hf.inference import compile_segmenter, cuda_graphs, prepare_for_inference
from rein_hf.inference.cuda_graphs import GraphedInference, ModelState, Recorder
from rein_hf.tuner import ReinLayer
from tests.support.models import perturb
from tests.support.recorded_operators import DEVICES, recording_on


@pytest.fixture(params=DEVICES)
def recorded(request, monkeypatch):
    """A device, and a list that grows with every call that is recorded."""
    return recording_on(request.param, monkeypatch)


def images(device, *size, seed=0):
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed)).to(device)


@torch.no_grad()
def eager_and_graphed(model, pixel_values):
    graphed = vars(model).pop("compiled_logits")
    eager = slide_inference(model, pixel_values, crop=64)
    model.compiled_logits = graphed
    return eager, slide_inference(model, pixel_values, crop=64)


def check(model, pixel_values):
    eager, found = eager_and_graphed(model, pixel_values)
    assert torch.equal(eager, found)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_scores_are_equal_and_each_size_is_recorded_once(rein_model, recorded, dtype):
    device, calls = recorded
    prepare_for_inference(rein_model.to(device), dtype)
    compile_segmenter(rein_model, backend="cudagraphs")
    with torch.autocast(device, dtype or torch.bfloat16, enabled=dtype is not None):
        for seed in range(4):
            for size in [(1, 3, 64, 64), (1, 3, 64, 96), (2, 3, 64, 64)]:  # two sizes of a batch of windows
                check(rein_model, images(device, *size, seed=seed))
            assert len(calls) == (1 if seed == 0 else 2)


def test_results_stay_when_the_next_image_comes(rein_model, recorded):
    device, _ = recorded
    compile_segmenter(rein_model.to(device), backend="cudagraphs")
    with torch.no_grad():
        found = [rein_model.compiled_logits(images(device, 1, 3, 64, 64, seed=seed)) for seed in (0, 0, 1, 0)]
    for first, second, other, last in zip(*found, strict=True):
        assert torch.equal(first, second) and torch.equal(first, last) and not torch.equal(first, other)


def test_adapters_are_switched_disabled_and_loaded_anew(rein_model, recorded, tmp_path):
    device, calls = recorded
    rein_model.add_adapter("night", ReinConfig(r=None, num_tokens=8))
    perturb(rein_model)
    rein_model.save_pretrained(tmp_path, selected_adapters=["night"], save_embedding_layers=False)
    prepare_for_inference(rein_model.eval().to(device))
    compile_segmenter(rein_model, backend="cudagraphs")
    found = {}
    for name in ("default", "night", "default", "night", "default", "night"):
        rein_model.set_adapter(name)
        eager, found[name] = eager_and_graphed(rein_model, images(device, 1, 3, 64, 64))
        assert torch.equal(eager, found[name])
    assert len(calls) == 2 and not torch.equal(found["default"], found["night"])
    for _ in range(3):
        with rein_model.disable_adapter():
            check(rein_model, images(device, 1, 3, 64, 64))
    assert len(calls) == 3
    with torch.no_grad():
        for parameter in rein_model.parameters():
            parameter.add_(0.01)  # the adapter is to bring back the weights of before
    rein_model.load_adapter(str(tmp_path / "night"), "dusk")
    rein_model.set_adapter("dusk")
    for _ in range(3):
        check(rein_model, images(device, 1, 3, 64, 64))
    assert len(calls) == 4


def test_what_is_written_into_weights_is_seen(rein_model, recorded):
    device, calls = recorded
    compile_segmenter(rein_model.to(device), backend="cudagraphs")
    for step in range(4):
        check(rein_model, images(device, 1, 3, 64, 64))
        with torch.no_grad():
            for parameter in rein_model.parameters():
                parameter.mul_(1 + 0.01 * step)
    assert len(calls) == 1


@pytest.mark.parametrize("how", ["loaded", "prepared anew"])
def test_what_is_kept_of_weights_is_computed_anew_with_others(rein_model, recorded, how):
    device, calls = recorded
    prepare_for_inference(rein_model.to(device))
    compile_segmenter(rein_model, backend="cudagraphs")
    for step in range(2):
        for _ in range(3):
            check(rein_model, images(device, 1, 3, 64, 64))
        others = {name: 1.5 * weight for name, weight in get_peft_model_state_dict(rein_model).items()}
        set_peft_model_state_dict(rein_model, others)
        if how == "prepared anew":
            prepare_for_inference(rein_model)
        assert len(calls) == 1 + step


@pytest.mark.parametrize("change", ["parameter", "data", "module", "buffer"])
def test_what_is_put_in_the_place_of_a_tensor_or_module_is_recorded_anew(rein_model, recorded, change):
    device, calls = recorded
    compile_segmenter(rein_model.to(device), backend="cudagraphs")
    for _ in range(3):
        before, _ = eager_and_graphed(rein_model, images(device, 1, 3, 64, 64))
    backbone = backbone_of(rein_model)
    block = next(module for module in backbone.modules() if hasattr(module, "norm1"))
    norm = block.norm1
    with torch.no_grad():
        if change == "parameter":
            norm.weight = torch.nn.Parameter(norm.weight * 2)
        elif change == "data":
            norm.weight.data = norm.weight * 2
        elif change == "module":
            block.norm1 = copy.deepcopy(norm)
            block.norm1.weight.mul_(2)
        else:
            backbone.register_buffer("other", torch.ones(1))
    for _ in range(3):
        after, found = eager_and_graphed(rein_model, images(device, 1, 3, 64, 64))
        assert torch.equal(after, found)
    # a part that is new is no part that has changed
    assert torch.equal(after, before) == (change == "buffer") and len(calls) == (1 if change == "buffer" else 2)


def test_settings_that_change_are_recorded_anew(rein_model, recorded):
    device, calls = recorded
    compile_segmenter(rein_model.to(device), backend="cudagraphs")
    pixel_values = images(device, 1, 3, 64, 64)
    for _ in range(3):
        check(rein_model, pixel_values)
    backbone_of(rein_model).vit.set_attn_implementation("eager")
    for _ in range(3):
        check(rein_model, pixel_values)
    assert len(calls) == 2
    vit = Dinov2Config(hidden_size=32, num_hidden_layers=6, num_attention_heads=2, patch_size=16, image_size=64)
    backbone = ViTPyramidBackbone(ViTPyramidConfig(backbone_config=vit))
    state = ModelState(backbone)
    assert state.holds()
    backbone.out_indices = [1, 2, 3, 4]
    assert not state.holds() and ModelState(backbone).holds()


def test_autocast_gradients_and_training_are_computed_as_they_should(rein_model, recorded):
    device, calls = recorded
    compile_segmenter(rein_model.to(device), backend="cudagraphs")
    for _ in range(3):
        check(rein_model, images(device, 1, 3, 64, 64))
    for _ in range(3):
        with torch.autocast(device, torch.bfloat16):
            check(rein_model, images(device, 1, 3, 64, 64))
    assert len(calls) == 2
    for _ in range(3):
        classes, _ = rein_model.compiled_logits(images(device, 1, 3, 64, 64))
        assert classes.requires_grad
    with torch.no_grad():
        rein_model.train().compiled_logits(images(device, 1, 3, 64, 64))
    with torch.inference_mode():
        rein_model.eval().compiled_logits(images(device, 1, 3, 64, 64))
    assert len(calls) == 2


def test_a_copy_of_a_model_has_no_graphs(rein_model, recorded):
    device, calls = recorded
    compile_segmenter(rein_model.to(device), backend="cudagraphs")
    for _ in range(2):
        check(rein_model, images(device, 1, 3, 64, 64))
    copied = copy.deepcopy(rein_model)
    perturb(copied, seed=1)
    found, other = (slide_inference(model, images(device, 1, 3, 64, 64)) for model in (rein_model, copied))
    assert not torch.equal(found, other) and copied.compiled_logits is None and len(calls) == 1


def test_memory_that_a_graph_reads_is_kept_for_it(rein_model, recorded):
    """Factors of prepared weights are no parameters, and are forgotten when other weights are loaded."""
    device, calls = recorded
    prepare_for_inference(rein_model.to(device))
    compile_segmenter(rein_model, backend="cudagraphs")
    for _ in range(2):
        check(rein_model, images(device, 1, 3, 64, 64))
    layer = next(module for module in rein_model.modules() if isinstance(module, ReinLayer))
    (factors,) = layer._shared_factors.kept.values()
    kept = weakref.ref(factors[0].weight)
    del factors
    layer._forget_computed()
    assert kept() is not None
    check(rein_model, images(device, 1, 3, 64, 64, seed=1))
    del rein_model.compiled_logits
    calls.clear()
    gc.collect()
    assert kept() is None


def test_the_number_of_graphs_is_bounded(rein_model, recorded, monkeypatch):
    device, calls = recorded
    monkeypatch.setattr(cuda_graphs, "MAX_GRAPHS", 2)
    compile_segmenter(rein_model.to(device), backend="cudagraphs")
    for number in (1, 1, 2, 2, 3, 3, 1, 1):
        check(rein_model, images(device, number, 3, 64, 64))
    assert len(calls) == 4 and len(rein_model.compiled_logits._graphs) == 2


def test_values_and_names_of_arguments(recorded):
    device, calls = recorded
    linear = torch.nn.Linear(2, 2).eval().to(device)
    call = lambda x, scale=1, add=None: {"y": [linear(x) * scale + (0 if add is None else add)]}  # noqa: E731
    graphed = GraphedInference(linear, call)
    one, other = images(device, 3, 2), images(device, 3, 2, seed=1)
    with torch.no_grad():
        for _ in range(3):
            for args, kwargs in [((one,), {}), ((other, 2), {}), ((one,), {"scale": 2}), ((one,), {"add": other})]:
                assert torch.equal(graphed(*args, **kwargs)["y"][0], call(*args, **kwargs)["y"][0])
    assert len(calls) == 4


def test_what_waits_for_the_gpu_is_refused(rein_model, recorded):
    device, _ = recorded
    compile_segmenter(rein_model.to(device), backend="cudagraphs")
    block = next(module for module in rein_model.modules() if hasattr(module, "norm1"))
    hook = block.register_forward_hook(lambda module, args, output: print(output.sum().item()))
    with torch.no_grad():
        rein_model.compiled_logits(images(device, 1, 3, 64, 64))
        with pytest.raises(RuntimeError, match="No CUDA graph of this .* could be recorded: .* or a hook of it waits"):
            rein_model.compiled_logits(images(device, 1, 3, 64, 64))
    hook.remove()
    for _ in range(2):
        check(rein_model, images(device, 1, 3, 64, 64))


def test_a_cpu_has_none(rein_model):
    with pytest.raises(ValueError, match=r"CUDA graphs were asked for .* and the model is on cpu; they need a GPU"):
        compile_segmenter(rein_model, backend="cudagraphs")


def test_how_a_gpu_is_told():
    """The calls of torch, as it declares them."""
    graph, order = mock.create_autospec(torch.cuda.CUDAGraph, instance=True), []
    names = ("CUDAGraph", "Stream", "Event", "graph_pool_handle", "current_stream", "stream", "device", "graph")
    with mock.patch.multiple(torch.cuda, **{name: mock.create_autospec(getattr(torch.cuda, name)) for name in names}):
        torch.cuda.CUDAGraph.return_value = graph
        torch.cuda.graph.return_value.__enter__.side_effect = lambda *_: order.append("begin")
        torch.cuda.graph.return_value.__exit__.side_effect = lambda *_: order.append("end")
        recorder = Recorder(torch.device("cuda", 1))
        assert recorder.run(lambda: order.append("run") or 1) == 1
        result, replay = recorder.record(lambda: order.append("recorded") or 2)
        stream, current = torch.cuda.Stream.return_value, torch.cuda.current_stream.return_value
        stream.wait_stream.assert_called_once_with(current)
        current.wait_stream.assert_called_once_with(stream)
        pool = torch.cuda.graph_pool_handle.return_value
        torch.cuda.graph.assert_called_once_with(graph, pool, stream, capture_error_mode="thread_local")
        torch.cuda.device.assert_called_once_with(torch.device("cuda", 1))
        used = torch.cuda.Event.return_value
        with recorder.using_memory():  # of another stream than the one before, perhaps
            current.wait_event.assert_called_once_with(used)
            used.record.assert_not_called()
        used.record.assert_called_once_with(current)
    assert result == 2 and order == ["run", "begin", "recorded", "end"]
    replay()
    graph.replay.assert_called_once_with()
