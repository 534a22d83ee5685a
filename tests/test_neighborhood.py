"""The definitions of neighbourhood attention and aggregation against their formulas as loops, and their properties."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from backbones.kernels.neighborhood import neighborhood_aggregate, neighborhood_attention

fast = settings(max_examples=8, deadline=None)
# Classes that divide the map and classes that do not, one block and several.
sides = st.one_of(st.integers(0, 4), st.sampled_from([9, 14, 19, 26]))
shapes = dict(kernel=st.sampled_from([1, 3, 5]), dilation=st.integers(1, 3), more=st.tuples(sides, sides))


def window(i, length, kernel, dilation):
    """Positions of the window of position i on an axis, and their index in the table."""
    residue, rank = i % dilation, i // dilation
    members = len(range(residue, length, dilation))
    start = min(max(rank - kernel // 2, 0), members - kernel)
    ranks = range(start, start + kernel)
    return [s * dilation + residue for s in ranks], [s - rank + kernel - 1 for s in ranks]


def attention_loops(q, k, v, kernel, dilation, bias, scale):
    out = torch.zeros_like(q)
    for y in range(q.shape[1]):
        rows, row_index = window(y, q.shape[1], kernel, dilation)
        for x in range(q.shape[2]):
            columns, column_index = window(x, q.shape[2], kernel, dilation)
            keys, values = (t[:, rows][:, :, columns].flatten(1, 2) for t in (k, v))
            logits = scale * torch.einsum("bhd,bthd->bht", q[:, y, x], keys)
            logits += bias[:, row_index][:, :, column_index].flatten(1)
            out[:, y, x] = torch.einsum("bht,bthd->bhd", logits.softmax(-1), values)
    return out


def aggregate_loops(weights, v, kernel, dilation):
    out = torch.zeros_like(v)
    for y in range(v.shape[1]):
        for x in range(v.shape[2]):
            rows = window(y, v.shape[1], kernel, dilation)[0]
            columns = window(x, v.shape[2], kernel, dilation)[0]
            values = v[:, rows][:, :, columns].flatten(1, 2)
            out[:, y, x] = torch.einsum("bht,bthd->bhd", weights[:, y, x], values)
    return out


@fast
@given(**shapes, seed=st.integers(0, 99))
def test_attention_equals_the_formula(kernel, dilation, more, seed):
    torch.manual_seed(seed)
    height, width = (kernel * dilation + extra for extra in more)
    q, k, v = torch.randn(3, 2, height, width, 2, 3, dtype=torch.float64)
    bias = torch.randn(2, 2 * kernel - 1, 2 * kernel - 1, dtype=torch.float64)
    out = neighborhood_attention(q, k, v, kernel, dilation, bias, scale=0.7)
    torch.testing.assert_close(out, attention_loops(q, k, v, kernel, dilation, bias, 0.7), rtol=1e-12, atol=1e-12)
    assert out.is_contiguous()
    plain = neighborhood_attention(q, k, v, kernel, dilation)
    torch.testing.assert_close(plain, attention_loops(q, k, v, kernel, dilation, 0 * bias, 3**-0.5))


@fast
@given(**shapes, seed=st.integers(0, 99))
def test_aggregation_equals_the_formula(kernel, dilation, more, seed):
    torch.manual_seed(seed)
    height, width = (kernel * dilation + extra for extra in more)
    v = torch.randn(2, height, width, 2, 3, dtype=torch.float64)
    weights = torch.randn(2, height, width, 2, kernel**2, dtype=torch.float64)
    out = neighborhood_aggregate(weights, v, kernel, dilation)
    torch.testing.assert_close(out, aggregate_loops(weights, v, kernel, dilation), rtol=1e-12, atol=1e-12)
    assert out.is_contiguous()


# One block; several of them with uneven classes; the last with members missing.
MAPS = [(4, 5, 3, 1), (7, 6, 3, 2), (3, 16, 3, 1)]


@pytest.mark.parametrize(("height", "width", "kernel", "dilation"), MAPS)
def test_gradients_of_attention(height, width, kernel, dilation):
    inputs = [torch.randn(1, height, width, 2, 1, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    inputs += [torch.randn(2, 2 * kernel - 1, 2 * kernel - 1, dtype=torch.float64, requires_grad=True)]
    assert torch.autograd.gradcheck(
        lambda q, k, v, bias: neighborhood_attention(q, k, v, kernel, dilation, bias), inputs
    )


@pytest.mark.parametrize(("height", "width", "kernel", "dilation"), MAPS)
def test_gradients_of_aggregation(height, width, kernel, dilation):
    shape = (1, height, width, 1)
    inputs = [torch.randn(*shape, n, dtype=torch.float64, requires_grad=True) for n in (kernel**2, 2)]
    assert torch.autograd.gradcheck(lambda w, v: neighborhood_aggregate(w, v, kernel, dilation), inputs)


@fast
@given(side=st.sampled_from([1, 3, 5, 7]), seed=st.integers(0, 99))
def test_a_window_as_large_as_the_map_is_full_attention(side, seed):
    torch.manual_seed(seed)
    q, k, v = torch.randn(3, 2, side, side, 2, 4, dtype=torch.float64)
    tokens = [t.flatten(1, 2).transpose(1, 2) for t in (q, k, v)]
    full = torch.nn.functional.scaled_dot_product_attention(*tokens).transpose(1, 2).reshape(q.shape)
    torch.testing.assert_close(neighborhood_attention(q, k, v, side), full)


def test_a_dilation_is_that_many_interleaved_maps_each_way():
    q, k, v = torch.randn(3, 1, 17, 20, 2, 4, dtype=torch.float64)
    bias = torch.randn(2, 9, 9, dtype=torch.float64)
    out = neighborhood_attention(q, k, v, 5, 3, bias)
    for row in range(3):
        for column in range(3):
            of_class = (slice(None), slice(row, None, 3), slice(column, None, 3))
            alone = neighborhood_attention(q[of_class], k[of_class], v[of_class], 5, 1, bias)
            torch.testing.assert_close(out[of_class], alone)


def test_attention_of_zero_queries_is_aggregation_with_equal_weights():
    v = torch.randn(2, 16, 18, 2, 4, dtype=torch.float64)
    mean = neighborhood_aggregate(torch.full((2, 16, 18, 2, 9), 1 / 9, dtype=torch.float64), v, 3)
    torch.testing.assert_close(neighborhood_attention(torch.zeros_like(v), v, v, 3), mean)


def test_nothing_crosses_a_window_nor_an_image():
    q, k, v = torch.randn(3, 2, 28, 28, 1, 4, dtype=torch.float64)
    moved = v.clone()
    moved[0, 13, 13] += 1
    changed = (neighborhood_attention(q, k, moved, 5, 2) != neighborhood_attention(q, k, v, 5, 2)).flatten(3).any(3)
    assert changed[0, 9:18:2, 9:18:2].all() and changed.sum() == 25


def test_strided_views_of_one_projection():
    qkv = torch.randn(2, 16, 6, 3, 2, 4, dtype=torch.float64)
    views = qkv.unbind(3)
    out = neighborhood_attention(*views, 3, 2)
    torch.testing.assert_close(out, neighborhood_attention(*(t.contiguous() for t in views), 3, 2))
    weights = torch.randn(2, 2, 9, 16, 6, dtype=torch.float64).permute(0, 3, 4, 1, 2)
    out = neighborhood_aggregate(weights, views[2], 3)
    torch.testing.assert_close(out, neighborhood_aggregate(weights.contiguous(), views[2].contiguous(), 3))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (dict(k=torch.zeros(1, 9, 8, 2, 8)), "k (1, 9, 8, 2, 8)"),
        (dict(bias=torch.zeros(2, 3, 3)), "bias of shape (2, 5, 5)"),
        (dict(kernel_size=4), "odd kernel_size"),
        (dict(dilation=0), "dilation 0"),
        (dict(dilation=3), "kernel_size * dilation = 9 positions a side, but got 8 x 8"),
    ],
)
def test_wrong_arguments_are_named(wrong, said):
    arguments = dict(zip("qkv", torch.zeros(3, 1, 8, 8, 2, 8)), kernel_size=3) | wrong
    with pytest.raises(ValueError) as raised:
        neighborhood_attention(**arguments)
    assert said in str(raised.value)


def test_wrong_weights_are_named():
    with pytest.raises(ValueError, match=r"weights \(B, H, W, num_heads, 9\), but got"):
        neighborhood_aggregate(torch.zeros(1, 8, 8, 2, 25), torch.zeros(1, 8, 8, 2, 8), 3)


@pytest.mark.parametrize(("height", "width", "dilation"), [(19, 23, 1), (20, 17, 2)])
def test_inference_in_parts_equals_all_at_once(height, width, dilation, monkeypatch):
    q, k, v = torch.randn(3, 2, height, width, 2, 4, dtype=torch.float64).unbind(0)
    weights = torch.rand(2, height, width, 2, 25, dtype=torch.float64)
    expected = neighborhood_attention(q, k, v, 5, dilation), neighborhood_aggregate(weights, v, 5, dilation)
    parts = []
    monkeypatch.setattr("backbones.kernels.neighborhood.reference.PART", 1000)
    cat = torch.cat
    monkeypatch.setattr("torch.cat", lambda tensors, *args: parts.append(len(tensors)) or cat(tensors, *args))
    with torch.no_grad():
        found = neighborhood_attention(q, k, v, 5, dilation), neighborhood_aggregate(weights, v, 5, dilation)
    assert min(parts) > 1
    torch.testing.assert_close(found, expected)
