"""rein_hf.head.criterion: where the paper's loss differs from the stock one."""

import pytest
import torch
from accelerate import PartialState
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import default_data_collator
from transformers.models.mask2former.modeling_mask2former import Mask2FormerHungarianMatcher, Mask2FormerLoss

from rein_hf.head import ReinCriterion
from rein_hf.head import criterion as criterion_module
from rein_hf.head.matcher import Targets


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


@pytest.mark.parametrize("counts", [(3, 2), (3, 1), (3, 12)])  # 12 masks are more than the 8 queries
def test_equals_the_stock_loss_output_by_output(segmenter, outputs, counts):
    """With one output there is one order: the stock criterion is the reference, for losses and gradients."""
    masks, classes = outputs
    mask_labels, class_labels = targets(*counts)
    class_labels = [labels % 3 for labels in class_labels]
    stock = Mask2FormerLoss(segmenter.config, segmenter.weight_dict)
    stock.get_num_masks = segmenter.criterion.get_num_masks
    assert isinstance(segmenter.criterion, ReinCriterion)
    results = []
    for criterion in (stock, segmenter.criterion):
        torch.manual_seed(7)
        losses = criterion(masks[-1], classes[-1], mask_labels, class_labels)
        results.append((losses, torch.autograd.grad(sum(losses.values()), (masks, classes)), torch.rand(1)))
    (expected, gradients, next_number), (found, found_gradients, found_next_number) = results
    assert found.keys() == expected.keys() == {"loss_cross_entropy", "loss_mask", "loss_dice"}
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(found_gradients, gradients)
    assert found_next_number == next_number  # as many random numbers were drawn


def test_matches_as_the_stock_matcher(segmenter, outputs):
    masks, classes = (logits.detach().clone() for logits in outputs)
    masks[0, 1, 2] = torch.nan  # a diverged query
    mask_labels, class_labels = targets(3, 2)
    matcher = segmenter.criterion.matcher
    stock = Mask2FormerHungarianMatcher(matcher.cost_class, matcher.cost_mask, matcher.cost_dice, matcher.num_points)
    torch.manual_seed(7)
    expected = [pair for m, c in zip(masks, classes, strict=True) for pair in stock(m, c, mask_labels, class_labels)]
    torch.manual_seed(7)
    points = torch.stack([torch.stack([torch.rand(matcher.num_points, 2) for _ in mask_labels]) for _ in masks])
    targets_ = Targets.of_images(mask_labels, class_labels, torch.float32)
    found = matcher(list(zip(masks, classes, strict=True)), targets_, points)
    assert len(found) == len(expected) == 6
    torch.testing.assert_close(found, expected)
    assert 2 not in found[1][0]


def test_one_transfer_to_the_host_and_nothing_else_waits(segmenter, outputs, monkeypatch):
    class NoWaiting(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            assert function.overloadpacket not in waiting, function
            return function(*args, **(kwargs or {}))

    waiting = (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero, torch.ops.aten.masked_select)
    cpu, transfers = torch.Tensor.cpu, []
    monkeypatch.setattr(torch.Tensor, "cpu", lambda tensor: transfers.append(tensor.shape) or cpu(tensor))
    masks, classes = outputs
    with NoWaiting():
        segmenter.criterion(*arguments(masks, classes, *targets(3, 2)))
    assert transfers == [(3, 2, 8, 3)]  # outputs, images, queries, most masks of an image


def test_masks_of_two_sizes_are_refused(segmenter, outputs):
    masks, classes = outputs
    mask_labels = [torch.zeros(2, 32, 32), torch.zeros(1, 32, 48)]
    with pytest.raises(ValueError, match=r"mask_labels have the sizes \[\(32, 32\), \(32, 48\)\]; expected one"):
        segmenter.criterion(*arguments(masks, classes, mask_labels, [torch.arange(2), torch.arange(1)]))


@pytest.mark.parametrize(
    ("masks_of", "classes_of", "message"),
    [
        (
            (2, 1, 1),
            (2, 1, 1),
            "mask_labels are of 3 images and class_labels of 3; expected 2, as many as pixel_values",
        ),
        ((2, 1), (2,), "mask_labels are of 2 images and class_labels of 1; expected 2"),
        ((2, 1), (1, 2), r"masks and of class_labels of each image are \[\(2, 1\), \(1, 2\)\]; expected the same"),
    ],
)
def test_labels_that_do_not_fit_are_refused(segmenter, outputs, masks_of, classes_of, message):
    masks, classes = outputs
    with pytest.raises(ValueError, match=message):
        segmenter.criterion(*arguments(masks, classes, targets(*masks_of)[0], targets(*classes_of)[1]))


def test_labels_stacked_by_the_default_collator(segmenter, outputs):
    """Losses and gradients are those of lists, bit for bit, through the model's own forward pass too."""
    mask_labels, class_labels = targets(3, 3)
    rows = [{"mask_labels": m, "class_labels": c} for m, c in zip(mask_labels, class_labels, strict=True)]
    stacked = default_data_collator(rows)
    assert stacked["mask_labels"].shape == (2, 3, 32, 32) and stacked["class_labels"].shape == (2, 3)
    results = []
    for labels in ((mask_labels, class_labels), (stacked["mask_labels"], stacked["class_labels"])):
        torch.manual_seed(7)
        losses = segmenter.criterion(*arguments(*outputs, *labels))
        gradients = torch.autograd.grad(sum(losses.values()), outputs)
        torch.manual_seed(7)
        with torch.no_grad():
            output = segmenter(torch.ones(2, 3, 64, 64), mask_labels=labels[0], class_labels=labels[1])
        results.append([*losses.values(), *gradients, output.loss])
    assert all(map(torch.equal, *results))


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
