"""Multi-head attention to the neighbourhood of each position."""

import torch
from torch import Tensor, fx, nn

from ..errors import InputError
from ..kernels.neighborhood import neighborhood_attention
from ..layers import MapLinear, resize_bicubic
from .heads import check_heads

fx.wrap("neighborhood_attention")  # its arithmetic on sizes is not for symbolic tracing
torch.jit.ignore(neighborhood_attention)


class NeighborhoodAttention(nn.Module):
    """Attention to a window around each position: (B, H, W, C) to the same shape.

    The window is always full: at a border it is pushed inwards (NAT, arXiv:2204.07143; DiNAT, arXiv:2209.15001). Any H
    and W: a side shorter than a dilated window, kernel_size * dilation, is filled up to that with zeros before the
    projection, and these tokens take part as keys.

    Args:
        dim: C; `num_heads` must divide it.
        kernel_size: side of the window, odd, in tokens.
        dilation: step of the window, in tokens.
    """

    def __init__(self, dim: int, num_heads: int, kernel_size: int = 7, dilation: int = 1):
        super().__init__()
        check_heads(dim, num_heads)
        if kernel_size < 3 or kernel_size % 2 == 0 or dilation < 1:
            raise InputError(
                "A neighbourhood has an odd kernel_size of at least 3, so that its query is in the middle, and a "
                f"dilation of at least 1, but got kernel_size={kernel_size} and dilation={dilation}."
            )
        self.num_heads, self.kernel_size, self.dilation = num_heads, kernel_size, dilation
        self.qkv = MapLinear(dim, 3 * dim)
        # Bias of a key by its place relative to the query, key minus query, in steps of the dilation.
        self.table = nn.Parameter(torch.empty(num_heads, 2 * kernel_size - 1, 2 * kernel_size - 1))
        nn.init.trunc_normal_(self.table, std=0.02)
        self.proj = MapLinear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        _, height, width, dim = x.shape
        # A zero token before the projection is the bias of the projection after it.
        qkv = fill_up(self.qkv(x), self.qkv.bias, self.kernel_size * self.dilation)
        q, k, v = qkv.unflatten(3, (3, self.num_heads, dim // self.num_heads)).unbind(3)
        x = neighborhood_attention(q, k, v, self.kernel_size, self.dilation, self.table, None)
        return self.proj(x[:, :height, :width].flatten(3))

    def fit_table(self, table: Tensor) -> Tensor:
        """A table from a checkpoint with another kernel size, resized to this module's; loading calls this.

        Bicubic over the offsets, as the release made its 11 x 11 weights from those for 7 x 7.
        """
        if table.dim() != 3 or table.shape[1:] == self.table.shape[1:]:
            return table
        return resize_bicubic(table[None], self.table.shape[1:])[0]


@fx.wrap
@torch.jit.ignore
def fill_up(x: Tensor, token: Tensor, side: int) -> Tensor:
    """(B, H, W, C) with rows and columns of `token` (C,) at the bottom and right, to at least `side` of each."""
    bottom, right = max(0, side - x.shape[1]), max(0, side - x.shape[2])
    if bottom == 0 and right == 0:
        return x
    token = token.to(x.dtype)
    x = torch.cat([x, token.expand(x.shape[0], x.shape[1], right, -1)], dim=2)
    return torch.cat([x, token.expand(x.shape[0], bottom, x.shape[2], -1)], dim=1)
