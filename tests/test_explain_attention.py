"""The attention that is shown is the attention that is computed."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import backbones
from backbones.attention import (
    BiLevelRoutingAttention,
    ChannelAttention,
    ContextMixing,
    GlobalQueryAttention,
    HiLoAttention,
    LePEAttention,
    LinearAttention,
    NeighborhoodAttention,
    OutlookAttention,
    SelfAttention,
    WindowAttention,
)
from backbones.explain import attention_of, attention_weights

few = settings(max_examples=5, deadline=None)
sides = st.integers(7, 13)
DIM, HEADS = 12, 3


def value_of(module, x):
    """The values of tokens: the last part of the projection that makes them."""
    if isinstance(module, OutlookAttention):
        return module.v(x)
    return (module.kv if isinstance(module, GlobalQueryAttention) else module.qkv)(x)[..., -DIM:]


def mixed(weights, values, zero):
    """Values (H, W, C) under weights (heads, H, W); what they lack of 1 is the share of tokens that are zero."""
    heads = len(weights)
    values, zero = values.unflatten(-1, (heads, -1)), zero.unflatten(-1, (heads, -1))
    sums = torch.einsum("hyx,yxhd->hd", weights, values)
    return (sums + (1 - weights.sum((1, 2)))[:, None] * zero).flatten()


def randomised(module):
    """In float64 and evaluation mode, with parameters that are not small."""
    module = module.double().eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0, 0.5)
    return module


SOFTMAX = {
    "window": lambda: WindowAttention(DIM, HEADS, 4),
    "shifted window": lambda: WindowAttention(DIM, HEADS, 5, shifted=True),
    "window without bias": lambda: WindowAttention(DIM, HEADS, 4, position_bias=False),
    "global query": lambda: GlobalQueryAttention(DIM, HEADS, 4),
    "neighbourhood": lambda: NeighborhoodAttention(DIM, HEADS, 5),
    "dilated neighbourhood": lambda: NeighborhoodAttention(DIM, HEADS, 3, 3),
    "routed": lambda: BiLevelRoutingAttention(DIM, HEADS, 3, 2),
    "ragged routed": lambda: BiLevelRoutingAttention(DIM, HEADS, 3, 2, ragged=True),
    "full": lambda: SelfAttention(DIM, HEADS),
    "lepe": lambda: LePEAttention(DIM, HEADS),
    "lepe of input": lambda: LePEAttention(DIM, HEADS, lepe_of_input=True),
}


@pytest.mark.parametrize("name", SOFTMAX)
@given(height=sides, width=sides, seed=st.integers(0, 999), place=st.tuples(st.floats(0, 0.99), st.floats(0, 0.99)))
@few
def test_values_under_the_weights_are_the_output(name, height, width, seed, place):
    torch.manual_seed(seed)
    module = randomised(SOFTMAX[name]())
    x, token = torch.randn(1, height, width, DIM).double(), (int(place[0] * height), int(place[1] * width))
    args = [torch.randn(1, 4, 4, DIM).double()] if name == "global query" else []
    expected = module(x, *args)[0, *token]
    [(_, weights)] = attention_weights(module, token, x, *args)
    assert weights.shape == (HEADS, height, width) and weights.min() >= 0
    assert (weights.sum((1, 2)) < 1 + 1e-9).all()
    zero = torch.zeros(DIM).double()
    out = mixed(weights, value_of(module, x)[0], zero if name == "ragged routed" else value_of(module, zero))
    if hasattr(module, "lepe"):
        if name == "routed":  # the convolution sees the tokens that fill the map up to 3 x 3 regions
            x = F.pad(x, (0, 0, 0, -width % 3, 0, -height % 3))
        out = out + module.lepe(x if name == "lepe of input" else value_of(module, x))[0, *token]
    torch.testing.assert_close(module.proj(out), expected)


@given(height=sides, width=sides, seed=st.integers(0, 999), window=st.integers(1, 3))
@few
def test_hilo_has_the_weights_of_each_group(height, width, seed, window):
    torch.manual_seed(seed)
    module = randomised(HiLoAttention(DIM, HEADS, window, alpha=0.7))
    x, token = torch.randn(1, height, width, DIM).double(), (height - 1, width // 2)
    found, zero = attention_weights(module, token, x), torch.zeros(DIM).double()
    parts = []
    for (title, weights), layer in zip(found, (["high"] if window > 1 else []) + ["low"], strict=True):
        assert layer[:2] == title[:2].lower()
        project = module.get_submodule("high_qkv" if layer == "high" else "low_kv")
        wide = project.out_features // (3 if layer == "high" else 2)
        out = mixed(weights, project(x)[0, ..., -wide:], project(zero)[-wide:])
        parts.append(module.get_submodule(f"{layer}_proj")(out))
    torch.testing.assert_close(torch.cat(parts), module(x)[0, *token])


@given(height=sides, width=sides, seed=st.integers(0, 999))
@few
def test_outlook_weights_add_up_over_the_windows(height, width, seed):
    torch.manual_seed(seed)
    module = randomised(OutlookAttention(DIM, HEADS))
    x = torch.randn(1, height, width, DIM).double()
    [(_, weights)] = attention_weights(module, (3, 3), x)
    out = torch.einsum("hyx,yxhd->hd", weights, module.v(x)[0].unflatten(-1, (HEADS, -1))).flatten()
    torch.testing.assert_close(module.proj(out), module(x)[0, 3, 3])
    # An odd row and column lie in two windows each, and these four reach over 5 x 5 tokens.
    torch.testing.assert_close(weights.sum((1, 2)), torch.full((HEADS,), 4.0).double())
    seen = weights[0] > 0
    assert seen[1:6, 1:6].all() and seen.sum() == 25


@given(height=sides, width=sides, seed=st.integers(0, 999))
@few
def test_linear_attention_has_effective_weights(height, width, seed):
    torch.manual_seed(seed)
    module = randomised(LinearAttention(DIM, HEADS))
    x = 3 * torch.randn(1, height, width, DIM).double()
    [(_, weights)] = attention_weights(module, (2, 4), x)
    out = torch.einsum("hyx,yxhd->hd", weights, value_of(module, x)[0].unflatten(-1, (HEADS, -1))).flatten()
    torch.testing.assert_close(module.proj(out), module(x)[0, 2, 4])


@pytest.mark.parametrize("size", [(9, 11), (5, 8)], ids=["large enough", "enlarged"])
def test_dynamic_kernels_are_told_apart(size):
    module = randomised(ContextMixing(12, 6, num_heads=2, kernel_size=7, small_kernel_size=3))
    x, kept = torch.randn(1, *size, 18).double(), []
    (small_title, small), (large_title, large) = attention_weights(module, (4, 5), x)
    assert "small" in small_title and "3 × 3" in small_title and "large" in large_title and "7 × 7" in large_title
    handle = module.out.register_forward_pre_hook(lambda module, inputs: kept.append(inputs[0]))
    module(x)
    handle.remove()
    values = module.fusion(x.permute(0, 3, 1, 2))[0].permute(1, 2, 0)
    out = mixed(torch.cat([small, large]), values, torch.zeros(12).double())
    torch.testing.assert_close(out, kept[0][0, :, 4, 5])
    torch.testing.assert_close(torch.cat([small, large]).sum((1, 2)), torch.ones(4).double())
    if size == (9, 11):
        assert (small[0] > 0).sum() == 9 and (large[0] > 0).sum() == 49


def test_channel_attention_is_a_matrix_per_group():
    module = randomised(ChannelAttention(DIM, HEADS))
    x = 0.3 * torch.randn(1, 5, 6, DIM).double()
    [(_, weights)] = attention_weights(module, (2, 3), x)
    assert weights.shape == (HEADS, DIM // HEADS, DIM // HEADS)
    torch.testing.assert_close(weights.sum(2), torch.ones(HEADS, DIM // HEADS).double())
    queries = module.qkv(x)[0, 2, 3, :DIM].unflatten(0, (HEADS, -1))
    out = torch.einsum("gij,gj->gi", weights, queries).flatten()
    torch.testing.assert_close(module.proj(out), module(x)[0, 2, 3])
    torch.testing.assert_close(attention_weights(module, (0, 0), x)[0][1], weights)


@pytest.mark.parametrize("family", backbones.list_families())
def test_every_family_shows_its_own_attention(family):
    model = backbones.create_model(f"{family}_nano", num_classes=3).eval().requires_grad_(False)
    image = torch.randn(1, 3, 40, 56)
    before = model(image)
    found = attention_of(model, image, (55.5, 0))
    stages = dict(litv2={2, 3}, overlock={2, 3}).get(family, {0, 1, 2, 3})
    assert {entry.stage for entry in found} == stages
    sizes = [features.shape[2:] for features in model.forward_intermediates(image, intermediates_only=True)]
    for entry in found:
        assert not entry.weights.requires_grad and entry.weights.isfinite().all()
        if not entry.of_channels:
            assert entry.map.shape == sizes[entry.stage]
            assert entry.token == (
                0,
                min(int(55.5 / model.feature_info[entry.stage]["reduction"]), entry.map.shape[1] - 1),
            )
    torch.testing.assert_close(model(image), before, rtol=0, atol=0)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def seen(name, point, place=0, **keywords):
    """Rows and columns that the token under a point sees in a block, and what the block's attention is called."""
    model = backbones.create_model(name, **keywords).eval()
    entry = attention_of(model, torch.randn(1, 3, 64, 64), point)[place]
    rows, columns = (entry.map > 1e-12).nonzero().T
    return entry.title, sorted(set(rows.tolist())), sorted(set(columns.tolist()))


def test_what_is_seen_is_where_the_mechanism_says():
    assert seen("swin_nano", (21, 33)) == ("window, 4 × 4 tokens", [16, 17, 18, 19], [8, 9, 10, 11])
    title, rows, columns = seen("swin_nano", (21, 33), 2)
    assert title == "shifted window, 4 × 4 tokens" and (rows, columns) == ([6, 7, 8, 9], [2, 3, 4, 5])
    dilated = ("neighbourhood, 3 × 3 tokens, 5 apart", [0, 5, 10], [11, 16, 21])
    assert seen("dinat_nano", (33, 1), 1) == dilated
    title, rows, columns = seen("biformer_nano", (1, 1))
    assert title == "1 of 4 × 4 regions, chosen" and len(rows) == len(columns) == 8 and rows[0] % 8 == 0
