"""Object queries: computed once per forward pass for contents and positions, and never those of other weights."""

import pytest
import torch

from rein_hf.tuner import ReinLayer, ReinQueries, query_weights


@pytest.fixture
def computed(monkeypatch):
    """The adapters whose object queries were computed."""
    names, object_queries = [], ReinLayer.object_queries

    def counted(self, adapter_name):
        names.append(adapter_name)
        return object_queries(self, adapter_name)

    monkeypatch.setattr(ReinLayer, "object_queries", counted)
    return names


def readers(model):
    """Contents and positions, in the order in which the decoder reads them."""
    found = [module for module in model.modules() if isinstance(module, ReinQueries)]
    return sorted(found, key=lambda one: not one.content)


def gradients(model, weights):
    model.zero_grad()
    sum((one * torch.arange(one.numel()).view_as(one)).sum() for one in weights).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("training", [False, True])
def test_a_forward_pass_computes_them_once(rein_model, pixel_values, computed, training):
    rein_model.train(training)
    for _ in range(2):
        with torch.set_grad_enabled(training):
            rein_model(pixel_values)
    assert computed == ["default"] * 2


def test_gradients_are_those_of_both(rein_model, computed):
    contents, positions = readers(rein_model.double())
    found = gradients(rein_model, query_weights(contents, positions))
    assert len(computed) == 1
    expected = gradients(rein_model, [contents.weight])
    for name, grad in gradients(rein_model, [positions.weight]).items():
        expected[name] = expected[name] + grad if name in expected else grad
    assert found.keys() == expected.keys() and len(found) == 8  # A, B, and W and b of W_Q, W_M and W_F
    for name in expected:
        torch.testing.assert_close(found[name], expected[name])


def test_nothing_is_left_for_the_next_pass(rein_model, computed):
    contents, positions = readers(rein_model)
    before = [one.detach().clone() for one in query_weights(contents, positions)]
    layer = next(module for module in rein_model.modules() if isinstance(module, ReinLayer))
    layer.rein_query_merge["default"].bias.data.add_(1)  # which no version counter sees
    after = query_weights(contents, positions)
    torch.testing.assert_close(after[1], before[1] + 1)
    assert torch.equal(contents.weight, after[0]) and torch.equal(positions.weight, after[1])
    assert len(computed) == 4


def test_without_an_adapter_they_are_the_learned_ones(rein_model, segmenter, computed):
    contents, positions = readers(rein_model)
    with rein_model.disable_adapter():
        assert query_weights(contents, positions)[1] is positions.base_layer.weight
    embeddings = torch.nn.Embedding(8, 4), torch.nn.Embedding(8, 4)
    assert query_weights(*embeddings) == tuple(one.weight for one in embeddings)
    assert not computed
