"""rein_hf.criterion: where the paper's loss differs from the stock one."""

import pytest
import torch
from accelerate import PartialState
from transformers.models.mask2former.modeling_mask2former import Mask2FormerLoss

from rein_hf import criterion as criterion_module
from rein_hf.criterion import ReinCriterion


@pytest.fixture
def outputs():
    generator = torch.Generator().manual_seed(0)
    masks = torch.randn(3, 2, 8, 16, 16, generator=generator, requires_grad=True)
    classes = torch.randn(3, 2, 8, 4, generator=generator, requires_grad=True)
    return masks, classes


def arguments(masks, classes, mask_labels, class_labels):
    auxiliary = [
        {"masks_queries_logits": m, "class_queries_logits": c} for m, c in zip(masks[:-1], classes[:-1], strict=True)
    ]
    return masks[-1], classes[-1], mask_labels, class_labels, auxiliary


def targets(*counts):
    generator = torch.Generator().manual_seed(1)
    masks = [(torch.rand(count, 32, 32, generator=generator) > 0.5).float() for count in counts]
    return masks, [torch.arange(count) for count in counts]


def test_equals_the_stock_loss_output_by_output(segmenter, outputs):
    """With one output there is one order: the stock criterion is the reference, bit for bit."""
    masks, classes = outputs
    mask_labels, class_labels = targets(3, 2)
    stock = Mask2FormerLoss(segmenter.config, segmenter.weight_dict)
    assert isinstance(segmenter.criterion, ReinCriterion)
    torch.manual_seed(7)
    expected = stock(masks[-1], classes[-1], mask_labels, class_labels)
    torch.manual_seed(7)
    found = segmenter.criterion(masks[-1], classes[-1], mask_labels, class_labels)
    assert found.keys() == expected.keys() == {"loss_cross_entropy", "loss_mask", "loss_dice"}
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_random_points_are_drawn_in_the_decoders_order(segmenter, outputs):
    masks, classes = outputs
    mask_labels, class_labels = targets(3, 2)
    torch.manual_seed(7)
    found = segmenter.criterion(*arguments(masks, classes, mask_labels, class_labels))
    torch.manual_seed(7)
    for index, suffix in enumerate(("_0", "_1", "")):
        expected = segmenter.criterion(masks[index], classes[index], mask_labels, class_labels)
        for name, loss in expected.items():
            assert torch.equal(found[name + suffix], loss)


@pytest.mark.parametrize("counts", [(2, 0), (0, 3), (0, 0)])
def test_images_without_a_valid_pixel(segmenter, outputs, counts):
    masks, classes = outputs
    losses = segmenter.criterion(*arguments(masks, classes, *targets(*counts)))
    total = sum(losses.values())
    total.backward()
    assert total.isfinite() and masks.grad.isfinite().all() and classes.grad.abs().max() > 0
    if counts == (0, 0):
        assert all(loss == 0 for name, loss in losses.items() if "cross_entropy" not in name)
        assert (masks.grad == 0).all()


def test_number_of_masks_is_averaged_over_processes_once(segmenter, monkeypatch):
    """Two processes of 3 and 5 masks: 4 each. The stock criterion divides by their number again."""
    monkeypatch.setattr(PartialState, "_shared_state", {"num_processes": 2})
    monkeypatch.setattr(criterion_module, "reduce", lambda tensor, reduction: (tensor + 5) / 2)
    number = segmenter.criterion.get_num_masks([torch.zeros(2), torch.zeros(1)], torch.device("cpu"))
    assert number == 4.0


def test_at_least_one_mask(segmenter):
    assert segmenter.criterion.get_num_masks([torch.zeros(0)], torch.device("cpu")) == 1.0


def test_half_precision_outputs_give_float32_losses(segmenter, outputs):
    masks, classes = outputs
    mask_labels, class_labels = targets(3, 2)
    with torch.autocast("cpu", torch.bfloat16):
        torch.manual_seed(7)
        half = segmenter.criterion(masks[-1].bfloat16(), classes[-1].bfloat16(), mask_labels, class_labels)
    torch.manual_seed(7)
    rounded = segmenter.criterion(
        masks[-1].bfloat16().float(), classes[-1].bfloat16().float(), mask_labels, class_labels
    )
    for name, loss in half.items():
        assert loss.dtype == torch.float32 and torch.equal(loss, rounded[name])
