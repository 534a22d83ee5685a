"""Depth-wise convolution on maps: equal to the convolution on images, and to its formula."""

import pytest
import torch
import torch.nn.functional as F

from backbones import InputError
from backbones.layers import ConditionalPosition, DepthwiseConv


@pytest.mark.parametrize("kernel_size", [1, 3, 5])
@pytest.mark.parametrize("size", [(4, 7), (1, 2)])
def test_equals_the_formula(kernel_size, size):
    conv = DepthwiseConv(3, kernel_size).double()
    x = torch.randn(2, *size, 3, dtype=torch.float64)
    margin = kernel_size // 2
    around = F.pad(x, (0, 0, margin, margin, margin, margin))
    expected = conv.bias.expand_as(x).clone()
    for row in range(kernel_size):
        for column in range(kernel_size):
            shifted = around[:, row : row + size[0], column : column + size[1]]
            expected += shifted * conv.weight[:, 0, row, column]
    torch.testing.assert_close(conv(x), expected)
    assert conv(x).is_contiguous()


def test_position_is_a_residual():
    position = ConditionalPosition(4)
    x = torch.randn(2, 5, 6, 4)
    torch.testing.assert_close(position(x), x + DepthwiseConv.forward(position, x))


def test_gradients_at_batch_1():
    position = ConditionalPosition(2).double()
    x = torch.randn(1, 4, 3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(position, x)


@pytest.mark.parametrize("kernel_size", [0, 2, 4])
def test_even_kernels_are_refused(kernel_size):
    with pytest.raises(InputError, match="odd kernel_size"):
        DepthwiseConv(4, kernel_size)
