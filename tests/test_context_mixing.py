"""Context mixing against its formula, written as loops, and its rules for borders and small maps."""

import pytest
import torch
import torch.nn.functional as F

from backbones.attention import ContextMixing
from backbones.attention.context_mixing import enlarge, neighborhood_bias, reduce_like


def block(dim=8, context_dim=3, num_heads=2, kernel_size=5, small_kernel_size=3):
    """A block in which every parameter and statistic has a say."""
    torch.manual_seed(0)
    block = ContextMixing(dim, context_dim, num_heads, kernel_size, small_kernel_size).double().eval()
    for entry in block.state_dict().values():
        if entry.is_floating_point():
            entry.copy_(torch.rand_like(entry) + 0.5 if entry.dim() == 1 else 0.5 * torch.randn_like(entry))
    return block


def start(position, kernel_size, length):
    """First row or column of the window around a position."""
    return min(max(position - kernel_size // 2, 0), length - kernel_size)


def loops(block, x, v):
    """The kernels of every position, one affinity and one product at a time."""
    x, context = x.split((block.dim, block.context_dim), 1)
    query = block.query(x) * (block.dim / block.num_heads) ** -0.5
    key = block.key(F.adaptive_avg_pool2d(context, 7)).flatten(2)
    batch, dim, height, width = v.shape
    share, half = dim // (2 * block.num_heads), dim // 2
    out = torch.zeros_like(v)
    for b in range(batch):
        for i in range(height):
            for j in range(width):
                for head in range(block.num_heads):
                    own = slice(head * share, (head + 1) * share)
                    affinities = query[b, own, i, j] @ key[b, own]
                    logits = block.kernels(affinities)
                    done = 0
                    for k, table, first in (
                        (block.small_kernel_size, block.small_bias, 0),
                        (block.kernel_size, block.large_bias, half),
                    ):
                        top, left = start(i, k, height), start(j, k, width)
                        window = [(top + s, left + t) for s in range(k) for t in range(k)]
                        bias = torch.stack([table[head, r - i + k - 1, c - j + k - 1] for r, c in window])
                        weights = (logits[done : done + k * k] + bias).softmax(0)
                        channels = slice(first + head * share, first + (head + 1) * share)
                        for weight, (r, c) in zip(weights, window):
                            out[b, channels, i, j] += weight * v[b, channels, r, c]
                        done += k * k
    return out


@pytest.mark.parametrize("size", [(5, 5), (6, 8), (9, 5)])
def test_equals_the_formula(size):
    mixing = block()
    x = torch.randn(2, 11, *size, dtype=torch.float64)
    v = torch.randn(2, 8, *size, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(mixing.mix(x, v), loops(mixing, x, v), rtol=1e-12, atol=1e-12)


def test_the_block_around_the_kernels():
    mixing = block()
    x = torch.randn(2, 6, 7, 11, dtype=torch.float64)
    nchw = x.permute(0, 3, 1, 2).contiguous()
    v = mixing.fusion(nchw)
    gate = F.silu(mixing.gate[1](mixing.gate[0](v)))
    y = mixing.out(loops(mixing, nchw, v)) + mixing.lepe(v)
    y = y * mixing.se.fc2(F.gelu(mixing.se.fc1(y.mean((2, 3), keepdim=True)))).sigmoid()
    y = mixing.proj[1](mixing.proj[0](gate * y))
    torch.testing.assert_close(mixing(x), y.permute(0, 2, 3, 1), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("size", [(2, 2), (3, 7), (4, 1), (1, 1)])
def test_a_map_smaller_than_the_kernel_is_enlarged_for_the_kernels_alone(size):
    mixing = block()
    x = torch.randn(1, *size, 11, dtype=torch.float64)
    seen = {}
    mixing.gate.register_forward_pre_hook(lambda m, args: seen.update(gate=args[0].shape[2:]))
    mixing.query.register_forward_pre_hook(lambda m, args: seen.update(query=args[0].shape[2:]))
    assert mixing(x).shape == x.shape
    assert tuple(seen["gate"]) == size and min(seen["query"]) == 5
    nchw = x.permute(0, 3, 1, 2)
    resized = F.interpolate(nchw, seen["query"], mode="bilinear", align_corners=False)
    mixed = mixing.mix(resized, F.interpolate(mixing.fusion(nchw), seen["query"], mode="bilinear", align_corners=False))
    torch.testing.assert_close(reduce_like(mixed, nchw), F.adaptive_avg_pool2d(mixed, size))


@pytest.mark.parametrize(
    ("size", "side", "expected"),
    [((5, 45), 7, (7, 62)), ((45, 5), 7, (62, 7)), ((6, 6), 7, (7, 7)), ((7, 9), 7, (7, 9)), ((3, 2), 13, (19, 13))],
)
def test_enlarged_sizes_are_rounded_as_in_the_release(size, side, expected):
    assert tuple(enlarge(torch.zeros(1, 2, *size), side).shape[2:]) == expected


@pytest.mark.parametrize("size", [(5, 5), (5, 8), (11, 6)])
def test_position_bias_is_looked_up_by_key_minus_position(size):
    table = torch.randn(2, 9, 9)
    bias = neighborhood_bias(table, *size).view(2, *size, 5, 5)
    for i in range(size[0]):
        for j in range(size[1]):
            row, column = start(i, 5, size[0]) - i + 4, start(j, 5, size[1]) - j + 4
            assert torch.equal(bias[:, i, j], table[:, row : row + 5, column : column + 5])


def test_gradients():
    mixing = block(dim=4, context_dim=2, num_heads=1, kernel_size=5, small_kernel_size=3)
    x = torch.randn(1, 3, 5, 6, dtype=torch.float64, requires_grad=True)  # smaller than the kernel
    tables = (mixing.small_bias, mixing.large_bias, mixing.kernels.weight)

    def run(x, small, large, weight):
        entries = {"small_bias": small, "large_bias": large, "kernels.weight": weight}
        return torch.func.functional_call(mixing, entries, (x,))

    assert torch.autograd.gradcheck(run, (x, *tables), fast_mode=True)


def test_the_context_makes_kernels_for_the_whole_map():
    """A change of the context's corner, out of reach of every window, changes the kernels everywhere."""
    mixing = block(kernel_size=5)
    x = torch.randn(1, 11, 16, 16, dtype=torch.float64)
    v = torch.randn(1, 8, 16, 16, dtype=torch.float64)
    moved = x.clone()
    moved[:, 8:, 0, 0] += 1
    assert (mixing.mix(moved, v) != mixing.mix(x, v)).all()
    moved_values = v.clone()
    moved_values[..., 0, 0] += 1
    assert not (mixing.mix(x, moved_values) != mixing.mix(x, v))[..., 5:, 5:].any()


def test_strided_maps():
    mixing = block()
    x = torch.randn(2, 11, 8, 6, dtype=torch.float64)
    torch.testing.assert_close(mixing(x.permute(0, 2, 3, 1)), mixing(x.permute(0, 2, 3, 1).contiguous()))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (dict(dim=10, num_heads=2), "10 channels cannot be split into two halves of 2 heads"),
        (dict(small_kernel_size=4), "must be odd and at most that of the large one, 5, but is 4"),
        (dict(small_kernel_size=7), "but is 7"),
        (dict(kernel_size=8), "no branches for a kernel of 8 tokens; its sizes are 5, 7, 9"),
    ],
)
def test_wrong_arguments_are_named(wrong, said):
    arguments = dict(dim=8, context_dim=3, num_heads=2, kernel_size=5) | wrong
    with pytest.raises(ValueError, match=said):
        ContextMixing(**arguments)
