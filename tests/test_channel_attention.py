"""Channel attention against its formula, written as loops, and its properties."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from backbones.attention import ChannelAttention

fast = settings(max_examples=8, deadline=None)


def loops(block, x):
    """Per head: S[i, j] = sum_n k[n, i] v[n, j] / sqrt(d), softmax over j, O[n, i] = sum_j S[i, j] q[n, j]."""
    batch, height, width, dim = x.shape
    d = dim // block.num_heads
    tokens = x.reshape(batch, height * width, dim)
    projected = tokens @ block.qkv.weight.T + block.qkv.bias
    out = torch.empty_like(tokens)
    for b in range(batch):
        for head in range(block.num_heads):
            rows = [slice(part * dim + head * d, part * dim + (head + 1) * d) for part in range(3)]
            q, k, v = (projected[b, :, r] for r in rows)
            for i in range(d):
                logits = torch.stack([(k[:, i] * v[:, j]).sum() / d**0.5 for j in range(d)])
                weights = logits.softmax(0)
                out[b, :, head * d + i] = sum(weights[j] * q[:, j] for j in range(d))
    return (out @ block.proj.weight.T + block.proj.bias).view(x.shape)


@fast
@given(
    height=st.integers(1, 5),
    width=st.integers(1, 5),
    num_heads=st.integers(1, 3),
    head_dim=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_equals_the_formula(height, width, num_heads, head_dim, seed):
    torch.manual_seed(seed)
    block = ChannelAttention(num_heads * head_dim, num_heads).double()
    x = torch.randn(2, height, width, num_heads * head_dim, dtype=torch.float64)
    torch.testing.assert_close(block(x), loops(block, x), rtol=1e-12, atol=1e-12)


def test_gradients():
    block = ChannelAttention(4, 2).double()
    x = torch.randn(2, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    weights = [p.detach().clone().requires_grad_() for p in block.parameters()]
    names = [n for n, _ in block.named_parameters()]

    def run(x, *weights):
        return torch.func.functional_call(block, dict(zip(names, weights)), (x,))

    assert torch.autograd.gradcheck(run, (x, *weights))


def test_every_pixel_sees_the_whole_image_and_no_other():
    block = ChannelAttention(8, 2).double()
    x = torch.randn(2, 5, 6, 8, dtype=torch.float64)
    moved = x.clone()
    moved[0, 4, 5] += 1
    changed = (block(moved) != block(x)).any(-1)
    assert changed[0].all() and not changed[1].any()


def test_pixels_have_no_order():
    block = ChannelAttention(8, 2).double()
    x = torch.randn(1, 4, 6, 8, dtype=torch.float64)
    torch.testing.assert_close(block(x.flip(1, 2)), block(x).flip(1, 2))


def test_takes_strided_maps():
    block = ChannelAttention(8, 2).double()
    x = torch.randn(2, 8, 5, 4, dtype=torch.float64).permute(0, 3, 2, 1)
    torch.testing.assert_close(block(x), block(x.contiguous()))


@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_sums_over_a_large_map(autocast):
    """The logits are sums over all pixels: rounded to bfloat16 they would come in steps of 1/8 from 16 on."""
    torch.manual_seed(0)
    block = ChannelAttention(64, 2)
    torch.nn.init.normal_(block.qkv.weight, std=0.2)
    x = torch.randn(1, 48, 48, 64)
    expected = block(x)
    if autocast:
        with torch.autocast("cpu", torch.bfloat16):
            out = block(x)
    else:
        x, block = x.bfloat16(), block.bfloat16()
        out = block(x)
        expected = block.float()(x.float())
    assert out.dtype == torch.bfloat16
    # Measured: 0.003, under autocast 0.015; with the logits rounded to bfloat16 0.04 in both.
    assert ((out.float() - expected).std() / expected.std()).item() < 0.025


def test_heads_that_do_not_divide_the_width():
    with pytest.raises(ValueError, match="10 channels cannot be split into 3 heads"):
        ChannelAttention(10, num_heads=3)
