"""Linear attention and its concentration against their formulas as loops."""

import pytest
import torch
import torch.nn.functional as F

from backbones import InputError
from backbones.attention import LinearAttention, LocalConcentration


def by_loops(block: LinearAttention, x: torch.Tensor) -> torch.Tensor:
    """For every position the quotient of two sums over all positions, as in the definition."""
    batch, height, width, dim = x.shape
    tokens = x.reshape(batch, height * width, dim)
    qkv = F.linear(tokens, block.qkv.weight, block.qkv.bias).view(batch, -1, 3, block.num_heads, dim // block.num_heads)
    out = torch.zeros_like(tokens).view(batch, -1, block.num_heads, dim // block.num_heads)
    for b in range(batch):
        for head in range(block.num_heads):
            q, k, v = qkv[b, :, 0, head].relu(), qkv[b, :, 1, head].relu(), qkv[b, :, 2, head]
            for n in range(len(q)):
                affinity = torch.stack([q[n] @ key for key in k])
                above = sum(a * value for a, value in zip(affinity, v)) * block.temperature[head, 0, 0]
                out[b, n, head] = above / max(affinity.sum(), 100.0)
    return F.linear(out.flatten(2), block.proj.weight, block.proj.bias).view_as(x)


@pytest.mark.parametrize("scale", [0.3, 20.0], ids=["all under the least denominator", "most over it"])
@pytest.mark.parametrize(("height", "width", "num_heads"), [(3, 5, 2), (6, 4, 4)])
def test_linear_attention_is_its_formula(height, width, num_heads, scale):
    block = LinearAttention(8, num_heads).double()
    torch.nn.init.normal_(block.temperature)
    x = scale * torch.randn(2, height, width, 8, dtype=torch.float64)
    torch.testing.assert_close(block(x), by_loops(block, x))


@pytest.mark.parametrize("scale", [0.3, 20.0])
def test_gradients_of_linear_attention(scale):
    block = LinearAttention(4, 2).double()
    x = (scale * torch.randn(1, 3, 3, 4, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(block, (x,))


def test_the_temperature_starts_at_the_usual_scale_and_is_decayed():
    temperature = LinearAttention(64, 4).temperature
    assert temperature.shape == (4, 1, 1) and (temperature == 0.25).all()


def test_half_precision_sums_in_float32():
    """With 16-bit sums over 64 x 64 positions the small terms would be lost in the large sum."""
    block = LinearAttention(8, 2)
    x = torch.randn(1, 64, 64, 8)
    expected = block(x)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = block(x)
    error = (mixed.float() - expected).abs().max() / expected.std()
    assert error < 0.05
    assert (block.bfloat16()(x.bfloat16()).float() - expected).abs().max() / expected.std() < 0.05


@pytest.mark.parametrize("training", [True, False])
def test_concentration_is_convolution_gelu_norm_convolution(training):
    block = LocalConcentration(4).double().train(training)
    block.norm.running_mean.normal_()
    block.norm.running_var.uniform_(0.5, 2)
    x = torch.randn(2, 5, 9, 4, dtype=torch.float64)
    mean, var = block.norm.running_mean.clone(), block.norm.running_var.clone()
    y = F.gelu(F.conv2d(x.permute(0, 3, 1, 2), block.conv1.weight, block.conv1.bias, padding=3, groups=4))
    if training:
        mean, var = y.mean((0, 2, 3)), y.var((0, 2, 3), unbiased=False)
    y = (y - mean.view(-1, 1, 1)) / (var.view(-1, 1, 1) + 1e-5).sqrt()
    y = F.conv2d(y, block.conv2.weight, block.conv2.bias, padding=3, groups=4).permute(0, 2, 3, 1)
    torch.testing.assert_close(block(x), y)


def test_wrong_heads_are_named():
    with pytest.raises(InputError, match="10 channels cannot be split into 3 heads"):
        LinearAttention(10, num_heads=3)
