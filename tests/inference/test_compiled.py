"""Inference with a compiled model: the same scores, through the same calls."""

import copy

import pytest
import torch

from rein_hf import ReinConfig, add_rein
from rein_hf.inference import compile_segmenter, slide_inference
from rein_hf.training import compile_before_loss
from tests.support.models import perturb


@pytest.fixture(autouse=True)
def no_compiled_code():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def images(*size):
    return torch.randn(*size, generator=torch.Generator().manual_seed(0))


def counting(graphs):
    """A backend that runs what was traced, and keeps it."""

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    return backend


def test_windows_are_segmented_by_one_graph_without_breaks(rein_model):
    sizes = [(2, 3, 96, 160), (1, 3, 128, 64), (1, 3, 64, 64)]
    expected = [slide_inference(rein_model, images(*size), crop=64) for size in sizes]
    graphs = []
    assert compile_segmenter(rein_model, backend=counting(graphs)) is rein_model
    for size, right in zip(sizes, expected, strict=True):
        torch.testing.assert_close(slide_inference(rein_model, images(*size), crop=64), right, rtol=1e-4, atol=1e-4)
    # one for the first number of windows, one for other numbers, one for a single window, which torch keeps apart
    assert 1 <= len(graphs) <= 3
    with torch._dynamo.config.patch(error_on_recompile=True):
        for size in [*sizes, (1, 3, 96, 96)]:  # four windows
            slide_inference(rein_model, images(*size), crop=64)


def test_switched_adapters_and_a_head_of_pixels(rein_model, build):
    rein_model.add_adapter("night", ReinConfig(r=None, num_tokens=8))
    rein_model.set_adapter("night")
    perturb(rein_model)
    pixels = build(head={"model_type": "upernet", "hidden_size": 16})
    for model in (rein_model.eval(), add_rein(pixels, ReinConfig(r=4, num_tokens=8, link_queries=False)).eval()):
        graphs, adapters = [], list(model.peft_config)
        expected = {}
        for name in adapters:
            model.set_adapter(name)
            expected[name] = slide_inference(model, images(1, 3, 64, 64))
        compile_segmenter(model, backend=counting(graphs))
        for name in adapters[::-1]:
            model.set_adapter(name)
            found = slide_inference(model, images(1, 3, 64, 64))
            torch.testing.assert_close(found, expected[name], rtol=1e-4, atol=1e-4)
        assert len(graphs) == len(adapters)


def test_what_a_graph_returns_is_not_overwritten_by_the_next_call(rein_model):
    """As a CUDA graph does, this backend returns the same memory each time."""
    memory = []

    def backend(graph, inputs):
        def run(*arguments):
            outputs = graph.forward(*arguments)
            if not memory:
                memory.extend(outputs)
            for one, output in zip(memory, outputs, strict=True):
                one.copy_(output)
            return tuple(memory)

        return run

    compile_segmenter(rein_model, backend=backend)
    with torch.no_grad():
        first = rein_model.compiled_logits(images(1, 3, 64, 64))
        kept = [logits.clone() for logits in first]
        rein_model.compiled_logits(images(1, 3, 64, 64) + 1)
    assert memory and all(torch.equal(one, other) for one, other in zip(first, kept, strict=True))


def test_a_copy_of_a_compiled_model_computes_with_its_own_weights(rein_model):
    compile_segmenter(rein_model, backend="eager")
    copied = copy.deepcopy(rein_model)
    expected = slide_inference(rein_model, images(1, 3, 64, 64))
    perturb(rein_model, seed=1)
    torch.testing.assert_close(slide_inference(copied, images(1, 3, 64, 64)), expected, rtol=1e-4, atol=1e-4)


def test_a_model_in_training_is_refused(rein_model):
    with pytest.raises(ValueError, match="training mode; expected model.eval"):
        compile_segmenter(rein_model.train())


def test_a_mode_without_effect_is_refused(rein_model):
    with pytest.raises(ValueError, match=r"mode is 'max-autotune' and backend 'cudagraphs'; a mode has"):
        compile_segmenter(rein_model, mode="max-autotune", backend="cudagraphs")
    for compile in (compile_segmenter, compile_before_loss):
        with pytest.raises(ValueError, match="mode is 'max'; expected one of default, .*reduce-overhead"):
            compile(rein_model, mode="max", backend="inductor")
