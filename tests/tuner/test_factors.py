"""rein_hf.tuner.factors and who shares them: same results in every mode, nothing stale, nothing stored in vain."""

import copy
import pickle
import threading

import pytest
import torch
from peft import get_peft_model
from transformers import AutoModel

from rein_hf import ReinConfig
from tests.support.models import perturb


@pytest.fixture
def vit(vit_folder):
    return AutoModel.from_pretrained(vit_folder, dtype=torch.float32).eval()


@pytest.fixture
def model(vit):
    torch.manual_seed(0)
    model = get_peft_model(vit, ReinConfig(r=4, num_tokens=6)).eval()
    perturb(model)
    return model


@pytest.fixture
def images():
    return torch.randn(2, 3, 56, 56, generator=torch.Generator().manual_seed(0))


def shared(model, images):
    """The features without gradients, where the first block computes the factors of all."""
    with torch.no_grad():
        return model(images).last_hidden_state


def alone(model, images):
    """The features with gradients, where every block computes its own factors."""
    return model(images).last_hidden_state.detach()


def stack(model):
    return model.base_model.model.encoder.layer


def assert_same(model, images, before=None):
    found = shared(model, images)
    torch.testing.assert_close(found, alone(model, images))
    assert before is None or (found - before).abs().max() > 1e-3
    assert stack(model)._shared_factors.pending is None


def optimizer_step(model, images):
    model(images).last_hidden_state.square().sum().backward()
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01).step()


def overwrite(model, change):
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".rein_" in name:
                change(parameter)


def replace_parameters(model, images):
    tokens = stack(model).rein_tokens_b
    tokens["default"] = torch.nn.Parameter(tokens["default"].detach() + 0.5)


CHANGES = {
    "optimizer": optimizer_step,
    "in place": lambda model, images: overwrite(model, lambda p: p.add_(0.1)),
    "data, which no version counter sees": lambda model, images: overwrite(model, lambda p: p.data.add_(0.1)),
    "data of other memory": lambda model, images: overwrite(model, lambda p: setattr(p, "data", p.data + 0.1)),
    "load_state_dict": lambda model, images: model.load_state_dict(
        {key: tensor + 0.1 if ".rein_" in key else tensor for key, tensor in model.state_dict().items()}
    ),
    "other parameters": replace_parameters,
}


@pytest.mark.parametrize("change", CHANGES)
def test_new_weights_are_seen_at_once(model, images, change):
    before = shared(model, images)
    CHANGES[change](model, images)
    assert_same(model, images, before)


def test_new_weights_are_seen_after_a_forward_that_did_not_end(model, images):
    def stop(*_):
        raise KeyboardInterrupt

    hook = stack(model)[2].register_forward_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        shared(model, images)
    hook.remove()
    overwrite(model, lambda p: p.data.add_(0.1))
    assert_same(model, images)
    assert_same(pickle.loads(pickle.dumps(model)), images)


@pytest.mark.parametrize(
    "options",
    [{"r": None}, {"use_softmax": False}, {"zero_init": True}, {"layers_to_transform": [0, 1, 3]}, {"r": 40}],
)
def test_shared_factors_are_those_of_each_block(vit, images, options):
    model = get_peft_model(vit, ReinConfig(**{"r": 4, "num_tokens": 6, **options})).eval()
    perturb(model)
    assert_same(model, images)
    before = shared(model, images)
    overwrite(model, lambda p: p.data.mul_(2))
    assert_same(model, images, before)


def test_other_adapters_types_and_copies(model, images):
    model.add_adapter("night", ReinConfig(r=None, num_tokens=4))
    day = shared(model, images)
    model.set_adapter("night")
    perturb(model)
    assert_same(model, images, day)
    copied = copy.deepcopy(model)
    overwrite(copied, lambda p: p.data.mul_(2))
    assert_same(copied, images, shared(model, images))
    model.set_adapter("default")
    assert torch.equal(shared(model, images), day)
    model.delete_adapter("night")
    assert torch.equal(shared(model, images), day)
    double = shared(model.double(), images.double())
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), day, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_computes_in_its_type_and_keeps_the_features(model, images, dtype):
    expected = shared(model, images)
    with torch.autocast("cpu", dtype):
        found, trained = shared(model, images), alone(model, images)
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.1)
    torch.testing.assert_close(trained, expected, rtol=0.05, atol=0.1)
    assert not torch.equal(found, expected)


def test_threads_do_not_disturb_each_other(model, images):
    batches = [images + i for i in range(4)]
    expected = [shared(model, batch) for batch in batches]
    found, failed = {}, []

    def work(i):
        for _ in range(10):
            output = shared(model, batches[i])
            if not torch.allclose(output, expected[i], atol=1e-5):
                failed.append(i)
        found[i] = output

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 and not failed


def test_prefix_passes_and_the_blocks_own_output_is_left_alone(model, images):
    block, seen = stack(model)[0], []
    block.register_forward_hook(lambda module, args, output: seen.append((output, output.clone())), prepend=True)
    block.register_forward_hook(lambda module, args, output: seen.append((output, output.clone())))
    for run in (shared, alone):
        seen.clear()
        run(model, images)
        (before, copy_before), (after, _) = seen
        assert torch.equal(before, copy_before)
        assert torch.equal(before[:, :1], after[:, :1]) and not torch.equal(before[:, 1:], after[:, 1:])


def test_the_blocks_own_output_is_left_to_hooks_of_all_modules(model, images):
    blocks, seen = set(stack(model)), []

    def see(module, args, output):
        if module in blocks:
            seen.append((output, output.clone()))

    hook = torch.nn.modules.module.register_module_forward_hook(see)
    try:
        with torch.no_grad():
            model(images)
    finally:
        hook.remove()
    assert len(seen) == len(blocks) and all(torch.equal(output, copied) for output, copied in seen)


def test_an_output_that_is_somebody_elses_is_not_written_into(model, images):
    """An output that nobody has seen is refined in place; not one that is the block's input, or a part of it."""
    layer, hidden = stack(model), torch.randn(2, 17, 32)
    hook = next(iter(layer[1]._forward_hooks.values()))
    refined = {}
    for grad in (False, True):
        for kind in ("new", "input", "view", "called by name"):
            output = {"input": hidden, "view": hidden[:, :]}.get(kind, hidden.clone())
            before = output.clone()
            args = () if kind == "called by name" else (hidden,)
            with torch.set_grad_enabled(grad):
                refined[kind, grad] = hook(layer[1], args, output)
            in_place = kind == "new" and not grad
            assert torch.equal(output, before) is not in_place and (refined[kind, grad] is output) is in_place
    for one in refined.values():
        torch.testing.assert_close(one, refined["input", True])


@pytest.mark.parametrize("options", [{}, {"use_softmax": False}, {"zero_init": True}, {"layers_to_transform": [1, 3]}])
def test_low_rank_tokens_multiplied_with_each_other(vit, images, options, monkeypatch):
    """As on a GPU: one matrix for keys and one for values, and the same features and gradients."""
    model = get_peft_model(vit.double(), ReinConfig(**{"r": 4, "num_tokens": 6, **options}))
    perturb(model.double().train())
    images, results = images.double(), []
    for multiplied in (False, True):
        monkeypatch.setattr("rein_hf.tuner.layer.saves_time", lambda device, answer=multiplied: answer)
        factors = stack(model).factors("default", 0)
        assert len(factors.keys) == len(factors.values) == 2 - multiplied
        results.append((shared(model, images), gradients(model, images)))
    (features, expected), (found_features, found) = results
    torch.testing.assert_close(found_features, features)
    assert found.keys() == expected.keys() and len(found) == 7 - options.get("zero_init", False)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name])


def gradients(model, images):
    model.zero_grad()
    model(images).last_hidden_state.square().mean().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


def test_gradients_under_checkpointing_and_accumulation(model, images):
    model.train()
    expected = gradients(model, images)
    model(images).last_hidden_state.square().mean().backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(parameter.grad, 2 * expected[name])
    model.base_model.model.gradient_checkpointing_enable({"use_reentrant": False})
    found = gradients(model, images)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_autograd_stores_one_feature_map_per_block(model, images):
    layer = stack(model)
    features, stored = torch.randn(2, 50, 32).requires_grad_().clone(), {}

    def pack(tensor):
        stored[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes() // tensor.itemsize
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        layer.refine_output(1, layer[1], features)
    for parameter in layer.parameters():
        stored.pop(parameter.untyped_storage().data_ptr(), None)
    patches, c, m, r = 2 * 50, 32, 6, 4
    assert stored[features.untyped_storage().data_ptr()] == patches * c
    assert sum(stored.values()) <= patches * (c + m + r + r + 1) + c * c + 4 * (r + 1) * (m + c)


def test_compiled_and_exported_as_eager(model, images):
    expected = shared(model, images)
    model.requires_grad_(False)
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True, backend="eager")(images).last_hidden_state
        exported = torch.export.export(model.base_model.model, (images,)).module()(images).last_hidden_state
    torch.testing.assert_close(compiled, expected)
    torch.testing.assert_close(exported, expected)
    assert stack(model)._shared_factors.pending is None


def test_meta_tensors(model, images):
    model = copy.deepcopy(model).to("meta")
    assert shared(model, images.to("meta")).shape == (2, 17, 32)


def test_loaded_weights_are_seen_by_a_block_that_is_called_alone(model, images):
    """After a pass that did not end, the factors of later blocks were waiting."""
    layer, hidden = stack(model), torch.randn(2, 17, 32)
    hook = layer[1].register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError), torch.no_grad():
        model(images)
    hook.remove()
    CHANGES["load_state_dict"](model, images)
    with torch.no_grad():
        found = layer.refine_output(2, layer[2], hidden)
        expected = copy.deepcopy(layer).refine_output(2, layer[2], hidden)
    assert torch.equal(found, expected)
