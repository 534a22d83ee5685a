"""HiLo attention against its formula as loops, its split of heads, and its properties."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from backbones import InputError
from backbones.attention import HiLoAttention

fast = settings(max_examples=8, deadline=None)


def trained(*arguments):
    """A block in float64 whose biases are no zeros, so that filled-up tokens are seen."""
    block = HiLoAttention(*arguments).double()
    for n, p in block.named_parameters():
        if n.endswith("bias"):
            torch.nn.init.normal_(p)
    return block


def attend(q, keys, values):
    """softmax(q k / sqrt(d)) v of a single query."""
    return torch.stack([q @ k / len(q) ** 0.5 for k in keys]).softmax(0) @ torch.stack(values)


def loops(block, x):
    """Token by token and head by head: Hi-Fi in the token's window, Lo-Fi to the mean of every window."""
    batch, height, width, dim = x.shape
    s, d = block.window_size, dim // (block.high_heads + block.low_heads)
    rows, columns = -(-height // s), -(-width // s)
    zero = torch.zeros(dim, dtype=x.dtype)

    def token(b, i, j):
        return x[b, i, j] if i < height and j < width else zero

    out = []
    for b in range(batch):
        windows = {
            (r, c): [token(b, s * r + i, s * c + j) for i in range(s) for j in range(s)]
            for r in range(rows)
            for c in range(columns)
        }
        if block.low_heads:
            means = [sum(tokens) / s**2 for tokens in windows.values()]
            low_kv = [block.low_kv(mean).view(2, block.low_heads, d) for mean in means]
        for i in range(height):
            for j in range(width):
                groups = []
                if block.high_heads:
                    own = [block.high_qkv(t).view(3, block.high_heads, d) for t in windows[i // s, j // s]]
                    q = own[i % s * s + j % s][0]
                    heads = [
                        attend(q[h], [t[1, h] for t in own], [t[2, h] for t in own]) for h in range(block.high_heads)
                    ]
                    groups.append(block.high_proj(torch.cat(heads)))
                if block.low_heads:
                    q = block.low_q(x[b, i, j]).view(block.low_heads, d)
                    heads = [
                        attend(q[h], [t[0, h] for t in low_kv], [t[1, h] for t in low_kv])
                        for h in range(block.low_heads)
                    ]
                    groups.append(block.low_proj(torch.cat(heads)))
                out.append(torch.cat(groups))
    return torch.stack(out).view(x.shape)


@fast
@given(
    height=st.integers(1, 5),
    width=st.integers(1, 5),
    window_size=st.integers(1, 3),
    alpha=st.sampled_from([0.0, 0.4, 0.9, 1.0]),
    num_heads=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_equals_the_formula(height, width, window_size, alpha, num_heads, seed):
    torch.manual_seed(seed)
    block = trained(2 * num_heads, num_heads, window_size, alpha)
    x = torch.randn(2, height, width, 2 * num_heads, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(block(x), loops(block, x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("window_size", "alpha"), [(2, 0.5), (2, 0.0), (2, 1.0), (1, 0.5)])
def test_gradients(window_size, alpha):
    block = trained(4, 2, window_size, alpha)
    x = torch.randn(1, 3, 2, 4, dtype=torch.float64, requires_grad=True)
    names = [n for n, _ in block.named_parameters()]
    weights = [p.detach().clone().requires_grad_() for p in block.parameters()]

    def run(x, *weights):
        return torch.func.functional_call(block, dict(zip(names, weights)), (x,))

    assert torch.autograd.gradcheck(run, (x, *weights))


@pytest.mark.parametrize(
    ("num_heads", "alpha", "low"),
    [(12, 0.9, 10), (16, 0.9, 14), (12, 0.0, 0), (12, 0.2, 2), (12, 0.4, 4), (12, 0.5, 6), (12, 0.7, 8), (12, 1.0, 12)],
)
def test_the_share_of_low_heads_is_rounded_down(num_heads, alpha, low):
    block = HiLoAttention(32 * num_heads, num_heads, 2, alpha)
    assert (block.low_heads, block.high_heads) == (low, num_heads - low)
    dim, low_dim = 32 * num_heads, 32 * low
    high_dim = dim - low_dim
    shapes = {n: tuple(p.shape) for n, p in block.named_parameters() if n.endswith("weight")}
    expected = {"high_qkv.weight": (3 * high_dim, dim), "high_proj.weight": (high_dim, high_dim)} if high_dim else {}
    if low:
        expected |= {"low_q.weight": (low_dim, dim), "low_kv.weight": (2 * low_dim, dim)}
        expected |= {"low_proj.weight": (low_dim, low_dim)}
    assert shapes == expected


@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_windows_of_one_token_make_all_heads_low_which_is_full_attention(alpha):
    block = trained(8, 2, 1, alpha)
    assert block.low_heads == 2 and not hasattr(block, "high_qkv")
    x = torch.randn(2, 4, 5, 8, dtype=torch.float64)
    q, k, v = (t.view(2, 20, 2, 4).transpose(1, 2) for t in (block.low_q(x), *block.low_kv(x).chunk(2, dim=-1)))
    full = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)
    torch.testing.assert_close(block(x), block.low_proj(full))


def test_high_channels_come_first_and_see_their_window_alone():
    block = trained(8, 4, 2, 0.5)
    x = torch.randn(2, 4, 6, 8, dtype=torch.float64)
    moved = x.clone()
    moved[0, 1, 2] += 1
    changed = block(moved) != block(x)
    high, low = changed[..., :4].any(-1), changed[..., 4:].any(-1)
    assert high[0, :2, 2:4].all() and high.sum() == 4
    assert low[0].all() and not low[1].any()


def test_low_heads_see_nothing_of_a_window_but_its_mean():
    block = trained(4, 2, 2, 1.0)
    x = torch.randn(1, 4, 4, 4, dtype=torch.float64)
    moved = x.clone()
    moved[0, 0, 0] += 1
    moved[0, 0, 1] -= 1
    same = (block(moved) - block(x)).abs().amax(-1) < 1e-12
    assert not same[0, 0, 0] and not same[0, 0, 1] and same.sum() == 14


@pytest.mark.parametrize("size", [(5, 7), (1, 1), (4, 3)])
def test_zeros_that_fill_up_a_window_take_part(size):
    """They are keys of their window and lower its mean, which is always over the whole window."""
    block = trained(8, 4, 4, 0.5)
    x = torch.randn(2, *size, 8, dtype=torch.float64)
    around = F.pad(x, (0, 0, 0, -size[1] % 4, 0, -size[0] % 4))
    torch.testing.assert_close(block(x), block(around)[:, : size[0], : size[1]])


def test_there_are_no_positions():
    """Moving all windows, or the tokens of each in the same way, moves the output."""
    block = trained(8, 4, 2, 0.5)
    x = torch.randn(2, 4, 6, 8, dtype=torch.float64)
    torch.testing.assert_close(block(x.roll((2, 4), (1, 2))), block(x).roll((2, 4), (1, 2)))
    torch.testing.assert_close(block(x.flip(1, 2)), block(x).flip(1, 2))


def test_weights_do_not_depend_on_the_window():
    two, four = (HiLoAttention(8, 4, window_size).state_dict() for window_size in (2, 4))
    assert {n: v.shape for n, v in two.items()} == {n: v.shape for n, v in four.items()}


def test_takes_strided_maps():
    block = trained(8, 4, 2, 0.5)
    x = torch.randn(2, 8, 5, 4, dtype=torch.float64).permute(0, 3, 2, 1)
    torch.testing.assert_close(block(x), block(x.contiguous()))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (dict(num_heads=3), "10 channels cannot be split into 3 heads"),
        (dict(window_size=0), "window_size=0"),
        (dict(alpha=1.5), "from 0 to 1, but got window_size=2 and alpha=1.5"),
        (dict(alpha=-0.1), "alpha=-0.1"),
    ],
)
def test_what_cannot_be_built(wrong, said):
    with pytest.raises(InputError, match=said):
        HiLoAttention(**(dict(dim=10, num_heads=5) | wrong))
