"""Multi-head attention inside windows whose queries come from the whole image."""

import torch
from torch import Tensor, fx, nn

from ..kernels.window import window_attention
from ..layers import MapLinear, RelativePositionBias
from .heads import check_heads

fx.wrap("window_attention")  # its arithmetic on sizes is not for symbolic tracing
torch.jit.ignore(window_attention)


class GlobalQueryAttention(nn.Module):
    """Attention of one set of queries per image in every window (GC ViT, arXiv:2206.09959, section 3.2).

    Keys and values are the window's own; a query acts as if it sat at its own position of the window. The queries are
    used as they come, without projection. Any H and W: the map is filled up to whole windows with zeros before the
    projection, and these tokens take part as keys.

    Args:
        dim: C; `num_heads` must divide it.
        window_size: side of a window and of the grid of queries, in tokens.
    """

    def __init__(self, dim: int, num_heads: int, window_size: int):
        super().__init__()
        check_heads(dim, num_heads)
        self.num_heads, self.window_size = num_heads, window_size
        self.kv = MapLinear(dim, 2 * dim)
        self.position_bias = RelativePositionBias(window_size, num_heads)
        self.proj = MapLinear(dim, dim)

    def forward(self, x: Tensor, query: Tensor) -> Tensor:
        """Map (B, H, W, C) and queries (B, window_size, window_size, C) to (B, H, W, C)."""
        batch, height, width, dim = x.shape
        k, v = self.kv(x).view(batch, height, width, 2, self.num_heads, dim // self.num_heads).unbind(3)
        q = query.to(k.dtype).unflatten(3, (self.num_heads, dim // self.num_heads))
        # A zero token before the projection is the bias of the projection after it.
        pad_key, pad_value = self.kv.bias.to(k.dtype).view(2, self.num_heads, -1).unbind(0)
        window = (self.window_size, self.window_size)
        bias = self.position_bias(self.window_size)
        x = window_attention(q, k, v, window, (0, 0), bias, None, pad_key, pad_value, True)
        return self.proj(x.flatten(3))

    def set_window_size(self, window_size: int) -> None:
        """Change the window; the position table is resized."""
        self.window_size = window_size
        self.position_bias.set_window_size(window_size)
