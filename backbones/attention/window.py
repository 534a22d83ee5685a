"""Multi-head attention inside (shifted) windows."""

import torch
from torch import Tensor, fx, nn

from ..kernels.window import window_attention
from ..layers import MapLinear, RelativePositionBias
from .heads import check_heads

fx.wrap("window_attention")  # its arithmetic on sizes is not for symbolic tracing
torch.jit.ignore(window_attention)


class WindowAttention(nn.Module):
    """Window attention (Swin, arXiv:2103.14030): (B, H, W, C) to the same shape.

    Any H and W: the map is filled up to whole windows with zeros before the projection, and these tokens take part as
    keys. With `shrink`, a map whose smaller side fits into the window is one row or column of windows of that side,
    unshifted; this is the rule of the classification networks.

    Args:
        dim: C; `num_heads` must divide it.
        window_size: side of a window, in tokens.
        shifted: whether the windows are shifted by half their side, to see across the borders of unshifted ones.
        position_bias: whether each pair of positions in a window has a learned bias.
    """

    def __init__(self, dim: int, num_heads: int, window_size: int, shifted: bool = False, position_bias: bool = True):
        super().__init__()
        check_heads(dim, num_heads)
        self.num_heads, self.window_size, self.shifted = num_heads, window_size, shifted
        self.qkv = MapLinear(dim, 3 * dim)
        self.position_bias = RelativePositionBias(window_size, num_heads) if position_bias else None
        self.proj = MapLinear(dim, dim)

    def forward(self, x: Tensor, shrink: bool = False) -> Tensor:
        batch, height, width, dim = x.shape
        window, shift = effective_window(height, width, self.window_size, self.shifted, shrink)
        q, k, v = self.qkv(x).view(batch, height, width, 3, self.num_heads, dim // self.num_heads).unbind(3)
        # A zero token before the projection is the bias of the projection after it.
        _, pad_key, pad_value = self.qkv.bias.to(q.dtype).view(3, self.num_heads, -1).unbind(0)
        bias = self.position_bias(window) if self.position_bias is not None else None
        x = window_attention(q, k, v, (window, window), (shift, shift), bias, None, pad_key, pad_value, False)
        return self.proj(x.flatten(3))

    def set_window_size(self, window_size: int) -> None:
        """Change the window; the position table is resized."""
        self.window_size = window_size
        if self.position_bias is not None:
            self.position_bias.set_window_size(window_size)


@fx.wrap
@torch.jit.ignore
def effective_window(height: int, width: int, window_size: int, shifted: bool, shrink: bool) -> tuple[int, int]:
    """Side and shift of the windows of a map, in tokens."""
    if shrink and min(height, width) <= window_size:
        return min(height, width), 0
    return window_size, window_size // 2 if shifted else 0
