"""Varying window attention against its formula, written as loops, and what it sees and costs; the decoder of it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from backbones import InputError
from backbones.kernels.window import window_attention
from training.tasks.dense.vwformer import VaryingWindowAttention, VWFormerDecoder

fast = settings(max_examples=8, deadline=None)


def context(index: int, window: int, ratio: int) -> range:
    """Rows, or columns, of the context of the window with this number; some of them may be outside of the map."""
    start = index * window - (ratio - 1) * window // 2
    return range(start, start + ratio * window)


def loops(attention: VaryingWindowAttention, x: torch.Tensor) -> torch.Tensor:
    """Every token gathers the cells of its window's context, one by one."""
    window, ratio, heads = attention.window_size, attention.ratio, attention.num_heads
    batch, height, width, dim = x.shape
    out = torch.zeros_like(x)
    for b in range(batch):
        for y in range(height):
            for z in range(width):
                rows, columns = (context(i // window, window, ratio) for i in (y, z))
                cells = []
                for top in rows[::ratio]:
                    for left in columns[::ratio]:
                        tokens = [
                            x[b, i, j]
                            for i in range(top, top + ratio)
                            for j in range(left, left + ratio)
                            if 0 <= i < height and 0 <= j < width
                        ]
                        if tokens:
                            cells.append(torch.stack(tokens).mean(0))
                keys, values = attention.kv(torch.stack(cells)).split(dim, 1)
                q = attention.q(x[b, y, z])
                parts = []
                for h in range(heads):
                    part = slice(h * dim // heads, (h + 1) * dim // heads)
                    weights = (keys[:, part] @ q[part] / (dim // heads) ** 0.5).softmax(0)
                    parts.append(weights @ values[:, part])
                out[b, y, z] = attention.proj(torch.cat(parts))
    return out


@fast
@given(
    height=st.integers(1, 11),
    width=st.integers(1, 11),
    sizes=st.sampled_from([(2, 1), (2, 2), (4, 1), (4, 2), (4, 4), (6, 3)]),
    seed=st.integers(0, 99),
)
def test_equals_the_formula(height, width, sizes, seed):
    torch.manual_seed(seed)
    attention = VaryingWindowAttention(6, 2, *sizes).double()
    x = torch.randn(2, height, width, 6, dtype=torch.float64)
    torch.testing.assert_close(attention(x), loops(attention, x), rtol=1e-12, atol=1e-12)


def test_equals_the_formula_at_full_size():
    attention = VaryingWindowAttention(4, 1, 8, 8).double()
    x = torch.randn(1, 19, 10, 4, dtype=torch.float64)
    torch.testing.assert_close(attention(x), loops(attention, x), rtol=1e-12, atol=1e-12)


def test_a_ratio_of_one_is_window_attention():
    attention = VaryingWindowAttention(12, 3, 4, 1).double()
    x = torch.randn(2, 8, 12, 12, dtype=torch.float64)
    k, v = attention.kv(x).chunk(2, -1)
    q, k, v = (t.unflatten(-1, (3, 4)) for t in (attention.q(x), k, v))
    expected = attention.proj(window_attention(q, k, v, (4, 4)).flatten(-2))
    torch.testing.assert_close(attention(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("ratio", [1, 2, 4, 8])
def test_a_token_sees_the_context_of_its_window_and_no_more(ratio):
    attention = VaryingWindowAttention(4, 2, 8, ratio).double()
    x = torch.randn(1, 61, 45, 4, dtype=torch.float64, requires_grad=True)
    for row, column in ((0, 0), (29, 20), (60, 44)):
        (grad,) = torch.autograd.grad(attention(x)[0, row, column].sum(), x)
        seen = grad[0].abs().sum(-1) > 0
        expected = torch.zeros_like(seen)
        rows, columns = context(row // 8, 8, ratio), context(column // 8, 8, ratio)
        expected[max(0, rows.start) : rows.stop, max(0, columns.start) : columns.stop] = True
        assert torch.equal(seen, expected)


def test_the_border_takes_no_attention():
    """Equal tokens give equal outputs, at the border as inside: nothing is mixed with padding."""
    attention = VaryingWindowAttention(4, 2, 4, 4).double()
    out = attention(torch.randn(4, dtype=torch.float64).expand(1, 13, 9, 4))
    torch.testing.assert_close(out, out[:, :1, :1].expand_as(out), rtol=1e-12, atol=1e-12)


def test_gradients():
    attention = VaryingWindowAttention(4, 2, 4, 2).double()
    x = torch.randn(2, 5, 6, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(attention, (x,))


def operations(module, *inputs) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        module(*inputs)
    return counter.get_total_flops()


def test_the_cost_grows_with_the_tokens_and_not_with_the_context():
    cost = {}
    for ratio in (1, 2, 4, 8):
        attention = VaryingWindowAttention(16, 2, 8, ratio)
        small, large = (operations(attention, torch.randn(1, side, 64, 16)) for side in (64, 256))
        # At a border, cells that no window shares are projected for one alone: up to one more row or column of cells.
        assert 3.8 * small < large <= 4 * small
        cost[ratio] = large
    assert cost[8] < cost[4] < cost[2] < cost[1]  # fewer cells to project; the attention itself costs the same
    tokens, window = 256 * 64, 8 * 8
    assert cost[1] == 2 * tokens * 16 * (4 * 16 + 2 * window)


def test_the_attention_asks_for_sizes_that_fit():
    for sizes in ((6, 4, 8, 2), (8, 2, 5, 1), (8, 2, 8, 3)):
        with pytest.raises(InputError, match="even window_size that the ratio divides"):
            VaryingWindowAttention(*sizes)


# The decoder


def test_the_decoder_learns_with_every_parameter():
    decoder = VWFormerDecoder([8, 12, 16, 20], 32)
    sizes = [(25, 33), (13, 17), (7, 9), (4, 5)]
    maps = [torch.randn(1, c, *size) for c, size in zip((8, 12, 16, 20), sizes)]
    out = decoder(maps)
    assert out.shape == (1, 32, 25, 33) and decoder.out_channels == 32
    out.square().mean().backward()
    assert [name for name, p in decoder.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_the_decoder_has_a_head_for_any_width():
    assert [VWFormerDecoder([4] * 4, width).branches[0].num_heads for width in (10, 32, 96)] == [1, 1, 3]


def test_pictures_of_a_batch_are_apart():
    decoder = VWFormerDecoder([4] * 4, 32).train().double()
    maps = [torch.randn(2, 4, 16 // i, 24 // i, dtype=torch.float64) for i in (1, 2, 4, 8)]
    together = decoder(maps)
    torch.testing.assert_close(together[1:], decoder([x[1:] for x in maps]), rtol=1e-10, atol=1e-10)


def test_the_branches_see_further_than_the_maps():
    """What changes in a corner of the coarse maps is noticed as far away as the widest context reaches."""
    decoder = VWFormerDecoder([4] * 4, 32).double()
    maps = [torch.randn(1, 4, 128 // i, 128 // i, dtype=torch.float64) for i in (1, 2, 4, 8)]
    changed = [x.clone() for x in maps]
    changed[1][:, :, 0, 0] += 1
    differs = (decoder(changed) - decoder(maps)).abs().amax((0, 1)) > 0
    # In tokens of stride 8: the window of queries that ends at 40 has a context which begins at 32 - 28 = 4, the one
    # before it at -4; so the first 32 rows and columns see the corner. Enlarging by two reaches one pixel further.
    assert differs[:64, :64].all() and not differs[66:].any() and not differs[:, 66:].any()
