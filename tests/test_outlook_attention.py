"""The definition of outlook attention against its formula, written as loops, and its properties."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from backbones import InputError
from backbones.attention import OutlookAttention
from backbones.kernels.outlook import outlook_attention

fast = settings(max_examples=8, deadline=None)


def grid(length, kernel, padding, stride):
    return (length + 2 * padding - kernel) // stride + 1


def loops(logits, v, kernel, padding, stride, scale):
    """Every window gives to each of its pixels that lies on the map."""
    height, width = v.shape[1:3]
    out = torch.zeros_like(v)
    weights = (scale * logits).softmax(-1)
    offsets = [(y, x) for y in range(kernel) for x in range(kernel)]
    for i in range(logits.shape[1]):
        for j in range(logits.shape[2]):
            pixels = [(stride * i - padding + y, stride * j - padding + x) for y, x in offsets]
            inside = [(n, y, x) for n, (y, x) in enumerate(pixels) if 0 <= y < height and 0 <= x < width]
            for p, y, x in inside:
                for q, source_y, source_x in inside:
                    out[:, y, x] += weights[:, i, j, :, p, q, None] * v[:, source_y, source_x]
    return out


@fast
@given(
    height=st.integers(1, 7),
    width=st.integers(1, 7),
    kernel=st.integers(1, 4),
    stride=st.integers(1, 4),
    data=st.data(),
)
def test_equals_the_formula(height, width, kernel, stride, data):
    padding = data.draw(st.integers(0, kernel - 1))
    rows, columns = grid(height, kernel, padding, stride), grid(width, kernel, padding, stride)
    assume(min(rows, columns) > 0)
    v = torch.randn(2, height, width, 2, 3, dtype=torch.float64)
    logits = torch.randn(2, rows, columns, 2, kernel**2, kernel**2, dtype=torch.float64)
    out = outlook_attention(logits, v, kernel, padding, stride, scale=0.7)
    torch.testing.assert_close(out, loops(logits, v, kernel, padding, stride, 0.7), rtol=1e-12, atol=1e-12)
    assert out.is_contiguous()


def test_the_scale_is_that_of_the_head_unless_given():
    v, logits = torch.randn(1, 4, 5, 2, 16, dtype=torch.float64), torch.randn(1, 2, 3, 2, 9, 9, dtype=torch.float64)
    torch.testing.assert_close(outlook_attention(logits, v), outlook_attention(logits, v, scale=0.25))


@pytest.mark.parametrize("size", [(4, 4), (5, 3)])
def test_gradients(size):
    v = torch.randn(1, *size, 2, 2, dtype=torch.float64, requires_grad=True)
    rows, columns = (grid(side, 3, 1, 2) for side in size)
    logits = torch.randn(1, rows, columns, 2, 9, 9, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(outlook_attention, (logits, v))


def test_even_weights_count_the_windows_over_a_pixel():
    """A window of ones gives 1 to each of its pixels; at the border the zeros outside take their share."""
    out = outlook_attention(torch.zeros(1, 4, 4, 1, 9, 9), torch.ones(1, 8, 8, 1, 1))[0, :, :, 0, 0]
    torch.testing.assert_close(out[2:6, 2:6], torch.tensor([[1.0, 2, 1, 2], [2, 4, 2, 4]]).repeat(2, 1))
    torch.testing.assert_close(out[0, 0], torch.tensor(4 / 9))
    torch.testing.assert_close(out[7, 7], torch.tensor(1.0))  # an odd last row is in one window only


def test_nothing_crosses_a_window_nor_an_image():
    v, logits = torch.randn(2, 8, 8, 1, 4, dtype=torch.float64), torch.randn(2, 4, 4, 1, 9, 9, dtype=torch.float64)
    moved = v.clone()
    moved[0, 4, 4] += 1  # in the middle of the only window that it is in
    changed = (outlook_attention(logits, moved) != outlook_attention(logits, v)).any(-1).any(-1)
    assert changed[0, 3:6, 3:6].all() and changed.sum() == 9


def test_strided_views_and_an_empty_batch():
    both = torch.randn(2, 5, 6, 2, 3, 4, dtype=torch.float64)
    logits = torch.randn(2, 3, 3, 9, 9, 3, dtype=torch.float64).movedim(-1, 3)
    v = both[:, :, :, 1]
    out = outlook_attention(logits, v)
    torch.testing.assert_close(out, outlook_attention(logits.contiguous(), v.contiguous()))
    assert outlook_attention(logits[:0], v[:0]).shape == (0, 5, 6, 3, 4)


def test_bfloat16_logits_are_scaled_and_normed_in_float32():
    v, logits = torch.randn(1, 6, 6, 1, 32), 40 + torch.randn(1, 3, 3, 1, 9, 9)
    logits, v = logits.bfloat16(), v.bfloat16()
    out = outlook_attention(logits, v)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), outlook_attention(logits.float(), v.float()), rtol=0.02, atol=0.02)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (dict(v=torch.zeros(1, 4, 4, 8)), "v of shape (B, H, W, num_heads, head_dim), but got (1, 4, 4, 8)"),
        (dict(logits=torch.zeros(1, 2, 3, 2, 9, 9)), "logits of shape (1, 2, 2, 2, 9, 9)"),
        (dict(kernel_size=5), "logits of shape (1, 1, 1, 2, 25, 25)"),
        (dict(padding=3), "padding 3"),
        (dict(stride=0), "stride 0"),
        (dict(kernel_size=7, padding=0), "a map that a window of 7 fits into"),
    ],
)
def test_wrong_arguments_are_named(wrong, said):
    arguments = dict(logits=torch.zeros(1, 2, 2, 2, 9, 9), v=torch.zeros(1, 4, 4, 2, 8)) | wrong
    with pytest.raises(ValueError) as raised:
        outlook_attention(**arguments)
    assert said in str(raised.value)


@pytest.mark.parametrize(("kernel_size", "stride"), [(3, 2), (3, 1), (5, 3)])
@pytest.mark.parametrize("size", [(6, 6), (5, 7), (1, 4)])
def test_the_block_takes_its_weights_from_the_means_that_exist(kernel_size, stride, size):
    block = OutlookAttention(8, num_heads=2, kernel_size=kernel_size, stride=stride).double()
    x = torch.randn(2, *size, 8, dtype=torch.float64)
    starts = [range(0, side, stride) for side in size]
    cells = [[x[:, r : r + stride, c : c + stride].mean((1, 2)) for c in starts[1]] for r in starts[0]]
    centres = torch.stack([torch.stack(row, 1) for row in cells], 1)
    logits = block.logits(centres).view(*centres.shape[:3], 2, kernel_size**2, kernel_size**2)
    mixed = loops(logits, block.v(x).view(2, *size, 2, 4), kernel_size, kernel_size // 2, stride, 4**-0.5)
    torch.testing.assert_close(block(x), block.proj(mixed.flatten(3)))


def test_blocks_that_cannot_be():
    with pytest.raises(InputError, match="10 channels cannot be split into 3 heads"):
        OutlookAttention(10, num_heads=3)
    with pytest.raises(InputError, match=r"an odd kernel_size.*kernel_size=4"):
        OutlookAttention(8, num_heads=2, kernel_size=4)
    with pytest.raises(InputError, match=r"a stride from 1 to kernel_size.*stride=4"):
        OutlookAttention(8, num_heads=2, stride=4)
