"""Routed attention against its formula, written as loops, and the blocks around it."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from backbones.attention import BiLevelRoutingAttention, LePEAttention
from backbones.attention.routed import choose_regions
from backbones.kernels.routed import reference, routed_attention

fast = settings(max_examples=8, deadline=None)


@pytest.fixture(params=[1, 1_000_000], ids=["a region at a time", "at once"], autouse=True)
def pieces(request, monkeypatch):
    monkeypatch.setattr(reference, "PIECE_BYTES", request.param)


def loops(q, k, v, routes, regions, scale):
    """Every query asks every token whether its region is among the chosen ones, and how often."""
    batch, height, width, heads, _ = q.shape
    size = (height // regions[0], width // regions[1])
    out = torch.zeros_like(q)
    for b in range(batch):
        for y in range(height):
            for x in range(width):
                own = y // size[0] * regions[1] + x // size[1]
                tokens = [
                    (ky, kx)
                    for chosen in routes[b, own].tolist()
                    for ky in range(height)
                    for kx in range(width)
                    if ky // size[0] * regions[1] + kx // size[1] == chosen
                ]
                for h in range(heads):
                    logits = torch.stack([scale * q[b, y, x, h] @ k[b, ky, kx, h] for ky, kx in tokens])
                    values = torch.stack([v[b, ky, kx, h] for ky, kx in tokens])
                    out[b, y, x, h] = logits.softmax(0) @ values
    return out


@fast
@given(
    regions=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    size=st.tuples(st.integers(1, 3), st.integers(1, 2)),
    top_k=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_equals_the_formula(regions, size, top_k, seed):
    torch.manual_seed(seed)
    height, width, count = regions[0] * size[0], regions[1] * size[1], regions[0] * regions[1]
    q, k, v = torch.randn(3, 2, height, width, 2, 3, dtype=torch.float64)
    routes = torch.randint(count, (2, count, top_k))
    out = routed_attention(q, k, v, routes, regions, 0.7)
    torch.testing.assert_close(out, loops(q, k, v, routes, regions, 0.7), rtol=1e-12, atol=1e-12)
    assert out.is_contiguous()


def test_gradients():
    inputs = [torch.randn(2, 4, 2, 1, 2, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    routes = torch.tensor([[[0, 3], [1, 0], [2, 2], [0, 1]], [[3, 1], [3, 2], [3, 0], [1, 3]]])

    def attention(q, k, v):
        return routed_attention(q, k, v, routes, 2)

    assert torch.autograd.gradcheck(attention, inputs)
    assert torch.autograd.gradgradcheck(attention, inputs)


def test_all_regions_are_full_attention():
    q, k, v = torch.randn(3, 2, 6, 4, 2, 4, dtype=torch.float64)
    routes = torch.stack([torch.randperm(4) for _ in range(8)]).view(2, 4, 4)
    tokens = [t.flatten(1, 2).transpose(1, 2) for t in (q, k, v)]
    full = F.scaled_dot_product_attention(*tokens).transpose(1, 2).reshape(q.shape)
    torch.testing.assert_close(routed_attention(q, k, v, routes, 2), full)


def test_only_chosen_regions_of_the_same_image_are_seen():
    q, k, v = torch.randn(3, 2, 4, 4, 1, 4, dtype=torch.float64)
    moved = v.clone()
    moved[0, :2, 2:] += 1  # region 1
    routes = torch.tensor([[0, 1], [2, 3], [1, 3], [0, 2]]).expand(2, -1, -1)
    changed = routed_attention(q, k, moved, routes, 2) != routed_attention(q, k, v, routes, 2)
    assert changed[0, :2, :2].all() and changed[0, 2:, :2].all()  # regions 0 and 2 attend to region 1
    assert not changed[0, :, 2:].any() and not changed[1].any()


def test_strided_views_of_one_projection():
    views = torch.randn(2, 4, 6, 3, 2, 4, dtype=torch.float64).unbind(3)
    routes = torch.randint(6, (2, 6, 2))
    out = routed_attention(*views, routes, (2, 3))
    torch.testing.assert_close(out, routed_attention(*(t.contiguous() for t in views), routes, (2, 3)))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (dict(k=torch.zeros(1, 4, 5, 2, 8)), "k (1, 4, 5, 2, 8)"),
        (dict(regions=3), "3 x 3 regions divide evenly, but got 4 x 4"),
        (dict(routes=torch.zeros(1, 3, 1).long()), "routes of shape (1, 4, top_k), but got (1, 3, 1)"),
        (dict(routes=torch.zeros(1, 4, 1)), "integer type, but got torch.float32"),
    ],
)
def test_wrong_arguments_are_named(wrong, said):
    arguments = dict(zip("qkv", torch.zeros(3, 1, 4, 4, 2, 8)), routes=torch.zeros(1, 4, 1).long(), regions=2) | wrong
    with pytest.raises(ValueError) as error:
        routed_attention(**arguments)
    assert said in str(error.value)


def formula(block: BiLevelRoutingAttention, x, regions, size):
    """The block on a map that its regions cover, those at the bottom and right perhaps in part; one head at a time."""
    _, height, width, dim = x.shape
    qkv = F.linear(x, block.qkv.weight, block.qkv.bias)
    covered = F.pad(qkv, (0, 0, 0, regions[1] * size[1] - width, 0, regions[0] * size[0] - height))
    means = [
        qkv[:, r * size[0] : (r + 1) * size[0], c * size[1] : (c + 1) * size[1]].mean((1, 2))
        for r in range(regions[0])
        for c in range(regions[1])
    ]
    query, key, _ = torch.stack(means, 1).chunk(3, -1)
    routes = torch.einsum("bqc,bkc->bqk", query, key).topk(block.top_k).indices
    q, k, v = covered.unflatten(3, (3, block.num_heads, -1)).unbind(3)
    attended = loops(q, k, v, routes, regions, dim**-0.5).flatten(3)
    lepe = F.conv2d(v.flatten(3).movedim(3, 1), block.lepe.weight, block.lepe.bias, padding=2, groups=dim)
    out = F.linear(attended + lepe.movedim(1, 3), block.proj.weight, block.proj.bias)
    return out[:, :height, :width]


@pytest.mark.parametrize("size", [(6, 3), (5, 4), (2, 7)])
def test_the_block_fills_maps_up_before_the_projection(size):
    block = BiLevelRoutingAttention(8, num_heads=2, num_regions=3, top_k=2).double()
    torch.nn.init.normal_(block.qkv.bias)
    x = torch.randn(2, *size, 8, dtype=torch.float64)
    side = [-(-length // 3) for length in size]
    around = F.pad(x, (0, 0, 0, 3 * side[1] - size[1], 0, 3 * side[0] - size[0]))
    expected = formula(block, around, (3, 3), side)[:, : size[0], : size[1]]
    torch.testing.assert_close(block(x), expected)


def test_ragged_regions_keep_their_size_and_fill_up_after_the_projection():
    block = BiLevelRoutingAttention(8, num_heads=2, num_regions=2, top_k=2, ragged=True).double()
    torch.nn.init.normal_(block.qkv.bias)
    x = torch.randn(2, 5, 7, 8, dtype=torch.float64)
    torch.testing.assert_close(block(x), formula(block, x, (3, 3), (2, 3)))  # the last ones have 1 row and 1 column


@pytest.mark.parametrize(("size", "same"), [((6, 9), True), ((2, 8), True), ((1, 1), True), ((7, 8), False)])
def test_ragged_regions_differ_only_where_regions_do_not_divide_and_the_map_is_large_enough(size, same):
    block = BiLevelRoutingAttention(8, num_heads=2, num_regions=3, top_k=2).double()
    torch.nn.init.normal_(block.qkv.bias)
    x = torch.randn(1, *size, 8, dtype=torch.float64)
    expected = block(x)
    block.ragged = True
    assert torch.allclose(block(x), expected) == same


def test_the_choice_is_made_in_float32_and_without_a_gradient():
    near = 1 + 2**-10 * torch.tensor([0.0, 3.0, 1.0, 2.0])  # keys that bfloat16, with steps of 2**-7, cannot tell apart
    qkv = torch.stack([torch.ones(4), near, torch.ones(4)], 1).view(1, 1, 4, 3).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        routes = choose_regions(qkv, (1, 1), 3)
    assert (routes == torch.tensor([1, 3, 2])).all() and not routes.requires_grad
    # Two keys that bfloat16 holds, with a mean that it does not.
    halves = torch.tensor([[1, 1], [1, 1 + 2**-7], [1, 1], [1, 1]]).flatten()
    qkv = torch.stack([torch.ones(8), halves, torch.ones(8)], 1).view(1, 1, 8, 3).bfloat16()
    assert (choose_regions(qkv, (1, 2), 1) == 1).all()


@pytest.mark.parametrize("lepe_of_input", [True, False])
def test_full_attention_with_lepe_equals_its_formula(lepe_of_input):
    block = LePEAttention(8, num_heads=2, lepe_of_input=lepe_of_input).double()
    x = torch.randn(2, 3, 5, 8, dtype=torch.float64)
    q, k, v = (x.flatten(1, 2) @ block.qkv.weight.T).unflatten(2, (3, 2, 4)).permute(2, 0, 3, 1, 4)
    attended = ((4**-0.5 * q @ k.transpose(2, 3)).softmax(-1) @ v).transpose(1, 2).reshape(2, 3, 5, 8)
    seen = x if lepe_of_input else v.transpose(1, 2).reshape(2, 3, 5, 8)
    lepe = F.conv2d(seen.movedim(3, 1), block.lepe.weight, block.lepe.bias, padding=2, groups=8).movedim(1, 3)
    torch.testing.assert_close(block(x), (attended + lepe) @ block.proj.weight.T + block.proj.bias)
    assert block.qkv.bias is None


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: BiLevelRoutingAttention(10, num_heads=3), "10 channels cannot be split into 3 heads"),
        (lambda: LePEAttention(10, num_heads=3), "10 channels cannot be split into 3 heads"),
        (lambda: BiLevelRoutingAttention(8, 2, num_regions=2, top_k=5), "top_k between 1 and 4"),
    ],
)
def test_what_cannot_be_built(build, said):
    with pytest.raises(ValueError, match=said):
        build()
