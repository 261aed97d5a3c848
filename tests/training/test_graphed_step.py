"""Recorded training steps: the same losses, and gradients but for the order in which numbers are added. On a CPU
operators are recorded instead of kernels; where there is a GPU, its graphs are tested too."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils._pytree import tree_leaves

from rein_hf import ReinConfig, add_rein
from rein_hf.backbone import backbone_of, cast_frozen_weights
from rein_hf.head import pixel_loss
from rein_hf.training import compile_before_loss
from tests.support.fake_cuda import FakeCuda
from tests.support.models import perturb, trainable_names
from tests.support.operator_count import path_of_cuda
from tests.support.recorded_operators import DEVICES, recording_on
from tests.support.runs import adapter_weights, run_recipe


@pytest.fixture(params=DEVICES)
def recorded(request, monkeypatch):
    """A device, and a list that grows with every forward or backward pass that is recorded."""
    with path_of_cuda():  # on a CPU other operators would be run, of sizes that depend on values
        yield recording_on(request.param, monkeypatch)


def batch(device, seed, number=2):
    generator = torch.Generator().manual_seed(seed)
    masks = [(torch.rand(count, 64, 64, generator=generator) > 0.5).float() for count in range(1, number + 1)]
    return {
        "pixel_values": torch.randn(number, 3, 64, 64, generator=generator).to(device),
        "mask_labels": [one.to(device) for one in masks],
        "class_labels": [torch.arange(len(one), device=device) for one in masks],
    }


def step(model, device, seed, number=2, dtype=None):
    """The loss of a batch, with gradients added to those that there are."""
    torch.manual_seed(seed)  # of the points that the loss is sampled at
    with torch.autocast(device, dtype or torch.bfloat16, enabled=dtype is not None):
        loss = model(**batch(device, seed, number)).loss
    loss.backward()
    return loss.detach()


def pair_of(model, device):
    """A model in training, and one like it whose steps are recorded."""
    graphed = copy.deepcopy(model.train().to(device))
    compile_before_loss(graphed, backend="cudagraphs")
    return model, graphed


def gradients(model):
    return {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


def assert_close(found, expected, tolerance=1e-5):
    """Gradients come back in another layout of memory, which decides in which order a bias's are added; on a GPU other
    sums differ from call to call."""
    if next(iter(expected.values())).is_cuda:
        tolerance = max(tolerance, 1e-3)
    assert found.keys() == expected.keys() and expected
    for name in expected:
        difference = torch.linalg.vector_norm((found[name] - expected[name]).double())
        assert difference <= tolerance * torch.linalg.vector_norm(expected[name].double()), name


def lora(segmenter):
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], lora_dropout=0.0)
    model = get_peft_model(segmenter, config)
    perturb(model)
    return model


TUNINGS = {
    "rein": lambda segmenter: add_rein(segmenter, ReinConfig(r=4, num_tokens=8)),
    "lora": lora,
    "full": lambda segmenter: segmenter,
}


@pytest.mark.parametrize("tuning", TUNINGS)
def test_nothing_is_asked_of_the_host(segmenter, tuning):
    """Forward and backward, on a device that computes nothing and takes the branches of a GPU."""
    TUNINGS[tuning](segmenter).to("meta").train()
    before_loss, host = segmenter.model, FakeCuda()
    with host:
        output = before_loss(pixel_values=torch.empty(2, 3, 64, 64, device="meta"), output_hidden_states=True)
        results = [one for one in tree_leaves(output) if isinstance(one, torch.Tensor) and one.requires_grad]
        weights = [weight for weight in before_loss.parameters() if weight.requires_grad]
        found = torch.autograd.grad(results, weights, [torch.zeros_like(one) for one in results], allow_unused=True)
    assert not host.on_host and len(results) > 3 and any(gradient is not None for gradient in found)
    assert all(
        gradient is None or gradient.shape == weight.shape for gradient, weight in zip(found, weights, strict=True)
    )


@pytest.mark.parametrize("tuning", TUNINGS)
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_steps_are_equal_with_an_optimizer_and_accumulated_gradients(segmenter, recorded, tuning, dtype):
    device, calls = recorded
    model = TUNINGS[tuning](segmenter)
    if dtype is not None and tuning != "full":
        cast_frozen_weights(backbone_of(model), dtype)
    model, graphed = pair_of(model, device)
    tolerance = 1e-5 if dtype is None else 2e-3
    optimizers = [
        torch.optim.SGD([weight for weight in one.parameters() if weight.requires_grad], lr=1e-5)
        for one in (model, graphed)
    ]
    for number in range(4):
        for micro in range(2):
            seed = 10 * number + micro
            found, expected = (step(one, device, seed, dtype=dtype) for one in (graphed, model))
            torch.testing.assert_close(found, expected, rtol=tolerance, atol=0)
        assert_close(gradients(graphed), gradients(model), tolerance)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    assert len(calls) == 2  # once forward, once backward
    assert_close(dict(graphed.named_parameters()), dict(model.named_parameters()), tolerance)


def test_a_head_of_pixels(build, recorded):
    """It has statistics of batches and dropout."""
    device, calls = recorded
    model = build(head={"model_type": "upernet", "hidden_size": 16})
    model = add_rein(model, ReinConfig(r=4, num_tokens=8, link_queries=False))
    labels = torch.zeros(2, 64, 64, dtype=torch.long, device=device)
    model, graphed = pair_of(model, device)
    for number in range(6):
        for one in (model, graphed):
            for module in one.modules():
                if isinstance(module, torch.nn.BatchNorm2d):
                    module.train(number < 3)  # a kind of its own: from then on statistics stay
            one.zero_grad()
            torch.manual_seed(number)
            pixel_loss(one(pixel_values=batch(device, number)["pixel_values"]), labels).backward()
        assert_close(gradients(graphed), gradients(model))
        for found, expected in zip(graphed.buffers(), model.buffers(), strict=True):
            torch.testing.assert_close(found, expected)
    assert len(calls) == 4 and any("running_mean" in name for name, _ in model.named_buffers())


def test_other_sizes_and_other_trained_weights_are_recorded_anew(rein_model, recorded):
    device, calls = recorded
    model, graphed = pair_of(rein_model, device)
    for number in (2, 2, 1, 2, 1, 1):
        for one in (model, graphed):
            one.zero_grad()
            step(one, device, number, number)
        assert_close(gradients(graphed), gradients(model))
    assert len(calls) == 4
    frozen = [name for name, weight in model.named_parameters() if weight.requires_grad and "rein_tokens" in name]
    for one in (model, graphed):
        one.zero_grad()
        for name in frozen:
            one.get_parameter(name).requires_grad_(False)
    for seed in range(3):
        for one in (model, graphed):
            one.zero_grad()
            step(one, device, seed)
        assert_close(gradients(graphed), gradients(model))
    assert len(calls) == 6 and not gradients(graphed).keys() & set(frozen)


def test_a_loss_that_is_kept_and_hooks_of_weights(rein_model, recorded):
    """Autograd's nodes of a former step live as long as its loss."""
    device, calls = recorded
    model, graphed = pair_of(rein_model, device)
    weights = [one.get_parameter(next(iter(trainable_names(one)))) for one in (model, graphed)]
    seen = [[], []]
    for weight, gradients_of in zip(weights, seen, strict=True):
        weight.register_hook(gradients_of.append)
    losses = []
    for seed in range(3):
        for one in (model, graphed):
            torch.manual_seed(seed)
            losses.append(one(**batch(device, seed)).loss)
            losses[-1].backward()
    assert_close(gradients(graphed), gradients(model))
    assert len(calls) == 2 and [len(one) for one in seen] == [3, 3]
    assert all(parameter.grad is not None for parameter in weights)


def test_gradients_of_images_are_computed_as_always(rein_model, recorded):
    device, calls = recorded
    model, graphed = pair_of(rein_model, device)
    for seed in range(3):
        inputs = batch(device, seed)
        images = [inputs["pixel_values"].clone().requires_grad_() for _ in range(2)]
        for one, pixel_values in zip((model, graphed), images, strict=True):
            torch.manual_seed(seed)
            one(**{**inputs, "pixel_values": pixel_values}).loss.backward()
        torch.testing.assert_close(images[1].grad, images[0].grad)
    assert not calls


def test_evaluation_between_steps_is_computed_as_always(rein_model, recorded):
    device, calls = recorded
    model, graphed = pair_of(rein_model, device)
    for seed in range(3):
        step(graphed, device, seed)
    with torch.no_grad():
        found, expected = (one.eval()(**batch(device, 5)).masks_queries_logits[-1] for one in (graphed, model))
        assert torch.equal(found, expected)
        graphed.train()(**batch(device, 5))
    assert len(calls) == 2
    for one in (model.train(), graphed):
        one.zero_grad()
        step(one, device, 6)
    assert_close(gradients(graphed), gradients(model))


def test_a_backward_pass_out_of_order_is_refused(rein_model, recorded):
    device, _ = recorded
    _, graphed = pair_of(rein_model, device)
    for seed in range(2):
        step(graphed, device, seed)
    first = graphed(**batch(device, 2)).loss
    second = graphed(**batch(device, 3)).loss
    # on a CPU autograd sees before that what was written to
    message = "others have written to: with CUDA graphs .* before the next one|modified by an inplace operation"
    with pytest.raises(RuntimeError, match=message):
        first.backward()
    second.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="call it once for each forward pass"):
        second.backward()


def test_a_copy_of_a_model_has_no_graphs(rein_model, recorded):
    device, calls = recorded
    _, graphed = pair_of(rein_model, device)
    for seed in range(3):
        step(graphed, device, seed)
    other = copy.deepcopy(graphed)
    for one in (graphed, other):
        one.zero_grad()
        step(one, device, 4)
    assert_close(gradients(other), gradients(graphed))
    assert len(calls) == 2 and other.get_base_model().model._compiled_call_impl is None


@pytest.mark.slow
def test_a_recorded_run_ends_with_the_same_weights(recipe, tmp_path, monkeypatch):
    """With evaluations and checkpoints in between, gradients of two micro-batches, and a moving average."""
    _, calls = recording_on("cpu", monkeypatch)
    words = ["--max_steps", "4", "--eval_strategy", "steps", "--eval_steps", "2", "--total_batch_size", "2"]
    words += ["--per_device_train_batch_size", "1", "--ema_decay", "0.9", "--bf16", "true"]
    weights = []
    for name, more in (("eager", []), ("graphed", ["--torch_compile_backend", "cudagraphs"])):
        with path_of_cuda():
            run_recipe(recipe, *words, *more, "--output_dir", str(tmp_path / name))
        weights.append(adapter_weights(tmp_path / name))
    assert_close(weights[1], weights[0], 1e-4)
    assert len(calls) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "CUDA graphs were asked for .* and the model is on cpu; they need a GPU"),
        (("--activation_checkpointing", "true"), "'cudagraphs' and activation_checkpointing is on"),
        (("--torch_compile_mode", "max-autotune"), "mode is 'max-autotune' and backend 'cudagraphs'"),
    ],
)
def test_what_cannot_be_recorded_is_refused(recipe, words, message):
    with pytest.raises(ValueError, match=message):
        run_recipe(recipe, "--torch_compile_backend", "cudagraphs", *words)
