"""How a block's output is refined at the end: patches get their delta, prefix tokens pass."""

import pytest
import torch

from rein_hf.tuner.factors import add_to_patches


@pytest.mark.parametrize("prefix", [0, 2])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_delta_is_added_to_patches(prefix, dtype):
    """As by torch's own operations; with gradients of gradients, forward gradients and `vmap`."""
    output = torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True)
    delta = torch.randn(2, 5, 3, dtype=dtype, requires_grad=True)
    is_patch = (torch.arange(5) >= prefix)[:, None]

    def add(output, delta):
        return add_to_patches(output, delta, prefix)

    def expected(output, delta):
        return torch.where(is_patch, output + delta, output)

    assert torch.equal(add(output, delta), expected(output, delta))
    weights = torch.randn(2, 5, 3, dtype=torch.float64)
    found, right = (
        torch.autograd.grad((f(output, delta).square() * weights).sum(), (output, delta)) for f in (add, expected)
    )
    assert all(torch.equal(*pair) and pair[0].dtype == pair[1].dtype for pair in zip(found, right, strict=True))
    if dtype == torch.float64:
        torch.autograd.gradcheck(add, (output, delta), check_forward_ad=True)
        torch.autograd.gradgradcheck(add, (output, delta))
        torch.testing.assert_close(
            torch.vmap(add)(output[:, None], delta[:, None])[:, 0], expected(output, delta), rtol=0, atol=0
        )


def test_prefix_tokens_pass_whatever_their_delta_is():
    output = torch.randn(1, 3, 2)
    delta = torch.full_like(output, torch.inf)
    assert torch.equal(add_to_patches(output, delta, 2)[:, :2], output[:, :2])
