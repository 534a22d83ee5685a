"""Depthwise convolutions, norms and scales by channel, and the convolutional stem."""

import pytest
import timm.layers.grn
import torch
from torch import nn

from backbones.layers import (
    ChannelScale,
    ConvStem,
    DilatedDepthwiseConv,
    GlobalResponseNorm,
    ResidualDepthwiseConv,
    ResponseNormMlp,
)
from backbones.layers.dilated_depthwise import BRANCHES


def trained(kernel_size):
    """A convolution whose norms have statistics and weights of their own."""
    torch.manual_seed(kernel_size)
    conv = DilatedDepthwiseConv(3, kernel_size).double()
    for module in conv.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return conv.eval()


def by_branches(conv, x):
    """The sum of the branches in evaluation, one at a time."""
    return sum((branch(x) for branch in conv.branches.values()), conv.norm(conv.conv(x)))


@pytest.mark.parametrize("kernel_size", BRANCHES)
def test_the_merged_kernel_equals_the_branches(kernel_size):
    conv = trained(kernel_size)
    x = torch.randn(2, 3, kernel_size + 4, 9, dtype=torch.float64)
    expected = by_branches(conv, x)
    torch.testing.assert_close(conv(x), expected, rtol=1e-12, atol=1e-12)
    conv.reparameterize()
    torch.testing.assert_close(conv(x), expected, rtol=1e-12, atol=1e-12)
    assert {n: tuple(p.shape) for n, p in conv.named_parameters()} == {
        "conv.weight": (3, 1, kernel_size, kernel_size),
        "conv.bias": (3,),
    }


def test_branches_keep_statistics_of_their_own_in_training():
    conv = trained(7).train()
    x = torch.randn(4, 3, 12, 12, dtype=torch.float64)
    torch.testing.assert_close(conv(x), by_branches(conv, x))
    assert all(branch[1].num_batches_tracked == 2 for branch in conv.branches.values())


def test_gradients_reach_the_branches_through_the_merged_kernel():
    conv = trained(5)
    x = torch.randn(1, 3, 6, 6, dtype=torch.float64)
    gradients = [
        torch.autograd.grad(y.square().sum(), list(conv.parameters())) for y in (conv(x), by_branches(conv, x))
    ]
    for merged, apart in zip(*gradients):
        torch.testing.assert_close(merged, apart)


def test_merging_does_not_round_the_branches_to_half_precision():
    conv = trained(7).float()
    weight, bias = conv.merged()
    half_weight, half_bias = conv.bfloat16().merged()
    assert half_weight.dtype == half_bias.dtype == torch.bfloat16
    torch.testing.assert_close(half_weight.float(), weight, rtol=2**-6, atol=2**-6)
    torch.testing.assert_close(half_bias.float(), bias, rtol=2**-6, atol=2**-4)


def test_a_residual_convolution_adds_the_map():
    conv = ResidualDepthwiseConv(4)
    x = torch.randn(2, 4, 5, 6)
    expected = x + nn.functional.conv2d(x, conv.weight, conv.bias, padding=1, groups=4)
    torch.testing.assert_close(conv(x), expected)
    assert set(conv.state_dict()) == {"weight", "bias"}


def test_global_response_norm_is_timms():
    norm, peer = GlobalResponseNorm(6).double(), timm.layers.grn.GlobalResponseNorm(6, channels_last=False).double()
    nn.init.normal_(norm.gamma)
    nn.init.normal_(norm.beta)
    peer.weight.data, peer.bias.data = norm.gamma.data.flatten(), norm.beta.data.flatten()
    x = torch.randn(2, 6, 5, 7, dtype=torch.float64)
    torch.testing.assert_close(norm(x), peer(x), rtol=1e-12, atol=1e-12)


def test_global_response_norm_of_a_blank_map_has_a_gradient():
    norm = GlobalResponseNorm(3)
    nn.init.ones_(norm.gamma)
    x = torch.zeros(1, 3, 4, 4, requires_grad=True)
    norm(x).sum().backward()
    assert torch.isfinite(x.grad).all() and not norm(x).any()


def test_global_response_norm_does_not_overflow_in_half_precision():
    norm = GlobalResponseNorm(3).half()
    nn.init.ones_(norm.gamma)
    x = torch.full((1, 3, 40, 40), 3000.0).half()
    torch.testing.assert_close(norm(x), 2 * x)


def test_channel_scale_has_a_bias_and_is_decayed_like_a_filter():
    scale = ChannelScale(3, 0.5)
    scale.bias.data += torch.arange(3)
    x = torch.randn(2, 3, 4, 5)
    torch.testing.assert_close(scale(x), 0.5 * x + torch.arange(3).view(3, 1, 1))
    assert scale.weight.shape == (3, 1, 1, 1)


def test_response_norm_mlp_is_its_layers_in_turn():
    mlp = ResponseNormMlp(4, 8).double()
    nn.init.normal_(mlp.norm.gamma)
    x = torch.randn(2, 4, 5, 6, dtype=torch.float64)
    hidden = mlp.norm(mlp.dwconv(nn.functional.gelu(mlp.fc1(x.movedim(1, 3))).movedim(3, 1).contiguous()))
    torch.testing.assert_close(mlp(x), mlp.fc2(hidden.movedim(1, 3)).movedim(3, 1))


@pytest.mark.parametrize("in_chans", [1, 3])
@pytest.mark.parametrize("stride", [2, 4])
def test_the_stem_halves_upwards_and_puts_channels_last(in_chans, stride):
    stem = ConvStem(in_chans, 8, stride)
    y = stem(torch.randn(2, in_chans, 33, 46))
    assert y.shape == (2, 8, -(-33 // stride), -(-46 // stride))
    assert y.is_contiguous(memory_format=torch.channels_last)
