"""Padding and cropping, at work and in a graph for many sizes."""

import pytest
import torch

from rein_hf.backbone.traced_sizes import crop_to, halve, pad_to_multiple
from rein_hf.backbone.windows import partition, unpartition


def rows(number):
    return torch.arange(1.0, 2 * number * 3 + 1).reshape(2, number, 3)


@pytest.mark.parametrize(("size", "count"), [(1, 1), (7, 1), (8, 2), (13, 2), (14, 2), (15, 3)])
def test_zeros_follow_up_to_a_multiple(size, count):
    padded, found = pad_to_multiple(rows(size), 1, 7)
    assert found == count and padded.shape == (2, 7 * count, 3)
    assert torch.equal(padded[:, :size], rows(size)) and not padded[:, size:].any()
    assert torch.equal(crop_to(padded, 1, size), rows(size))


def test_nothing_is_copied_where_nothing_is_to_be_done():
    values = rows(14)
    assert pad_to_multiple(values, 1, 7)[0] is values and crop_to(values, 1, 14) is values


class Padded(torch.nn.Module):
    def forward(self, values):
        padded, count = pad_to_multiple(values, 1, 7)
        # a view that is possible only if torch knows that the size is a multiple
        windows = padded.view(padded.shape[0], count, 7, 3)
        return windows.sum(2), crop_to(windows.flatten(1, 2), 1, values.shape[1])


def test_one_graph_for_all_sizes():
    size = torch.export.Dim("size", min=2, max=100)
    program = torch.export.export(Padded(), (rows(9),), dynamic_shapes=({1: size},), strict=False)
    for number in (2, 7, 13, 14, 100):
        sums, cropped = program.module()(rows(number))
        assert torch.equal(cropped, rows(number))
        assert torch.equal(sums, Padded()(rows(number))[0])


@pytest.mark.parametrize("number", [9, 14])
def test_a_size_that_is_known_stays_a_constant(number):
    program = torch.export.export(Padded(), (rows(number),), strict=False)
    assert "aten.item" not in program.graph_module.code and "sym_size" not in program.graph_module.code
    assert torch.equal(program.module()(rows(number))[1], rows(number))


@pytest.mark.parametrize(("height", "width"), [(14, 7), (9, 20), (3, 7)])
def test_windows_and_back(height, width):
    features = torch.randn(2, height, width, 5)
    windows, (down, across) = partition(features, 7)
    assert (down, across) == (-(-height // 7), -(-width // 7)) and windows.shape == (2 * down * across, 7, 7, 5)
    first = features[1, :7, :7]  # of the second image
    assert torch.equal(windows[down * across, : first.shape[0], : first.shape[1]], first)
    assert torch.equal(unpartition(windows, (down, across), features.shape), features)


@pytest.mark.parametrize("size", [2, 3, 8, 9])
def test_halves_are_means_of_pairs(size):
    values = torch.randn(2, 3, size, 5, dtype=torch.float64)
    expected = torch.nn.functional.avg_pool2d(values, (2, 1))
    torch.testing.assert_close(halve(values, 2), expected)
