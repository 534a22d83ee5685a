"""Multi-head attention from each region of a map to the regions that suit it best."""

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from ..errors import InputError
from ..kernels.routed import routed_attention
from ..kernels.sizes import ceil_div, crop, is_zero
from ..layers import DepthwiseConv, MapLinear, no_autocast
from .heads import check_heads

fx.wrap("routed_attention")  # its arithmetic on sizes is not for symbolic tracing
torch.jit.ignore(routed_attention)


class BiLevelRoutingAttention(nn.Module):
    """Bi-level routing attention (BiFormer, arXiv:2303.08810, section 3.2): (B, H, W, C) to the same shape.

    The map is divided into `num_regions` rows and columns of regions, whatever its size. Each region has a mean query
    and a mean key; their products choose the `top_k` regions that all its pixels, in all heads, attend to. The choice
    has no gradient. A depth-wise 5 x 5 convolution of the values (LePE) is added to what the attention gives. As in the
    release, the logits are scaled by dim ** -0.5, not by the width of a head.

    Any H and W. Zeros on the right and bottom fill the map up to whole regions, before the projection: they have keys
    and values, count in the means, and LePE sees them. The release's later operator fixes the size of a region instead,
    floor(H / num_regions) by floor(W / num_regions), which gives more regions where that does not divide; with `ragged`
    the block follows it. There keys and values are filled up with zeros after the projection, and means leave these
    out. It is defined for maps of at least `num_regions` tokens a side; smaller ones follow the first rule.

    Args:
        dim: C; `num_heads` must divide it.
        num_regions: regions per side.
        top_k: regions that a region attends to.
        ragged: whether regions that do not fill the map become more in number, instead of larger.
    """

    def __init__(self, dim: int, num_heads: int, num_regions: int = 7, top_k: int = 4, ragged: bool = False):
        super().__init__()
        check_heads(dim, num_heads)
        if not 1 <= top_k <= num_regions**2:
            raise InputError(
                f"A region cannot attend to {top_k} of the {num_regions} x {num_regions} regions of a map; "
                f"choose top_k between 1 and {num_regions**2}, or another num_regions."
            )
        self.num_heads, self.num_regions, self.top_k, self.ragged = num_heads, num_regions, top_k, ragged
        self.scale = dim**-0.5
        self.qkv = MapLinear(dim, 3 * dim)
        self.lepe = DepthwiseConv(dim, 5)
        self.proj = MapLinear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[1], x.shape[2]
        regions, size, before = divide(height, width, self.num_regions, self.ragged)
        qkv = self.qkv(fill(x, before))
        routes = choose_regions(qkv, size, self.top_k)
        qkv = fill(qkv, [regions[0] * size[0], regions[1] * size[1]])
        q, k, v = qkv.unflatten(3, [3, self.num_heads, -1]).unbind(3)
        x = routed_attention(q, k, v, routes, regions, self.scale).flatten(3) + self.lepe(v.flatten(3))
        return self.proj(crop(x, height, width))


@fx.wrap
@torch.jit.ignore
def divide(
    height: int, width: int, num_regions: int, ragged: bool
) -> tuple[tuple[int, int], tuple[int, int], list[int]]:
    """How many regions a map has, how large they are, and to what size it is filled up before the projection.

    Each is rows before columns.
    """
    if ragged and min(height, width) >= num_regions:
        size = (height // num_regions, width // num_regions)
        return (ceil_div(height, size[0]), ceil_div(width, size[1])), size, [height, width]
    size = (ceil_div(height, num_regions), ceil_div(width, num_regions))
    return (num_regions, num_regions), size, [num_regions * size[0], num_regions * size[1]]


@fx.wrap
@torch.jit.ignore
def fill(x: Tensor, size: list[int]) -> Tensor:
    """(B, H, W, C) with zero rows and columns at the bottom and right, up to a size."""
    bottom, right = size[0] - x.shape[1], size[1] - x.shape[2]
    return x if is_zero(bottom) and is_zero(right) else F.pad(x, (0, 0, 0, right, 0, bottom))


@fx.wrap
@torch.jit.ignore
def choose_regions(qkv: Tensor, size: tuple[int, int], top_k: int) -> Tensor:
    """The regions, (B, regions, top_k), whose mean keys have the largest products with each region's mean query.

    Two products may be so close that half precision chooses another region, so this is computed in at least float32.

    Args:
        qkv: queries, keys and values of a map, (B, H, W, 3C).
        size: rows and columns of a region, in tokens.
    """
    qk = qkv.detach()[..., : qkv.shape[3] // 3 * 2].permute(0, 3, 1, 2)
    with no_autocast(qk):
        qk = qk.to(torch.promote_types(qk.dtype, torch.float32))
        if any(isinstance(side, torch.SymInt) for side in size):  # pooling is by numbers
            means = qk.unflatten(2, (-1, size[0])).unflatten(4, (-1, size[1])).mean((3, 5))
        else:
            means = F.avg_pool2d(qk, size, ceil_mode=True)
        query, key = means.flatten(2).chunk(2, dim=1)
        return (query.transpose(1, 2) @ key).topk(top_k).indices
