"""Heads for high frequencies in small windows, heads for low frequencies over the whole map."""

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from ..errors import InputError
from ..kernels.window import window_attention
from ..layers import MapLinear, pad_to_multiple
from .heads import check_heads

# Their arithmetic on sizes is not for symbolic tracing.
fx.wrap("window_attention")
fx.wrap("pad_to_multiple")
torch.jit.ignore(window_attention)


class HiLoAttention(nn.Module):
    """HiLo attention (LITv2, arXiv:2205.13213, section 4.1): (B, H, W, C) to the same shape.

    Hi-Fi heads attend inside windows; Lo-Fi heads, from every position, to the means of all windows. Each group has a
    width and projections of its own, and the output is Hi-Fi's channels, then Lo-Fi's. Without positions. Any H and W:
    zeros fill the map up to whole windows and take part, also in the means.

    Args:
        dim: C; `num_heads` must divide it.
        window_size: side of a window, in tokens; 1 makes all heads Lo-Fi, which is global attention.
        alpha: share of the heads that are Lo-Fi, rounded down to whole heads.
    """

    def __init__(self, dim: int, num_heads: int, window_size: int = 2, alpha: float = 0.9):
        super().__init__()
        check_heads(dim, num_heads)
        if window_size < 1 or not 0 <= alpha <= 1:
            raise InputError(
                f"HiLo attention needs a window_size of at least 1 and a share alpha of Lo-Fi heads from 0 to 1, "
                f"but got window_size={window_size} and alpha={alpha}."
            )
        self.window_size = window_size
        self.low_heads = num_heads if window_size == 1 else int(num_heads * alpha)
        self.high_heads = num_heads - self.low_heads
        low_dim = dim // num_heads * self.low_heads
        high_dim = dim - low_dim
        if self.high_heads:
            self.high_qkv = MapLinear(dim, 3 * high_dim)
            self.high_proj = MapLinear(high_dim, high_dim)
        if self.low_heads:
            self.low_q = MapLinear(dim, low_dim)
            self.low_kv = MapLinear(dim, 2 * low_dim)
            self.low_proj = MapLinear(low_dim, low_dim)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[1], x.shape[2]
        x = pad_to_multiple(x, self.window_size)
        groups = [self.attend_high(x)] if self.high_heads else []
        groups += [self.attend_low(x)] if self.low_heads else []
        x = torch.cat(groups, dim=-1) if len(groups) > 1 else groups[0]
        return x[:, :height, :width]

    def attend_high(self, x: Tensor) -> Tensor:
        """Hi-Fi: attention among the tokens of each window, (B, H, W, C) to (B, H, W, high_dim)."""
        window = (self.window_size, self.window_size)
        q, k, v = self.high_qkv(x).unflatten(-1, (3, self.high_heads, -1)).unbind(3)
        x = window_attention(q, k, v, window, (0, 0), None, None, None, None, False)
        return self.high_proj(x.flatten(3))

    def attend_low(self, x: Tensor) -> Tensor:
        """Lo-Fi: attention from each token to the means of all windows, (B, H, W, C) to (B, H, W, low_dim)."""
        q = self.low_q(x)
        means = F.avg_pool2d(x.permute(0, 3, 1, 2), self.window_size).permute(0, 2, 3, 1) if self.window_size > 1 else x
        k, v = self.low_kv(means).unflatten(-1, (2, self.low_heads, -1)).unbind(3)
        heads = q.unflatten(-1, (self.low_heads, -1)).flatten(1, 2).transpose(1, 2)  # (B, heads, tokens, head_dim)
        k, v = (t.flatten(1, 2).transpose(1, 2) for t in (k, v))
        x = F.scaled_dot_product_attention(heads, k, v)
        return self.low_proj(x.transpose(1, 2).reshape(q.shape))
