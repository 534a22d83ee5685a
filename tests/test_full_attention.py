"""Attention among all tokens of a map, and of a class token to a map, against the formula."""

import pytest
import torch

from backbones import InputError
from backbones.attention import ClassAttention, SelfAttention


def formula(q, k, v, num_heads):
    """(N, C) queries, (M, C) keys and values to (N, C), a head after the other."""
    heads = zip(*(t.chunk(num_heads, -1) for t in (q, k, v)))
    return torch.cat([(h_q @ h_k.T * h_q.shape[-1] ** -0.5).softmax(-1) @ h_v for h_q, h_k, h_v in heads], -1)


@pytest.mark.parametrize("qkv_bias", [True, False])
@pytest.mark.parametrize("size", [(3, 5), (1, 1)])
def test_self_attention(size, qkv_bias):
    block = SelfAttention(12, num_heads=3, qkv_bias=qkv_bias).double()
    assert (block.qkv.bias is not None) == qkv_bias
    x = torch.randn(2, *size, 12, dtype=torch.float64)
    for image, out in zip(x, block(x), strict=True):
        q, k, v = block.qkv(image.flatten(0, 1)).chunk(3, -1)
        torch.testing.assert_close(out, block.proj(formula(q, k, v, 3)).view(*size, 12))


@pytest.mark.parametrize("qkv_bias", [True, False])
def test_a_class_token_reads_itself_and_the_map(qkv_bias):
    block = ClassAttention(12, num_heads=3, qkv_bias=qkv_bias).double()
    assert (block.q.bias is not None) == (block.kv.bias is not None) == qkv_bias
    token, x = torch.randn(2, 12, dtype=torch.float64), torch.randn(2, 3, 5, 12, dtype=torch.float64)
    for i, out in enumerate(block(token, x)):
        k, v = block.kv(torch.cat([token[i, None], x[i].flatten(0, 1)])).chunk(2, -1)
        torch.testing.assert_close(out, block.proj(formula(block.q(token[i, None]), k, v, 3))[0])


@pytest.mark.parametrize("block", [SelfAttention, ClassAttention])
def test_heads_that_do_not_divide_the_width(block):
    with pytest.raises(InputError, match="10 channels cannot be split into 3 heads"):
        block(10, num_heads=3)
