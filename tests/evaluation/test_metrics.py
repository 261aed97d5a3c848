"""MeanIoU: by hand, against a loop over pixels, and against the arithmetic of `evaluate`."""

import itertools
import math

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from rein_hf import MeanIoU


def by_pixel(pairs, count: int, ignore: int = 255) -> list[float]:
    """IoU of each class from sets of pixels."""
    iou = []
    for index in range(count):
        intersection = union = 0
        for prediction, reference in pairs:
            for p, r in zip(prediction.ravel(), reference.ravel(), strict=True):
                if r != ignore:
                    intersection += p == index and r == index
                    union += p == index or r == index
        iou.append(intersection / union if union else math.nan)
    return iou


def mean_iou_of_evaluate(predictions, references, num_labels: int, ignore_index: int = 255) -> dict:
    """The arithmetic of `evaluate.load("mean_iou")`, whose script is only on the Hub: sums of histograms."""
    intersection, predicted, labelled = np.zeros((3, num_labels))
    for prediction, reference in zip(predictions, references, strict=True):
        valid = reference != ignore_index
        prediction, reference = prediction[valid], reference[valid]
        for total, values in (
            (intersection, prediction[prediction == reference]),
            (predicted, prediction),
            (labelled, reference),
        ):
            total += np.histogram(values, bins=num_labels, range=(0, num_labels - 1))[0]
    with np.errstate(invalid="ignore"):
        iou = intersection / (predicted + labelled - intersection)
    return {
        "mean_iou": np.nanmean(iou),
        "overall_accuracy": intersection.sum() / labelled.sum(),
        "per_category_iou": iou,
    }


def test_half_right():
    metric = MeanIoU(["road", "sky"])
    metric.add(prediction=np.array([[0, 0, 0], [1, 1, 1]]), reference=np.array([[0, 0, 1], [1, 1, 0]]))
    assert metric.confusion.tolist() == [[2, 1], [1, 2]]
    assert metric.compute() == {
        "mean_iou": 0.5,
        "overall_accuracy": pytest.approx(4 / 6),
        "per_class_iou": {"road": 0.5, "sky": 0.5},
    }


def test_rows_are_the_reference():
    metric = MeanIoU(["a", "b", "c"])
    metric.add(prediction=np.array([[2, 2, 1]]), reference=np.array([[0, 0, 1]]))
    assert metric.confusion.tolist() == [[0, 0, 2], [0, 1, 0], [0, 0, 0]]
    assert metric.confusion.dtype == np.int64


def test_an_absent_class_has_no_iou_and_no_part_in_the_mean():
    """A class that is predicted where it is not has one, of 0."""
    metric = MeanIoU(["road", "sky", "car", "bus"])
    metric.add(prediction=np.array([[0, 0, 1, 2]]), reference=np.array([[0, 0, 0, 0]]))
    scores = metric.compute()
    assert math.isnan(scores["per_class_iou"].pop("bus"))
    assert scores["per_class_iou"] == {"road": 0.5, "sky": 0.0, "car": 0.0}
    assert scores["mean_iou"] == pytest.approx(0.5 / 3) and scores["overall_accuracy"] == 0.5


def test_ignored_pixels_do_not_count():
    """Whatever is predicted there; not even as a false positive."""
    reference = np.array([[0, 255, 1, 255]], np.uint8)
    for there in (0, 1):
        metric = MeanIoU(["road", "sky"])
        metric.add(prediction=np.array([[0, there, 1, there]], np.uint8), reference=reference)
        assert metric.compute()["mean_iou"] == 1.0 and metric.confusion.sum() == 2
    other = MeanIoU(["road", "sky"], ignore_index=1)
    other.add(prediction=np.array([[0, 1]]), reference=np.array([[0, 1]]))
    assert other.confusion.tolist() == [[1, 0], [0, 0]]


def test_against_a_loop_over_pixels():
    rng = np.random.default_rng(0)
    metric, pairs = MeanIoU([str(index) for index in range(6)]), []
    for _ in range(3):
        reference = rng.choice([0, 1, 2, 4, 255], (20, 30)).astype(np.uint8)
        prediction = np.where(rng.random((20, 30)) < 0.6, reference, rng.integers(0, 5, (20, 30))).clip(max=4)
        pairs.append((prediction.astype(np.uint8), reference))
        metric.add(prediction=pairs[-1][0], reference=reference)
    expected = by_pixel(pairs, 6)
    scores = metric.compute()
    np.testing.assert_allclose(list(scores["per_class_iou"].values()), expected, rtol=1e-12)
    assert scores["mean_iou"] == pytest.approx(np.mean(expected[:5])) and math.isnan(expected[5])
    right = sum(((p == r) & (r != 255)).sum() for p, r in pairs) / sum((r != 255).sum() for _, r in pairs)
    assert scores["overall_accuracy"] == pytest.approx(right)
    assert metric.confusion.sum() == sum((r != 255).sum() for _, r in pairs)


def test_the_example_of_evaluates_documentation():
    """Its numbers, by hand: class 2 is right in 3 of 8 pixels that hold or are called it, class 3 in 2 of 5."""
    predictions = [[[1, 2], [3, 4], [5, 255]], [[2, 7], [9, 2], [3, 6]], [[2, 2, 3], [8, 2, 4], [3, 255, 2]]]
    references = [[[0, 3], [5, 4], [6, 255]], [[1, 7], [9, 2], [3, 6]], [[1, 2, 2], [8, 2, 1], [3, 255, 1]]]
    predictions, references = [*map(np.array, predictions)], [*map(np.array, references)]
    scores = MeanIoU([str(index) for index in range(10)]).compute(predictions=predictions, references=references)
    assert list(scores["per_class_iou"].values()) == [0, 0, 3 / 8, 2 / 5, 1 / 2, 0, 1 / 2, 1, 1, 1]
    assert scores["mean_iou"] == pytest.approx(0.4775) and scores["overall_accuracy"] == pytest.approx(10 / 19)
    theirs = mean_iou_of_evaluate(predictions, references, 10)
    assert theirs["mean_iou"] == pytest.approx(0.4775) and theirs["overall_accuracy"] == pytest.approx(10 / 19)


@pytest.mark.parametrize("classes", [2, 11, 19, 150])
def test_against_the_arithmetic_of_evaluate(classes):
    rng = np.random.default_rng(classes)
    references, predictions = [], []
    for _ in range(4):
        reference = rng.integers(0, classes - 1, (37, 53))  # the last class is nowhere
        prediction = np.where(rng.random((37, 53)) < 0.7, reference, rng.integers(0, classes - 1, (37, 53)))
        references.append(np.where(rng.random((37, 53)) < 0.1, 255, reference).astype(np.uint8))
        predictions.append(prediction)
    scores = MeanIoU([str(index) for index in range(classes)]).compute(predictions=predictions, references=references)
    theirs = mean_iou_of_evaluate(predictions, references, classes)
    np.testing.assert_allclose([*scores["per_class_iou"].values()], theirs["per_category_iou"], rtol=1e-12)
    assert math.isnan(scores["per_class_iou"][str(classes - 1)])
    assert scores["mean_iou"] == pytest.approx(theirs["mean_iou"], rel=1e-12)
    assert scores["overall_accuracy"] == pytest.approx(theirs["overall_accuracy"], rel=1e-12)


def test_computing_counts_what_is_given_and_keeps_what_was():
    metric = MeanIoU(["a", "b"])
    metric.add(prediction=np.array([[0, 1]]), reference=np.array([[0, 0]]))
    scores = metric.compute(predictions=[np.array([[1, 1]])], references=[np.array([[1, 1]])])
    assert scores["per_class_iou"] == {"a": 0.5, "b": 2 / 3} and scores == metric.compute()


def test_the_sum_decides_and_not_the_mean_of_images():
    metric = MeanIoU(["a", "b"])
    metric.add(prediction=np.zeros((1, 9), int), reference=np.zeros((1, 9), int))
    metric.add(prediction=np.array([[0]]), reference=np.array([[1]]))
    assert metric.compute()["per_class_iou"] == {"a": 0.9, "b": 0.0}


def test_a_batch_is_one_after_the_other():
    rng = np.random.default_rng(0)
    predictions, references = rng.integers(0, 3, (2, 4, 5, 6))
    one, batch, tensors = (MeanIoU("abc") for _ in range(3))
    for prediction, reference in zip(predictions, references, strict=True):
        one.add(prediction=prediction, reference=reference)
    batch.add_batch(predictions=predictions, references=list(references))
    tensors.add_batch(predictions=torch.from_numpy(predictions), references=torch.from_numpy(references).byte())
    assert one.confusion.sum() == 120
    assert np.array_equal(one.confusion, batch.confusion) and np.array_equal(one.confusion, tensors.confusion)
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        batch.add_batch(predictions=predictions, references=references[:3])


@pytest.mark.parametrize("ignore", [255, 2, -1, -100, 70_000])
def test_any_integers(ignore):
    """Whatever their type and the id of what is ignored; the maps themselves stay as they are."""
    rng = np.random.default_rng(0)
    types = [np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.int32, np.int64, bool]
    for type_of_prediction, type_of_reference in itertools.product(types, types):
        prediction = rng.integers(0, 2, (9, 8)).astype(type_of_prediction)
        reference = rng.integers(0, 2, (9, 8)).astype(type_of_reference)
        if type_of_reference is not bool:
            limits = np.iinfo(type_of_reference)
            reference[2:4] = ignore if limits.min <= ignore <= limits.max else 0
        expected = [[((reference == row) & (prediction == column)).sum() for column in (0, 1)] for row in (0, 1)]
        copies = prediction.copy(), reference.copy()
        for convert in (np.asarray, torch.from_numpy):
            metric = MeanIoU(["a", "b"], ignore_index=ignore)
            metric.add(prediction=convert(prediction), reference=convert(reference))
            assert metric.confusion.tolist() == expected and metric.confusion.dtype == np.int64
        assert np.array_equal(prediction, copies[0]) and np.array_equal(reference, copies[1])


def test_more_classes_than_a_byte_has_values():
    metric = MeanIoU([str(index) for index in range(300)], ignore_index=-1)
    metric.add(prediction=np.array([[299, 256, 3]]), reference=np.array([[299, 1, -1]]))
    metric.add(prediction=np.array([[254, 7]], np.uint8), reference=np.array([[254, 255]], np.uint8))
    assert np.argwhere(metric.confusion).tolist() == [[1, 256], [254, 254], [255, 7], [299, 299]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        # its IoU of [0, 0, 1] found for [0, 1, 1] would have been 0.833, with one of the classes lost
        ({"classes": ["car", "road", "car"]}, r"^classes has several classes named \['car'\]"),
        ({"classes": ["a", "b"], "scored": ["a", "a"]}, r"^scored has several classes named \['a'\]"),
        ({"classes": ["a", "b"], "scored": ["c"]}, r"^scored names \['c'\]; expected some of the classes"),
        (
            {"classes": list(map(str, range(256)))},
            "^classes has 256 names, and pixels of '255', which has the id 255, would",
        ),
    ],
)
def test_classes_that_would_be_lost_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        MeanIoU(**arguments)


def test_pictures_views_and_read_only_arrays():
    """What Pillow and slices give."""
    picture = Image.fromarray(np.array([[0, 1, 1], [1, 0, 255]], np.uint8))
    flipped = np.array([[1, 1, 0], [0, 0, 1]], np.uint8)[:, ::-1]
    metric = MeanIoU(["a", "b"])
    metric.add(prediction=flipped, reference=picture)
    metric.add(prediction=torch.from_numpy(flipped.copy()), reference=np.asarray(picture))
    assert metric.confusion.tolist() == [[4, 0], [0, 6]]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_device():
    rng = np.random.default_rng(0)
    prediction, reference = rng.integers(0, 3, (2, 50, 60)).astype(np.uint8)
    host, device = MeanIoU("abc"), MeanIoU("abc")
    for convert in (torch.from_numpy, lambda values: torch.from_numpy(values).long()):
        host.add(prediction=prediction, reference=reference)
        device.add(prediction=convert(prediction).cuda(), reference=reference)
    assert np.array_equal(host.confusion, device.confusion)


@pytest.mark.parametrize(
    ("prediction", "reference", "message"),
    [
        ([[0.0, 1.0]], [[0, 1]], r"prediction holds torch.float64; expected the integer ids of classes"),
        ([[0, 1]], [[0, 300]], r"reference holds values from 0 to 300; expected 0 to 2 or 255\."),
        ([[0, -256]], [[0, 1]], r"prediction holds values from -256 to 0; expected 0 to 2\."),
        ([[0, 2**32]], [[0, 1]], r"prediction holds values from 0 to 4294967296; expected 0 to 2\."),
        ([[0, 1]], [[0], [1]], r"prediction has shape \(1, 2\), reference \(2, 1\); expected the same"),
        ([[0, 3]], [[0, 1]], r"prediction holds values from 0 to 3; expected 0 to 2\."),
        ([[0, -1]], [[0, 1]], r"prediction holds values from -1 to 0; expected 0 to 2\."),
        ([[0, 1]], [[1, 7]], r"reference holds values from 1 to 7; expected 0 to 2 or 255\."),
        ([[0, 255]], [[1, 2]], r"prediction holds values from 0 to 255; expected 0 to 2\."),
    ],
)
def test_wrong_maps_are_refused_and_not_counted(prediction, reference, message):
    metric = MeanIoU(["a", "b", "c"])
    with pytest.raises(ValueError, match=message):
        metric.add(prediction=np.array(prediction), reference=np.array(reference))
    assert metric.confusion.sum() == 0


def test_nothing_counted_is_nan():
    metric = MeanIoU(["a", "b"])
    metric.add(prediction=np.zeros((2, 2), int), reference=np.full((2, 2), 255))
    scores = metric.compute()
    assert math.isnan(scores["mean_iou"]) and math.isnan(scores["overall_accuracy"])
    assert all(map(math.isnan, scores["per_class_iou"].values()))


def test_reducing_in_one_process_changes_nothing():
    metric = MeanIoU(["a", "b"])
    metric.add(prediction=np.array([[0, 1, 1]]), reference=np.array([[0, 0, 1]]))
    metric.confusion *= 2**40  # counts stay exact beyond float32
    metric.confusion[0, 1] += 1
    before = metric.confusion.copy()
    metric.reduce(Accelerator(cpu=True))
    assert np.array_equal(metric.confusion, before) and metric.confusion.dtype == np.int64
    metric.add(prediction=np.array([[1]]), reference=np.array([[0]]))
    assert metric.confusion[0, 1] == before[0, 1] + 1


def test_reducing_sums_over_processes():
    """What an accelerator of three processes with equal counts would do."""

    class Three:
        device = torch.device("cpu")

        def reduce(self, counts, reduction):
            assert reduction == "sum"
            return 3 * counts

    metric = MeanIoU(["a", "b"])
    metric.add(prediction=np.array([[0, 1, 1]]), reference=np.array([[0, 0, 1]]))
    metric.reduce(Three())
    assert metric.confusion.tolist() == [[3, 3], [0, 3]]
