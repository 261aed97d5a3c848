"""The operator of deformable attention: its kernels for CPUs and GPUs (interpreted) against the stock function."""

import pytest
import torch
from transformers.models.mask2former.modeling_mask2former import multi_scale_deformable_attention

from rein_hf.head import deformable_sampling
from rein_hf.head.deformable_sampling import sample_and_sum
from rein_hf.head.row_sums import sum_of_rows, sum_of_rows_backward
from tests.support.kernel_device import DEVICE, MARKS


triton = pytest.importorskip("triton", reason="kernels for GPUs need Triton")

TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}
# batch, heads, channels of a head, points, levels (height, width)
SIZES = {
    "the paper's levels, points and channels": (1, 2, 32, 4, [(2, 3), (5, 4), (8, 9)]),
    "one level, two points, six channels": (3, 3, 6, 2, [(4, 4)]),
    "levels of one line": (2, 1, 8, 4, [(3, 5), (1, 7), (6, 1), (2, 2)]),
}
QUERIES = 17  # no multiple of what a program goes through
pytestmark = MARKS


def arguments(size: str, dtype: torch.dtype) -> tuple[list[int], list[torch.Tensor]]:
    """Shapes, and values, reference points, offsets and weights: samples on all sides of all borders, and far outside.
    None is so close to a pixel's centre that rounding moves it to the other side."""
    batch, heads, channels, points, shapes = SIZES[size]
    generator = torch.Generator().manual_seed(0)
    levels, tokens = len(shapes), sum(height * width for height, width in shapes)
    values = torch.randn(batch, tokens, heads * channels, generator=generator, dtype=torch.float64)
    reference_points = torch.full((batch, QUERIES, levels, 2), 0.5, dtype=torch.float64)
    steps = torch.randint(-48, 48, (batch, QUERIES, heads, levels, points, 2), generator=generator) / 4 + 0.125
    steps[:, 0] *= 1000
    weights = torch.randn(batch, QUERIES, heads, levels * points, generator=generator, dtype=torch.float64).softmax(-1)
    tensors = [values, reference_points, steps, weights.unflatten(-1, (levels, points))]
    return [side for shape in shapes for side in shape], [tensor.to(dtype).requires_grad_() for tensor in tensors]


def expected(size: str, tensors: list[torch.Tensor]) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """What the stock function gives in float64, and the output's gradient carried back by autograd."""
    *_, shapes = SIZES[size]
    heads = SIZES[size][1]
    values, points, offsets, weights = inputs = [tensor.detach().double().requires_grad_() for tensor in tensors]
    sizes = torch.tensor([[width, height] for height, width in shapes], dtype=torch.float64)
    locations = points[:, :, None, :, None] + offsets / sizes[:, None]
    output = multi_scale_deformable_attention(values.unflatten(-1, (heads, -1)), shapes, locations, weights)
    return output, torch.autograd.grad(output, inputs, gradient_like(output))


def gradient_like(output: torch.Tensor) -> torch.Tensor:
    return torch.linspace(-1, 1, output.numel(), dtype=torch.float64).view(output.shape).to(output.dtype)


def on_gpu(function, *arguments):
    """Calls a function of the kernels for GPUs where these run, and brings what it returns back to the CPU."""
    moved = (one.to(DEVICE) if isinstance(one, torch.Tensor) else one for one in arguments)
    returned = function(*moved)
    return returned.cpu() if isinstance(returned, torch.Tensor) else [one.cpu() for one in returned]


def gpu_forward(*arguments) -> torch.Tensor:
    return on_gpu(deformable_sampling.deformable_triton.forward, *arguments)


def gpu_backward(*arguments) -> list[torch.Tensor]:
    return on_gpu(deformable_sampling.deformable_triton.backward, *arguments)


def assert_close(found, right, dtype: torch.dtype) -> None:
    for one, other in zip(found, right, strict=True):
        assert one.dtype == dtype
        assert (one.double() - other).abs().max() <= TOLERANCE[dtype] * other.abs().max()


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_the_cpu_kernel_and_its_gradients_are_the_stock_ones(size, dtype):
    shapes, tensors = arguments(size, dtype)
    output = sample_and_sum(tensors[0], shapes, *tensors[1:])
    right, gradients = expected(size, tensors)
    assert_close([output], [right], dtype)
    assert_close(torch.autograd.grad(output, tensors, gradient_like(output)), gradients, dtype)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_the_gpu_kernels_are_the_stock_function_and_its_gradients(size, dtype):
    shapes, tensors = arguments(size, dtype)
    values, *others = [tensor.detach() for tensor in tensors]
    output = gpu_forward(values, shapes, *others)
    right, (to_values, _, to_offsets, to_weights) = expected(size, tensors)
    assert_close([output], [right], dtype)
    found = gpu_backward(gradient_like(output), values, shapes, *others)
    assert_close(found, [to_values, to_offsets, to_weights], dtype)


def test_tensors_in_types_of_their_own_as_under_autocast():
    shapes, tensors = arguments("the paper's levels, points and channels", torch.float32)
    values, points, offsets, weights = [tensor.detach() for tensor in tensors]
    mixed = [values.bfloat16(), points, offsets.bfloat16(), weights]
    cpu = sample_and_sum(mixed[0], shapes, *mixed[1:])
    gpu = gpu_forward(mixed[0], shapes, *mixed[1:])
    assert cpu.dtype == gpu.dtype == torch.bfloat16
    torch.testing.assert_close(cpu, gpu, rtol=2e-2, atol=1e-2)
    grad = gradient_like(cpu)
    found = gpu_backward(grad, mixed[0], shapes, *mixed[1:])
    right = deformable_sampling.sample_and_sum_backward(grad, mixed[0], shapes, *mixed[1:])
    for one, other in zip(found, right, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-2, atol=2e-2)


def test_a_number_that_is_none_is_not_hidden():
    shapes, tensors = arguments("the paper's levels, points and channels", torch.float32)
    values, points, offsets, weights = [tensor.detach() for tensor in tensors]
    offsets[0, 3, 1, 1, 0, 0] = torch.nan
    for function in (sample_and_sum, gpu_forward):
        found = function(values, shapes, points, offsets, weights).isnan()
        assert found[0, 3, 32:].all() and found.sum() == 32


@pytest.mark.parametrize("kernel", ["cpu", "gpu"])
def test_samples_on_pixels_and_on_borders_are_exact(kernel):
    """Against a loop over pixels, at whole coordinates, where a corner's weight is zero."""
    shapes = [2, 3, 4, 6, 8, 12]
    values = torch.arange(1.0, 127.0, dtype=torch.float64).view(1, 126, 1)
    columns, rows = (torch.arange(-3, size + 3, dtype=torch.float64) for size in (12, 8))
    grid = torch.cartesian_prod(columns, rows)
    offsets = torch.zeros(1, len(grid), 1, 3, 1, 2, dtype=torch.float64)
    offsets[0, :, 0, 2, 0] = grid + 0.5  # the reference point is the corner of the map
    weights = torch.zeros(1, len(grid), 1, 3, 1, dtype=torch.float64)
    weights[:, :, :, 2] = 1.0
    reference = torch.zeros(1, len(grid), 3, 2, dtype=torch.float64)
    function = sample_and_sum if kernel == "cpu" else gpu_forward
    found = function(values, shapes, reference, offsets, weights)[0, :, 0]
    finest = values[0, 30:, 0].view(8, 12)
    expected = [finest[int(y), int(x)] if 0 <= x < 12 and 0 <= y < 8 else 0.0 for x, y in grid.tolist()]
    assert torch.equal(found, torch.tensor(expected, dtype=torch.float64))


def test_sums_of_rows_and_their_gradients():
    """Rows that are summed several times, once and never."""
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(11, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    index = torch.randint(0, 7, (6, 5), generator=generator, dtype=torch.int32)
    weights = torch.randn(2, 6, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    expected = sum(
        (table[index.long() + step] * weight[..., None]).sum(1) for step, weight in zip((0, 3), weights, strict=True)
    )
    grad = gradient_like(expected)
    detached = table.detach(), index, weights.detach(), [0, 3]
    torch.testing.assert_close(sum_of_rows(*detached), expected)
    torch.testing.assert_close(
        sum_of_rows_backward(grad, *detached), torch.autograd.grad(expected, (table, weights), grad)
    )


def test_torch_finds_nothing_wrong_with_the_operator():
    shapes, tensors = arguments("levels of one line", torch.float64)
    tensors = [tensor.detach().to(DEVICE).requires_grad_() for tensor in tensors]
    torch.library.opcheck(sample_and_sum, (tensors[0], shapes, *tensors[1:]))
