"""Residual sums and their norms in one operation: the kernel for GPUs (interpreted) against torch's operations, and
where a model computes it."""

from unittest import mock

import pytest
import torch
from torch import nn

from rein_hf.backbone import residual_norms
from rein_hf.backbone.residual_norms import add_scaled, add_scaled_and_norm, norm_and_cast, norm_of_sum, sum_and_norm
from tests.support.kernel_device import DEVICE, MARKS
from tests.support.operator_count import OperatorCount, path_of_cuda


triton = pytest.importorskip("triton", reason="kernels for GPUs need Triton")

pytestmark = MARKS
ALL = "total normed cast placed"


def arguments(shape: tuple[int, ...], dtype: torch.dtype) -> dict:
    """Tensors that no two rows, channels or images have in common, of a mean and a deviation other than 0 and 1."""
    generator = torch.Generator().manual_seed(0)

    def draw(*sizes: int) -> torch.Tensor:
        return torch.randn(*sizes, generator=generator) * 3 + 2

    width = shape[-1]
    return {
        "hidden": draw(*shape),
        "update": draw(*shape).to(dtype),
        "scale": draw(width),
        "weight": draw(width),
        "bias": draw(width),
        "eps": 1e-5,
        "positions": draw(*shape),
        "dtype": dtype,
        "outputs": ALL,
    }


def on_gpu(arguments: dict) -> list[torch.Tensor]:
    """What the kernel for GPUs gives, where it runs."""
    moved = {name: one.to(DEVICE) if isinstance(one, torch.Tensor) else one for name, one in arguments.items()}
    return [one.cpu() for one in residual_norms.residual_norms_triton.sum_and_norm(**moved)]


def assert_same(found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype and one.shape == other.shape
        tolerance = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}[one.dtype]
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)
        if one.dtype == torch.float16 or one.dtype == torch.bfloat16 and DEVICE == "cuda":
            # numbers that differ in the last digit of float32 are rounded to the same but for a few. The interpreter
            # rounds none to bfloat16, but cuts them off
            assert (one != other).float().mean() < 0.01


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(2, 5, 64), (1, 3, 256), (3, 2, 1024), (2, 4, 48), (1, 1, 7)], ids=str)
def test_the_gpu_kernel_gives_what_torch_gives(shape, dtype):
    given = arguments(shape, dtype)
    expected = sum_and_norm(**given)
    found = on_gpu(given)
    assert torch.equal(found[0], expected[0])  # the sum bit for bit: a product is rounded before it is added
    assert_same(found, expected)


@pytest.mark.parametrize(
    "changed",
    [
        {"scale": None},
        {"weight": None},
        {"bias": None},
        {"weight": None, "bias": None, "outputs": "normed"},
        {"update": None, "scale": None, "outputs": "cast"},
        {"outputs": "total"},
        {"outputs": "total cast"},
        {"outputs": "normed placed"},
        {"positions": None, "outputs": "normed cast"},
        {"eps": 3.0},
    ],
    ids=str,
)
def test_what_is_left_out(changed):
    given = arguments((2, 5, 24), torch.bfloat16) | changed
    assert_same(on_gpu(given), sum_and_norm(**given))


def test_positions_of_all_images_and_tensors_that_do_not_lie_in_rows():
    given = arguments((3, 5, 24), torch.bfloat16)
    for positions in (given["positions"][:1], given["positions"][:1].expand(3, -1, -1)):
        assert_same(on_gpu(given | {"positions": positions}), sum_and_norm(**given | {"positions": positions}))
    strided = {name: given[name].mT.contiguous().mT for name in ("hidden", "update", "positions")}
    assert not strided["hidden"].is_contiguous()
    assert_same(on_gpu(given | strided), sum_and_norm(**given))


def test_numbers_that_are_none_are_not_hidden():
    given = arguments((2, 3, 24), torch.bfloat16)
    given["update"][0, 1, 2] = torch.nan
    given["hidden"][1, 0, 5] = torch.inf
    for one, other in zip(on_gpu(given), sum_and_norm(**given), strict=True):
        assert torch.equal(one.isnan(), other.isnan()) and one[0, 1].isnan().any() and one[1, 0].isfinite().all() < 1


def norm_of(given: dict) -> nn.LayerNorm:
    norm = nn.LayerNorm(given["hidden"].shape[-1], eps=given["eps"])
    norm.weight.data, norm.bias.data = given["weight"], given["bias"]
    return norm


@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=str)
def test_one_operator_where_that_saves_time_and_the_same_numbers(dtype):
    given = arguments((2, 5, 24), torch.bfloat16)
    hidden, update, scale, norm = given["hidden"], given["update"], given["scale"], norm_of(given)
    calls = {
        "add_scaled": lambda: [add_scaled(hidden, update, scale)],
        "add_scaled_and_norm": lambda: add_scaled_and_norm(hidden, update, scale, norm),
        "norm_of_sum": lambda: norm_of_sum(hidden, update, norm, dtype),
        "norm_of_sum with positions": lambda: norm_of_sum(hidden, update, norm, dtype, given["positions"]),
        "norm_of_sum of nothing": lambda: norm_of_sum(hidden, None, norm, dtype),
        "norm_and_cast": lambda: [norm_and_cast(hidden, norm, torch.bfloat16)],
    }
    for name, call in calls.items():
        with torch.no_grad():
            expected = call()
            with path_of_cuda(), OperatorCount() as count:
                found = call()
        assert count.names == {"rein_hf::sum_and_norm": 1}, name
        assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True)), name


class OwnNorm(nn.LayerNorm):
    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(inputs)


def test_where_torch_computes_it():
    """With gradients, hooks, other types or shapes, and while something is compiled or transformed."""
    given = arguments((2, 5, 24), torch.float32)
    hidden, update, norm = given["hidden"], given["update"], norm_of(given)

    def names(call) -> set[str]:
        with path_of_cuda(), OperatorCount() as count:
            call()
        return set(count.names)

    ours = {"rein_hf::sum_and_norm"}
    with torch.no_grad():
        assert names(lambda: norm_of_sum(hidden, update, norm)) == ours
        assert names(lambda: norm_of_sum(hidden.double(), update.double(), norm.double())).isdisjoint(ours)
        norm.float()
        assert names(lambda: norm_of_sum(hidden.bfloat16(), update.bfloat16(), norm.bfloat16())).isdisjoint(ours)
        norm.float()
        assert names(lambda: add_scaled(hidden, update[:1], given["scale"])).isdisjoint(ours)
        transformed = torch.func.vmap(lambda one: norm_of_sum(one, one, norm).normed)
        assert names(lambda: transformed(hidden)).isdisjoint(ours)
        seen = []
        hook = norm.register_forward_hook(lambda *arguments: seen.append(arguments))
        assert names(lambda: norm_of_sum(hidden, update, norm)).isdisjoint(ours) and len(seen) == 1
        hook.remove()
        expected = norm_of_sum(hidden, update, norm).normed
        compiled = torch.compile(lambda: norm_of_sum(hidden, update, norm).normed, backend="eager", fullgraph=True)
        with path_of_cuda(), mock.patch.object(residual_norms, "sum_and_norm", None):
            assert torch.equal(compiled(), expected)
    assert names(lambda: norm_of_sum(hidden, update, norm)).isdisjoint(ours)
    with torch.no_grad():
        own = OwnNorm(24, eps=given["eps"])
        assert torch.equal(norm_of_sum(hidden, update, own).normed, own(hidden + update))
        assert names(lambda: norm_of_sum(hidden, update, own)).isdisjoint(ours)
        assert names(lambda: norm_of_sum(hidden, update.double(), norm.double())).isdisjoint(ours)
        norm.float()
    hidden.requires_grad_()
    norm_of_sum(hidden, update, norm).normed.sum().backward()
    assert hidden.grad is not None


def test_torch_finds_nothing_wrong_with_the_operator():
    given = arguments((2, 3, 24), torch.bfloat16)
    moved = [one.to(DEVICE) if isinstance(one, torch.Tensor) else one for one in given.values()]
    torch.library.opcheck(sum_and_norm, tuple(moved))
