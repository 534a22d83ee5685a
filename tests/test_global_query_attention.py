"""Window attention with queries of the whole image against its formula as loops, and its properties."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from backbones import InputError
from backbones.attention import GlobalQueryAttention

fast = settings(max_examples=8, deadline=None)


def trained(dim, num_heads, window_size):
    """A block whose biases are no zeros and whose table decides."""
    block = GlobalQueryAttention(dim, num_heads, window_size).double()
    for p in (block.kv.bias, block.position_bias.table, block.proj.bias):
        torch.nn.init.normal_(p)
    return block


def loops(block, x, query):
    """Each pixel asks with its image's query of the same place in the window, and hears its window's tokens."""
    batch, height, width, dim = x.shape
    side, heads = block.window_size, block.num_heads
    d = dim // heads
    table = block.position_bias.table.view(2 * side - 1, 2 * side - 1, heads)
    out = torch.zeros_like(x)
    for b in range(batch):
        for row in range(height):
            for column in range(width):
                inside = row % side, column % side
                top, left = row - inside[0], column - inside[1]
                for head in range(heads):
                    part = slice(head * d, (head + 1) * d)
                    q = query[b, inside[0], inside[1], part]
                    logits, values = [], []
                    for i in range(side):
                        for j in range(side):
                            exists = top + i < height and left + j < width
                            token = x[b, top + i, left + j] if exists else torch.zeros_like(x[0, 0, 0])
                            k, v = F.linear(token, block.kv.weight, block.kv.bias).view(2, dim)[:, part]
                            bias = table[inside[0] - i + side - 1, inside[1] - j + side - 1, head]
                            logits.append((q @ k) / d**0.5 + bias)
                            values.append(v)
                    out[b, row, column, part] = torch.stack(logits).softmax(0) @ torch.stack(values)
    return F.linear(out, block.proj.weight, block.proj.bias)


@fast
@given(
    height=st.integers(1, 6),
    width=st.integers(1, 6),
    window_size=st.integers(1, 3),
    num_heads=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_equals_the_formula(height, width, window_size, num_heads, seed):
    torch.manual_seed(seed)
    dim = 2 * num_heads
    block = trained(dim, num_heads, window_size)
    x = torch.randn(2, height, width, dim, dtype=torch.float64)
    query = torch.randn(2, window_size, window_size, dim, dtype=torch.float64)
    torch.testing.assert_close(block(x, query), loops(block, x, query), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", [(2, 4), (3, 3)])
def test_gradients(size):
    block = trained(2, 2, 2)
    x = torch.randn(2, *size, 2, dtype=torch.float64, requires_grad=True)
    query = torch.randn(2, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    names = [n for n, _ in block.named_parameters()]
    weights = [p.detach().clone().requires_grad_() for p in block.parameters()]

    def run(x, query, *weights):
        return torch.func.functional_call(block, dict(zip(names, weights)), (x, query))

    assert torch.autograd.gradcheck(run, (x, query, *weights))


def test_every_window_of_an_image_asks_with_the_queries_of_that_image():
    block = trained(6, 2, 3)
    x = torch.randn(3, 6, 9, 6, dtype=torch.float64)
    query = torch.randn(3, 3, 3, 6, dtype=torch.float64)
    out = block(x, query)
    for b in range(3):
        for row in range(0, 6, 3):
            for column in range(0, 9, 3):
                window = (slice(b, b + 1), slice(row, row + 3), slice(column, column + 3))
                torch.testing.assert_close(out[window], block(x[window], query[b : b + 1]))


def test_a_query_reaches_its_place_in_every_window_and_no_other_image():
    block = trained(4, 2, 3)
    x = torch.randn(2, 6, 6, 4, dtype=torch.float64)
    query = torch.randn(2, 3, 3, 4, dtype=torch.float64)
    moved = query.clone()
    moved[0, 1, 2] += 1
    changed = (block(x, moved) != block(x, query)).any(-1)
    assert changed[0, 1::3, 2::3].all() and changed.sum() == 4


def test_a_token_is_heard_in_its_own_window_alone():
    block = trained(4, 2, 3)
    x = torch.randn(2, 6, 6, 4, dtype=torch.float64)
    query = torch.randn(2, 3, 3, 4, dtype=torch.float64)
    moved = x.clone()
    moved[1, 4, 0] += 1
    changed = (block(moved, query) != block(x, query)).any(-1)
    assert changed[1, 3:, :3].all() and changed.sum() == 9


def test_queries_are_not_projected():
    block = GlobalQueryAttention(8, 2, 3)
    assert {n: tuple(p.shape) for n, p in block.named_parameters()} == {
        "kv.weight": (16, 8),
        "kv.bias": (16,),
        "position_bias.table": (25, 2),
        "proj.weight": (8, 8),
        "proj.bias": (8,),
    }


@pytest.mark.parametrize("size", [(5, 7), (2, 2), (3, 7)])
def test_zeros_that_fill_up_a_window_are_keys_like_others(size):
    block = trained(4, 2, 3)
    x = torch.randn(2, *size, 4, dtype=torch.float64)
    query = torch.randn(2, 3, 3, 4, dtype=torch.float64)
    around = F.pad(x, (0, 0, 0, -size[1] % 3, 0, -size[0] % 3))
    torch.testing.assert_close(block(x, query), block(around, query)[:, : size[0], : size[1]])


def test_large_windows_give_the_same_with_and_without_gradients():
    block = trained(4, 2, 13)
    x = torch.randn(2, 15, 26, 4, dtype=torch.float64)
    query = torch.randn(2, 13, 13, 4, dtype=torch.float64)
    with torch.no_grad():
        out = block(x, query)
    torch.testing.assert_close(out, block(x, query))


def test_takes_strided_maps_and_queries():
    block = trained(4, 2, 3)
    x = torch.randn(2, 4, 6, 5, dtype=torch.float64).permute(0, 2, 3, 1)
    query = torch.randn(2, 4, 3, 3, dtype=torch.float64).permute(0, 3, 2, 1)
    torch.testing.assert_close(block(x, query), block(x.contiguous(), query.contiguous()))


def test_another_window_resizes_the_table():
    block = GlobalQueryAttention(8, 2, 7)
    grid = block.position_bias.table.detach().T.reshape(1, 2, 13, 13)
    block.set_window_size(24)
    expected = F.interpolate(grid, (47, 47), mode="bicubic").reshape(2, -1).T
    torch.testing.assert_close(block.position_bias.table, expected)
    assert block(torch.randn(1, 24, 30, 8), torch.randn(1, 24, 24, 8)).shape == (1, 24, 30, 8)


@pytest.mark.parametrize("shape", [(2, 4, 4, 8), (1, 3, 3, 8)], ids=["another window", "another batch"])
def test_queries_that_do_not_belong_to_the_map(shape):
    with pytest.raises(ValueError, match=r"q of shape \(2, 3, 3, 2, 4\)"):
        GlobalQueryAttention(8, 2, 3)(torch.randn(2, 6, 6, 8), torch.randn(shape))


@pytest.mark.parametrize("num_heads", [3, 0])
def test_heads_that_do_not_divide_the_width(num_heads):
    with pytest.raises(InputError, match=f"10 channels cannot be split into {num_heads} heads"):
        GlobalQueryAttention(10, num_heads, window_size=7)
