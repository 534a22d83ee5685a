"""Deformable merging and the depth-wise MLP against their formulas as loops, and their properties."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import deform_conv2d

from backbones.layers import DeformableMerging, DepthwiseMlp, bilinear_sample

fast = settings(max_examples=8, deadline=None)


def trained(dim, out_dim, reach=1.0):
    """A merging in float64 that moves its pixels by about `reach`, with a norm that is not the identity."""
    merging = DeformableMerging(dim, out_dim).double()
    torch.nn.init.normal_(merging.offset.weight, std=reach / (4 * dim) ** 0.5)
    torch.nn.init.normal_(merging.offset.bias, std=reach)
    merging.norm.running_mean.normal_()
    merging.norm.running_var.uniform_(0.5, 2)
    torch.nn.init.normal_(merging.norm.weight)
    torch.nn.init.normal_(merging.norm.bias)
    return merging.eval()


def between(x, u, v):
    """The map x (H, W, C) between its pixels: each counts by how near it is, and outside there are zeros."""
    value = torch.zeros_like(x[0, 0])
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            value = value + max(0, 1 - abs(u - i)) * max(0, 1 - abs(v - j)) * x[i, j]
    return value


def loops(merging, x):
    """Cell by cell and pixel by pixel, before norm and activation: (B, H, W, C) to (B, H // 2, W // 2, out_dim)."""
    batch, height, width, _ = x.shape
    out = merging.proj.bias.expand(batch, height // 2, width // 2, -1).clone()
    for b in range(batch):
        for p in range(height // 2):
            for q in range(width // 2):
                cell = x[b, 2 * p : 2 * p + 2, 2 * q : 2 * q + 2]
                offset = torch.einsum("klc,ockl->o", cell, merging.offset.weight) + merging.offset.bias
                for i in range(2):
                    for j in range(2):
                        row, column = offset[2 * (2 * i + j)], offset[2 * (2 * i + j) + 1]
                        seen = between(x[b], 2 * p + i + row.item(), 2 * q + j + column.item())
                        out[b, p, q] += merging.proj.weight[:, :, i, j] @ seen
    return out


def normed(merging, y):
    """Batch norm with the running statistics, then GELU."""
    norm = merging.norm
    y = (y - norm.running_mean) / (norm.running_var + 1e-5).sqrt() * norm.weight + norm.bias
    return 0.5 * y * (1 + torch.erf(y / 2**0.5))


@fast
@given(
    height=st.integers(2, 5),
    width=st.integers(2, 5),
    reach=st.sampled_from([0.0, 0.3, 3.0]),
    seed=st.integers(0, 99),
)
def test_equals_the_formula(height, width, reach, seed):
    torch.manual_seed(seed)
    merging = trained(3, 4, reach)
    x = torch.randn(2, height, width, 3, dtype=torch.float64)
    with torch.no_grad():
        expected = normed(merging, loops(merging, x))
        torch.testing.assert_close(merging(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", [(7, 10), (12, 9)])
@pytest.mark.parametrize("reach", [0.5, 4.0])
def test_values_and_gradients_are_those_of_deformable_convolution(size, reach):
    merging = trained(3, 4, reach)
    merging.norm, merging.act = torch.nn.Identity(), torch.nn.Identity()
    x = torch.randn(2, *size, 3, dtype=torch.float64, requires_grad=True)
    image = x.permute(0, 3, 1, 2)
    peer = deform_conv2d(image, merging.offset(image), merging.proj.weight, merging.proj.bias, stride=2)
    expected, out = peer.permute(0, 2, 3, 1), merging(x)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    direction = torch.randn_like(out)
    wanted = [x, *merging.parameters()]
    gradients = (torch.autograd.grad((y * direction).sum(), wanted) for y in (out, expected))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("batch", [1, 2])
def test_gradients(training, batch):
    merging = trained(2, 3, 0.4).train(training)
    merging.norm.momentum = 0.0  # the same function at each call
    x = torch.randn(batch, 5, 4, 2, dtype=torch.float64, requires_grad=True)
    names = [n for n, _ in merging.named_parameters()]
    weights = [p.detach().clone().requires_grad_() for p in merging.parameters()]

    def run(x, *weights):
        return torch.func.functional_call(merging, dict(zip(names, weights)), (x,))

    assert torch.autograd.gradcheck(run, (x, *weights))


@pytest.mark.parametrize("size", [(4, 6), (5, 7), (2, 3)])
def test_before_training_it_is_a_convolution_that_loses_odd_rows_and_columns(size):
    merging = DeformableMerging(4, 8).double()
    assert not merging.offset.weight.any() and not merging.offset.bias.any()
    x = torch.randn(2, *size, 4, dtype=torch.float64)
    y = F.conv2d(x.permute(0, 3, 1, 2), merging.proj.weight, merging.proj.bias, stride=2)
    assert y.shape == (2, 8, size[0] // 2, size[1] // 2)
    expected = F.gelu(F.batch_norm(y, None, None, training=True))
    torch.testing.assert_close(merging(x), expected.permute(0, 2, 3, 1))


def test_initial_weights_of_merging():
    merging = DeformableMerging(96, 192)
    bound = (4 * 96) ** -0.5  # Kaiming uniform with a = sqrt(5): 1 / sqrt(fan_in)
    for p in merging.proj.parameters():
        assert p.abs().max() <= bound and p.std().item() == pytest.approx(bound / 3**0.5, rel=0.15)
    assert (merging.norm.weight == 1).all() and not merging.norm.bias.any()
    assert merging.norm.eps == 1e-5 and merging.norm.momentum == 0.1


@pytest.mark.parametrize("pixel", range(4))
def test_each_pixel_of_a_cell_has_a_row_and_a_column_offset(pixel):
    """Channel 2 t moves pixel t of every cell, counted row by row, down; channel 2 t + 1 moves it right."""
    merging = DeformableMerging(1, 4).double()
    merging.norm, merging.act = torch.nn.Identity(), torch.nn.Identity()
    torch.nn.init.zeros_(merging.proj.bias)
    merging.proj.weight.data = torch.eye(4, dtype=torch.float64).view(4, 1, 2, 2)
    x = torch.randn(1, 8, 6, 1, dtype=torch.float64)
    row, column = divmod(pixel, 2)
    below = F.pad(x, (0, 0, 0, 0, 0, 2))[:, 2:, :, 0]
    right = F.pad(x, (0, 0, 0, 1))[:, :, 1:, 0]
    for channel, moved, by in ((2 * pixel, below, 2.0), (2 * pixel + 1, right, 1.0)):
        torch.nn.init.zeros_(merging.offset.bias)
        merging.offset.bias.data[channel] = by
        y = merging(x)
        assert torch.equal(y[..., pixel], moved[:, row::2, column::2])
        others = [other for other in range(4) if other != pixel]
        assert all(torch.equal(y[..., t], x[:, t // 2 :: 2, t % 2 :: 2, 0]) for t in others)


def test_samples_at_and_beyond_the_border():
    """Up to a pixel outside, a border pixel still counts in part; from there on all is zero."""
    x = torch.full((1, 3, 3, 1), 8.0, dtype=torch.float64)
    rows = torch.tensor([-9e9, -2.0, -1.0, -0.75, -0.5, 0.0, 1.3, 2.0, 2.5, 2.75, 3.0, 4.0, 9e9], dtype=torch.float64)
    middle = torch.ones(1, 1, len(rows), dtype=torch.float64)
    expected = torch.tensor([0.0, 0, 0, 2, 4, 8, 8, 8, 4, 2, 0, 0, 0], dtype=torch.float64)
    torch.testing.assert_close(bilinear_sample(x, rows.view(1, 1, -1), middle).flatten(), expected)
    torch.testing.assert_close(bilinear_sample(x, middle, rows.view(1, 1, -1)).flatten(), expected)
    both = bilinear_sample(x, rows.view(1, 1, -1), rows.view(1, 1, -1)).flatten()
    torch.testing.assert_close(both, expected**2 / 8)


def test_gradient_of_a_position_that_is_no_pixel_between_two_and_outside():
    ramp = torch.arange(4.0, dtype=torch.float64).square().view(1, 4, 1, 1)
    rows = torch.tensor([[[0.5, 1.5, 2.0, 3.5, 7.0]]], dtype=torch.float64, requires_grad=True)
    bilinear_sample(ramp, rows, torch.zeros_like(rows)).sum().backward()
    # At the whole position 2 the derivative is that of its right side; half a pixel out the value falls to zero.
    torch.testing.assert_close(rows.grad, torch.tensor([[[1.0, 3, 5, -9, 0]]], dtype=torch.float64))


def test_the_form_for_export_equals_the_other(monkeypatch):
    merging = trained(3, 4, 2.0)
    x = torch.randn(2, 5, 6, 3, dtype=torch.float64)
    expected = merging(x)
    monkeypatch.setattr("torch.compiler.is_exporting", lambda: True)
    torch.testing.assert_close(merging(x), expected)


def test_half_precision_does_not_round_positions():
    """In bfloat16, positions from 128 on come in whole steps."""
    merging = DeformableMerging(2, 2).eval()
    torch.nn.init.constant_(merging.offset.bias, 0.25)
    x = torch.randn(1, 2, 400, 2).bfloat16()
    expected = merging(x.float())
    out = merging.bfloat16()(x)
    assert out.dtype == torch.bfloat16
    # Measured: 0.004; with positions in bfloat16 0.7.
    assert ((out.float() - expected).std() / expected.std()).item() < 0.02


def test_takes_strided_maps():
    merging = trained(3, 4)
    x = torch.randn(2, 3, 6, 5, dtype=torch.float64).permute(0, 2, 3, 1)
    torch.testing.assert_close(merging(x), merging(x.contiguous()))


@pytest.mark.parametrize("size", [(4, 5), (1, 3)])
def test_the_mlp_convolves_its_hidden_maps_before_the_activation(size):
    """Without a residual around the convolution, and with zeros around the map after the first layer's bias."""
    mlp = DepthwiseMlp(3, 6).double()
    torch.nn.init.normal_(mlp.fc1.bias)
    torch.nn.init.normal_(mlp.conv.bias)
    x = torch.randn(2, *size, 3, dtype=torch.float64)
    hidden = F.pad(x @ mlp.fc1.weight.T + mlp.fc1.bias, (0, 0, 1, 1, 1, 1))
    y = mlp.conv.bias.expand(2, *size, -1).clone()
    for row in range(3):
        for column in range(3):
            y += hidden[:, row : row + size[0], column : column + size[1]] * mlp.conv.weight[:, 0, row, column]
    y = 0.5 * y * (1 + torch.erf(y / 2**0.5))
    torch.testing.assert_close(mlp(x), y @ mlp.fc2.weight.T + mlp.fc2.bias)


def test_gradients_of_the_mlp():
    mlp = DepthwiseMlp(2, 4).double()
    x = torch.randn(1, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(mlp, (x,))


def test_initial_weights_of_the_mlps_convolution():
    conv = DepthwiseMlp(32, 1024).conv
    assert conv.weight.std().item() == pytest.approx(math.sqrt(2 / 9), rel=0.05) and not conv.bias.any()
    assert conv.weight.abs().max() > 1  # normal, neither uniform nor cut
