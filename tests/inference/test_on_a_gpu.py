"""What inference does on a GPU, on tensors that say they are there: the branches that a CPU never takes run. Nothing
is computed on the host, copied from it, or asked of the device, so a CUDA graph can record it."""

import copy

import pytest
import torch

from rein_hf import slide_inference
from rein_hf.head import class_and_mask_logits
from rein_hf.inference import predict_labels, prepare_for_inference
from rein_hf.inference.strips import resize_pixels
from tests.support.fake_cuda import FakeCuda
from tests.support.operator_count import OperatorCount, path_of_cuda


@pytest.fixture
def gpu():
    return FakeCuda()


def logits_of(model, pixel_values):
    with torch.no_grad(), torch.autocast(pixel_values.device.type, torch.bfloat16):
        return class_and_mask_logits(model, pixel_values)


def test_what_is_on_the_host_is_noted(gpu):
    values = gpu.tensor(torch.ones(4, 6))
    with gpu.running():
        rows = values[1:, None, ..., 0] * 2
        values[:, 1] = 0
        assert rows.shape == (3, 1) and rows.device.type == "cuda" and values[rows[:, 0].long()].shape == (3, 6)
        assert values[-1, 2:4].shape == (2,)
        assert not gpu.on_host
        torch.arange(4).to(values.device)
        rows.cpu()
        with pytest.raises(Exception, match="_local_scalar_dense"):
            bool(rows.sum() > 0)
    assert gpu.on_host == ["aten::arange", "aten::_to_copy", "aten::_to_copy", "aten::_local_scalar_dense"]


def test_logits_need_nothing_of_the_host(rein_model, pixel_values, gpu):
    prepare_for_inference(rein_model, torch.bfloat16)
    expected = logits_of(rein_model, pixel_values)
    model, images = gpu.move(copy.deepcopy(rein_model)), gpu.tensor(pixel_values)
    with gpu.running():
        for _ in range(2):
            found = logits_of(model, images)
    assert not gpu.on_host
    for one, other in zip(found, expected, strict=True):
        assert one.device.type == "cuda" and one.shape == other.shape and one.dtype == other.dtype


def test_operators_are_counted_on_the_path_that_a_gpu_takes(rein_model, pixel_values, gpu):
    """`path_of_cuda`, by which they are counted elsewhere, takes the same branches."""
    prepare_for_inference(rein_model, torch.bfloat16)
    model, images = gpu.move(copy.deepcopy(rein_model)), gpu.tensor(pixel_values)
    with path_of_cuda():
        logits_of(rein_model, pixel_values)
        with OperatorCount() as patched:
            logits_of(rein_model, pixel_values)
    with gpu.running():
        logits_of(model, images)
        with OperatorCount() as count:
            logits_of(model, images)
    # those of attention and of positions have other names, or are computed each time, for tensors without values
    # and values that are float32 there under autocast are in half precision on a CPU, which only torch's norms take
    for names in (count.names, patched.names):
        assert names["rein_hf::sum_and_norm"] > names["aten::native_layer_norm"] > 0
        names["norms"] = names["rein_hf::sum_and_norm"] + names["aten::native_layer_norm"]
    products = ("aten::addmm", "aten::mm", "aten::addmm_", "norms", "rein_hf::sample_and_sum")
    for name in (*products, "aten::relu", "aten::relu_", "aten::_softmax", "aten::log", "aten::convolution"):
        assert count.names[name] == patched.names[name] > 0, name


@pytest.mark.parametrize("side", [64, 50, 150])  # one window, a smaller one, and several
def test_labels_of_a_photo_need_nothing_of_the_host(rein_model, gpu, side):
    model = gpu.move(prepare_for_inference(rein_model))
    photo = gpu.tensor(torch.zeros(3, 120, 100, dtype=torch.uint8))
    with gpu.running():
        small = resize_pixels(photo, (side, side))
        labels = predict_labels(slide_inference(model, small[None].float()), (120, 100))
    assert small.shape == (3, side, side * 5 // 6 + (side == 50)) and small.dtype == torch.uint8
    assert labels.shape == (1, 120, 100) and labels.dtype == torch.uint8 and labels.device.type == "cuda"
    assert not gpu.on_host


def test_what_losses_are_divided_by_is_not_copied_from_the_host(rein_model, gpu):
    """Such a copy would wait for the step before."""
    criterion, classes = rein_model.get_base_model().criterion, [torch.arange(3), torch.arange(0)]
    with gpu.running():
        found = criterion.get_num_masks(classes, torch.device("cuda:0"))
    assert found.device.type == "cuda" and not gpu.on_host
