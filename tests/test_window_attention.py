"""The definition of window attention against its formula, written as loops, and its properties."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from backbones.attention import WindowAttention
from backbones.kernels.window import window_attention

fast = settings(max_examples=8, deadline=None)


def loops(q, k, v, window, shift, bias, pad_key, pad_value):
    """Every query asks every token whether it is in its window and region."""
    batch, height, width, heads, dim = q.shape
    padded = [-(-height // window[0]) * window[0], -(-width // window[1]) * window[1]]

    def place(y, x):  # of a pixel: its window and region after padding and rolling
        rolled = [(p - s) % n for p, s, n in zip((y, x), shift, padded)]
        label = [(r >= n - w) + (r >= n - s) for r, n, w, s in zip(rolled, padded, window, shift)]
        return [r // w for r, w in zip(rolled, window)], label, [r % w for r, w in zip(rolled, window)]

    out = torch.zeros_like(q)
    for b in range(batch):
        for y in range(height):
            for x in range(width):
                own_window, own_region, inside = place(y, x)
                row = inside[0] * window[1] + inside[1]
                for h in range(heads):
                    logits, values = [], []
                    for ky in range(padded[0]):
                        for kx in range(padded[1]):
                            key_window, key_region, key_inside = place(ky, kx)
                            if key_window != own_window:
                                continue
                            outside = ky >= height or kx >= width
                            key = pad_key[h] if outside else k[b, ky, kx, h]
                            logit = (dim**-0.5 * q[b, y, x, h]) @ key
                            logit = logit + bias[h, row, key_inside[0] * window[1] + key_inside[1]]
                            logits.append(logit - 100 * (key_region != own_region))
                            values.append(pad_value[h] if outside else v[b, ky, kx, h])
                    out[b, y, x, h] = torch.stack(logits).softmax(0) @ torch.stack(values)
    return out


@fast
@given(
    height=st.integers(1, 7),
    width=st.integers(1, 7),
    window=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    shifted=st.booleans(),
    seed=st.integers(0, 99),
)
def test_equals_the_formula(height, width, window, shifted, seed):
    torch.manual_seed(seed)
    heads, dim, tokens = 2, 3, window[0] * window[1]
    q, k, v = torch.randn(3, 2, height, width, heads, dim, dtype=torch.float64)
    bias = torch.randn(heads, tokens, tokens, dtype=torch.float64)
    pad_key, pad_value = torch.randn(2, heads, dim, dtype=torch.float64)
    shift = (window[0] // 2, window[1] // 2) if shifted else (0, 0)
    out = window_attention(q, k, v, window, shift, bias, pad_key=pad_key, pad_value=pad_value)
    torch.testing.assert_close(out, loops(q, k, v, window, shift, bias, pad_key, pad_value), rtol=1e-12, atol=1e-12)
    assert out.is_contiguous()


def test_gradients():
    inputs = [torch.randn(1, 3, 5, 2, 2, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    inputs += [torch.randn(2, 4, 4, dtype=torch.float64, requires_grad=True)]
    inputs += [torch.randn(2, 2, dtype=torch.float64, requires_grad=True) for _ in range(2)]

    def attention(q, k, v, bias, pad_key, pad_value):
        return window_attention(q, k, v, (2, 2), (1, 1), bias, None, pad_key, pad_value)

    assert torch.autograd.gradcheck(attention, inputs)


@fast
@given(side=st.integers(1, 6), seed=st.integers(0, 99))
def test_a_window_as_large_as_the_map_is_full_attention(side, seed):
    torch.manual_seed(seed)
    q, k, v = torch.randn(3, 2, side, side, 2, 4, dtype=torch.float64)
    out = window_attention(q, k, v, (side, side))
    tokens = [t.flatten(1, 2).transpose(1, 2) for t in (q, k, v)]
    full = torch.nn.functional.scaled_dot_product_attention(*tokens).transpose(1, 2).reshape(out.shape)
    torch.testing.assert_close(out, full)


def test_nothing_crosses_a_window_nor_an_image():
    q, k, v = torch.randn(3, 2, 8, 8, 1, 4, dtype=torch.float64)
    moved = v.clone()
    moved[0, 0, 0] += 1
    changed = window_attention(q, k, moved, (4, 4)) != window_attention(q, k, v, (4, 4))
    assert changed[0, :4, :4].all()
    assert not changed[0, 4:].any() and not changed[0, :, 4:].any() and not changed[1].any()


def test_strided_views_of_one_projection():
    qkv = torch.randn(2, 5, 6, 3, 2, 4, dtype=torch.float64)
    views = qkv.unbind(3)
    out = window_attention(*views, (3, 2), (1, 1))
    torch.testing.assert_close(out, window_attention(*(t.contiguous() for t in views), (3, 2), (1, 1)))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (dict(k=torch.zeros(1, 4, 5, 2, 8)), "k (1, 4, 5, 2, 8)"),
        (dict(bias=torch.zeros(2, 9, 9)), "bias of shape (2, 4, 4)"),
        (dict(pad_key=torch.zeros(8)), "pad_key of shape (2, 8)"),
        (dict(shift=(2, 0)), "shift (2, 0)"),
    ],
)
def test_wrong_arguments_are_named(wrong, said):
    arguments = dict(zip("qkv", torch.zeros(3, 1, 4, 4, 2, 8)), window_size=(2, 2)) | wrong
    with pytest.raises(ValueError, match=said.replace("(", r"\(").replace(")", r"\)")):
        window_attention(**arguments)


def test_the_block_works_on_its_own_and_takes_its_padding_from_the_projection():
    block = WindowAttention(8, num_heads=2, window_size=4, shifted=True).double()
    torch.nn.init.normal_(block.qkv.bias)
    x = torch.randn(2, 5, 7, 8, dtype=torch.float64)
    assert block(x).shape == x.shape
    # Zeros around the map before the projection must give the same as the padding inside the operator.
    around = torch.nn.functional.pad(x, (0, 0, 0, 1, 0, 3))
    torch.testing.assert_close(block(x), block(around)[:, :5, :7])


def test_a_shrunk_window_sees_the_whole_small_map():
    block = WindowAttention(8, num_heads=2, window_size=7, shifted=True).double()
    x = torch.randn(1, 3, 3, 8, dtype=torch.float64)
    moved = x.clone()
    moved[0, 2, 2] += 1
    assert (block(moved, shrink=True) != block(x, shrink=True)).all()


def test_heads_that_do_not_divide_the_width():
    with pytest.raises(ValueError, match="10 channels cannot be split into 3 heads"):
        WindowAttention(10, num_heads=3, window_size=4)
