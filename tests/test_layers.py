"""Pieces without attention: their order of channels, padding, tables and initial values."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from backbones.layers import MapLinear, PatchMerging, PatchStem, RelativePositionBias, pad_to_multiple
from backbones.layers.linear import faster_as_convolution


@settings(max_examples=8, deadline=None)
@given(height=st.integers(1, 9), width=st.integers(1, 9), multiple=st.integers(1, 5))
def test_padding_is_zero_at_the_bottom_and_right(height, width, multiple):
    x = torch.randn(2, height, width, 3)
    padded = pad_to_multiple(x, multiple)
    assert padded.shape[1] % multiple == 0 and padded.shape[2] % multiple == 0
    assert padded.shape[1] - height < multiple and padded.shape[2] - width < multiple
    assert torch.equal(padded[:, :height, :width], x)
    assert not padded[:, height:].any() and not padded[:, :, width:].any()


@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_layer_as_a_convolution_is_the_same(bias, products_are_slow):
    layer = MapLinear(128, 96, bias=bias)
    x = torch.randn(2, 12, 10, 128, requires_grad=True)
    assert faster_as_convolution(x, layer.weight)
    y, expected = layer(x), torch.nn.functional.linear(x, layer.weight, layer.bias)
    torch.testing.assert_close(y, expected)
    inputs, weights = (x, *layer.parameters()), torch.randn_like(y)
    for gradient, plain in zip(torch.autograd.grad(y, inputs, weights), torch.autograd.grad(expected, inputs, weights)):
        torch.testing.assert_close(gradient, plain, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("size", [(4, 6), (5, 3)])
def test_merging_counts_rows_fastest(size):
    dim = 2
    merging = PatchMerging(dim, 4 * dim).double()
    merging.norm = torch.nn.Identity()
    merging.reduction = torch.nn.Identity()
    x = torch.randn(1, *size, dim, dtype=torch.float64)
    cells = torch.nn.functional.pad(x, (0, 0, 0, size[1] % 2, 0, size[0] % 2))
    expected = torch.cat([cells[:, r::2, c::2] for r, c in ((0, 0), (1, 0), (0, 1), (1, 1))], -1)
    assert torch.equal(merging(x), expected)


def test_the_stem_pads_images_that_no_patch_divides():
    stem = PatchStem(3, 8, patch_size=4)
    images = torch.randn(1, 3, 10, 7)
    around = torch.nn.functional.pad(images, (0, 1, 0, 2))
    assert stem(images).shape == (1, 3, 2, 8)
    torch.testing.assert_close(stem(images), stem(around))


@settings(max_examples=8, deadline=None)
@given(table_window=st.integers(1, 6), data=st.data())
def test_position_bias_is_looked_up_by_query_minus_key(table_window, data):
    window = data.draw(st.integers(1, table_window))
    position_bias = RelativePositionBias(table_window, num_heads=2)
    grid = position_bias.table.view(2 * table_window - 1, 2 * table_window - 1, 2)
    bias = position_bias(window)
    for query in range(window**2):
        for key in range(window**2):
            row = query // window - key // window + table_window - 1
            column = query % window - key % window + table_window - 1
            assert torch.equal(bias[:, query, key], grid[row, column])


def test_a_resized_table_is_the_bicubic_one_and_stays_frozen():
    position_bias = RelativePositionBias(7, num_heads=3).requires_grad_(False)
    grid = position_bias.table.T.reshape(1, 3, 13, 13)
    expected = torch.nn.functional.interpolate(grid, (23, 23), mode="bicubic").reshape(3, -1).T
    position_bias.set_window_size(12)
    torch.testing.assert_close(position_bias.table, expected)
    assert not position_bias.table.requires_grad and position_bias(12).shape == (3, 144, 144)
