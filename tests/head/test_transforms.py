"""The fast head under torch's program transformations: all that stock modules can do, and more."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jvp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from rein_hf.head import class_and_mask_logits
from rein_hf.head.deformable_sampling import sample_and_sum
from rein_hf.head.mask2former import FAST_MODULES
from rein_hf.head.masks import mask_logits
from rein_hf.head.positions import SinePositions


STOCK = {fast: stock for stock, fast in FAST_MODULES.items()}


@pytest.fixture
def heads(segmenter):
    """What stands on the backbone, as functions of its features and parameters: the fast modules and stock ones."""

    class Head(nn.Module):
        def __init__(self, model) -> None:
            super().__init__()
            self.decoder, self.transformer = model.pixel_level_module.decoder, model.transformer_module

        def forward(self, *features):
            pixels = self.decoder(list(features), output_hidden_states=False, output_attentions=False)
            output = self.transformer(
                multi_scale_features=pixels.multi_scale_features, mask_features=pixels.mask_features
            )
            return output.masks_queries_logits[-1], output.intermediate_hidden_states[-1]

    fast = Head(segmenter.double().eval().model)
    with torch.no_grad():
        for parameter in fast.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    stock = copy.deepcopy(fast)
    for module in stock.modules():
        module.__class__ = STOCK.get(type(module), type(module))
    return fast, stock


def features(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(2, 32, s, s + 2, generator=generator, dtype=torch.float64) for s in (16, 8, 4, 2))


def loss(outputs) -> torch.Tensor:
    return sum((tensor * torch.linspace(-1, 1, tensor.shape[-1]).to(tensor)).square().mean() for tensor in outputs)


def both(heads, function):
    """What a function gives of the fast head and of the stock one, which must be the same."""
    found, expected = (function(head) for head in heads)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-12)
    return found


def test_gradients_of_torch_func(heads):
    parameters = dict(heads[0].named_parameters())
    found = both(heads, lambda head: grad(lambda p: loss(functional_call(head, p, features())))(parameters))
    expected = torch.autograd.grad(loss(heads[0](*features())), list(parameters.values()), allow_unused=True)
    for (name, one), other in zip(found.items(), expected, strict=True):
        torch.testing.assert_close(one, torch.zeros_like(one) if other is None else other, msg=name)


def test_forward_mode(heads):
    """As `torch.func.jvp` of features and parameters, and as dual tensors. `grid_sample` of the stock head has none:
    the stock head's gradient along the same direction is what is expected."""
    fast, stock = heads
    inputs, tangents = features(), features(1)
    parameters = {name: p.detach() for name, p in fast.named_parameters()}
    directions = {name: torch.full_like(p, 0.01) for name, p in parameters.items()}

    def by_jvp(p, *x):
        return loss(functional_call(fast, p, x))

    _, found = jvp(by_jvp, (parameters, *inputs), (directions, *tangents))
    for one in inputs:
        one.requires_grad_()
    tensors = [*inputs, *stock.parameters()]
    gradients = torch.autograd.grad(loss(stock(*inputs)), tensors, allow_unused=True)
    pairs = zip(gradients, [*tangents, *directions.values()], strict=True)
    expected = sum((one * direction).sum() for one, direction in pairs if one is not None)
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=0)

    with forward_ad.dual_level(), torch.no_grad():
        by_duals = forward_ad.unpack_dual(loss(fast(*map(forward_ad.make_dual, inputs, tangents)))).tangent
    expected = sum((one * tangent).sum() for one, tangent in zip(gradients, tangents, strict=False))
    torch.testing.assert_close(by_duals, expected, rtol=1e-7, atol=0)


def test_second_derivatives(heads):
    """Of the whole head, against finite differences of the stock head's gradient; `grid_sample` has none. Nor has
    torch's fused attention on CPUs, in stock models too, so another kernel is asked for."""
    fast, stock = heads
    direction = features(1)

    def gradient(head, *inputs, create_graph):
        return torch.autograd.grad(loss(head(*inputs)), inputs, create_graph=create_graph)

    inputs = [one.requires_grad_() for one in features()]
    with sdpa_kernel(SDPBackend.MATH):
        first = gradient(fast, *inputs, create_graph=True)
    slope = sum((one * along).sum() for one, along in zip(first, direction, strict=True))
    found = torch.autograd.grad(slope, inputs)
    step = 1e-6
    ahead, behind = (
        gradient(
            stock,
            *[(x + s * d).detach().requires_grad_() for x, d in zip(inputs, direction, strict=True)],
            create_graph=False,
        )
        for s in (step, -step)
    )
    for one, high, low in zip(found, ahead, behind, strict=True):
        torch.testing.assert_close(one, (high - low) / (2 * step), rtol=1e-3, atol=1e-3 * one.abs().max().item())


@torch.no_grad()
def test_vmap(heads):
    """Of the pixel decoder over images, and of its attention over the parameters of an ensemble."""
    decoder, inputs = heads[0].decoder, features()

    def pixels(*maps):
        return decoder([one[None] for one in maps], output_hidden_states=False, output_attentions=False).mask_features[
            0
        ]

    expected = torch.stack([pixels(*[one[image] for one in inputs]) for image in range(2)])
    torch.testing.assert_close(vmap(pixels)(*inputs), expected)

    members = [{name: (1 + k) * p for name, p in decoder.named_parameters()} for k in range(2)]

    def of_member(parameters):
        arguments = {"output_hidden_states": False, "output_attentions": False}
        return functional_call(decoder, parameters, (list(inputs),), arguments).mask_features

    stacked = {name: torch.stack([member[name] for member in members]) for name in members[0]}
    torch.testing.assert_close(vmap(of_member)(stacked), torch.stack([of_member(member) for member in members]))


def test_operators_are_differentiated_twice_and_forward():
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64, requires_grad=True)

    values, points, offsets, weights = (
        random(1, 10, 4),
        random(1, 3, 2, 2),
        random(1, 3, 2, 2, 2, 2),
        random(1, 3, 2, 2, 2),
    )
    assert torch.autograd.gradgradcheck(
        lambda *tensors: sample_and_sum(tensors[0], [2, 3, 1, 4], *tensors[1:]), (values, points, offsets, weights)
    )
    pixels, embeddings = random(2, 3, 2, 2), [random(2, 4, 3), random(2, 2, 3)]

    def masks(pixels, *embeddings):
        return mask_logits(embeddings, pixels)

    assert torch.autograd.gradcheck(masks, (pixels, *embeddings), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(masks, (pixels, *embeddings))


def test_second_derivatives_of_masks_that_the_loss_does_not_use():
    """Their gradient is zero; its derivative with respect to the incoming gradient is not."""
    pixels = torch.randn(1, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    embeddings = torch.randn(1, 4, 3, dtype=torch.float64, requires_grad=True)
    results = []
    for masks in (mask_logits([embeddings], pixels)[0], torch.einsum("bmc,bchw->bmhw", embeddings, pixels)):
        incoming = torch.zeros_like(masks).requires_grad_()
        first = torch.autograd.grad(masks, (pixels, embeddings), incoming, create_graph=True)
        results.append(torch.autograd.grad(sum(one.sum() for one in first), (incoming, pixels, embeddings)))
    torch.testing.assert_close(*results)
    assert results[0][0].abs().min() > 0


def test_traced_graphs_hold_no_operator_of_this_library(rein_model, pixel_values):
    class Logits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = rein_model.requires_grad_(False)

        def forward(self, images):
            return class_and_mask_logits(self.model, images)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls tracing deprecated, and warns of sizes that become constants
        traced = torch.jit.trace(Logits(), pixel_values, check_trace=False)
    assert "rein_hf::" not in str(traced.inlined_graph) and "grid_sampler" in str(traced.inlined_graph)
    other = torch.randn_like(pixel_values)
    torch.testing.assert_close(traced(other), class_and_mask_logits(rein_model, other), rtol=1e-4, atol=1e-4)


def test_positions_made_inside_a_transformation_are_not_kept():
    positions = SinePositions(16, normalize=True)
    shape, device = torch.Size((2, 5, 3, 7)), torch.device("cpu")
    grad(lambda x: (x * positions(shape, device, torch.float64)).sum())(torch.tensor(1.0, dtype=torch.float64))
    with FakeTensorMode():
        positions(shape, device, torch.float64)
    found = positions(shape, device, torch.float64)
    assert type(found) is torch.Tensor and found.data_ptr() and found.isfinite().all()
    assert positions(shape, device, torch.float64).data_ptr() == found.data_ptr()
