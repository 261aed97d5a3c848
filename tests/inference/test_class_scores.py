"""Scores of classes: the kernel for GPUs (interpreted) against torch's operations, and where it is computed."""

import pytest
import torch

from rein_hf.inference import class_scores as module
from rein_hf.inference import semantic_scores
from tests.support.kernel_device import DEVICE, MARKS
from tests.support.operator_count import OperatorCount, path_of_cuda


triton = pytest.importorskip("triton", reason="kernels for GPUs need Triton")

pytestmark = MARKS


def logits(batch: int, queries: int, classes: int, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Class logits and mask logits, no two of which are alike."""
    generator = torch.Generator().manual_seed(0)
    of_classes = 2 * torch.randn(batch, queries, classes + 1, generator=generator)
    return of_classes, 5 * torch.randn(batch, queries, height, width, generator=generator)


def on_gpu(masks: torch.Tensor, classes: torch.Tensor, height: int, width: int) -> torch.Tensor:
    return module.class_scores_triton.class_scores(masks.to(DEVICE), classes.to(DEVICE), height, width).cpu()


@pytest.mark.parametrize(
    ("sizes", "asked"),
    [
        ((1, 100, 19, 4, 5), (16, 20)),  # the paper's queries, classes and factor
        ((2, 8, 3, 5, 7), (9, 70)),  # more pixels than a program has, and not a multiple of them
        ((2, 33, 16, 6, 6), (4, 3)),  # made smaller; one query more than a block of them
        ((1, 5, 1, 3, 4), (3, 4)),  # as they are
        ((1, 7, 2, 1, 1), (2, 5)),  # of one pixel
        ((1, 20, 150, 2, 3), (5, 6)),
        ((1, 3, 256, 2, 2), (3, 3)),
    ],
    ids=str,
)
def test_the_gpu_kernel_gives_what_torch_gives(sizes, asked):
    of_classes, masks = logits(*sizes)
    classes = of_classes.softmax(-1)[..., :-1]
    assert not classes.is_contiguous()
    expected = module.class_scores_in_torch(masks.double(), classes.double(), *asked)
    found = on_gpu(masks, classes, *asked)
    assert found.dtype == torch.float32 and found.is_contiguous()
    torch.testing.assert_close(found.double(), expected, rtol=2e-6, atol=2e-6)
    strided = masks.mT.contiguous().mT
    assert torch.equal(on_gpu(strided, classes, *asked), found)


def test_sure_masks_of_one_pixel_and_numbers_that_are_none():
    of_classes, masks = logits(1, 4, 3, 5, 5)
    masks[:] = -1e4
    masks[0, 2, 1, 3] = 1e4
    masks[0, 3, 4, 4] = torch.nan
    classes = of_classes.softmax(-1)[..., :-1]
    found, expected = on_gpu(masks, classes, 5, 5), module.class_scores_in_torch(masks, classes, 5, 5)
    torch.testing.assert_close(found[:, :3], expected[:, :3])  # beside it, a share of 0 of it is none either
    torch.testing.assert_close(found[0, 1, 3], classes[0, 2])
    assert found[0, 4, 4].isnan().all() and (found[0, 0] == 0).all()


def test_where_it_is_computed(monkeypatch):
    of_classes, masks = logits(2, 6, 4, 5, 6)

    def names(*arguments) -> set[str]:
        with path_of_cuda(), OperatorCount() as count:
            semantic_scores(*arguments)
        return set(count.names)

    with torch.no_grad():
        expected = semantic_scores(of_classes, masks, (10, 12))
        assert names(of_classes, masks, (10, 12)) == {"aten::_softmax", "rein_hf::class_scores"}
        with path_of_cuda():
            assert torch.equal(semantic_scores(of_classes, masks, (10, 12)), expected)
            with torch.autocast("cpu", torch.bfloat16):
                assert torch.equal(semantic_scores(of_classes, masks, (10, 12)), expected)
        assert "rein_hf::class_scores" not in names(of_classes.double(), masks.double(), (10, 12))
        assert "rein_hf::class_scores" not in names(torch.zeros(2, 6, 258), masks, (10, 12))
        assert "rein_hf::class_scores" in names(torch.zeros(2, 6, 257), masks, (10, 12))
        assert "rein_hf::class_scores" not in names(of_classes, masks, (65_536, 1))
    masks.requires_grad_()
    with path_of_cuda():
        semantic_scores(of_classes, masks, (10, 12)).sum().backward()
    assert masks.grad.abs().sum() > 0


def test_torch_finds_nothing_wrong_with_the_operator():
    of_classes, masks = logits(2, 6, 4, 5, 6)
    torch.library.opcheck(module.class_scores, (masks.to(DEVICE), of_classes.softmax(-1).to(DEVICE), 10, 12))
