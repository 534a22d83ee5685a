"""Outlook attention: each token says how its neighbourhood is to be mixed."""

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from ..errors import InputError
from ..kernels.outlook import outlook_attention
from ..layers import MapLinear
from .heads import check_heads

fx.wrap("outlook_attention")  # its arithmetic on sizes is not for symbolic tracing
torch.jit.ignore(outlook_attention)


class OutlookAttention(nn.Module):
    """Outlook attention (VOLO, arXiv:2106.13112, section 3.1): (B, H, W, C) to the same shape, any H and W.

    A window of k x k tokens stands around every `stride`-th token. Its k^2 x k^2 weights per head are a linear function
    of the mean of the stride x stride tokens from its centre on (of those that exist, at the border). Where windows
    overlap their outputs add up.

    Args:
        dim: C; `num_heads` must divide it.
        kernel_size: k, side of a window, in tokens; odd.
        stride: from one window to the next, in tokens; at most k.
        qkv_bias: whether the projection to values has a bias; those to weights and output always have.
    """

    def __init__(self, dim: int, num_heads: int, kernel_size: int = 3, stride: int = 2, qkv_bias: bool = False):
        super().__init__()
        check_heads(dim, num_heads)
        if kernel_size < 1 or kernel_size % 2 == 0 or not 1 <= stride <= kernel_size:
            raise InputError(
                "Outlook attention needs an odd kernel_size, so that a window has a centre, and a stride from 1 to "
                f"kernel_size, so that windows cover the map; but got kernel_size={kernel_size}, stride={stride}."
            )
        self.num_heads, self.kernel_size, self.stride = num_heads, kernel_size, stride
        self.v = MapLinear(dim, dim, bias=qkv_bias)
        self.logits = MapLinear(dim, num_heads * kernel_size**4)
        self.proj = MapLinear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        batch, height, width, dim = x.shape
        v = self.v(x).view(batch, height, width, self.num_heads, dim // self.num_heads)
        centres = F.avg_pool2d(x.permute(0, 3, 1, 2), self.stride, ceil_mode=True).permute(0, 2, 3, 1)
        logits = self.logits(centres).unflatten(3, (self.num_heads, self.kernel_size**2, self.kernel_size**2))
        x = outlook_attention(logits, v, self.kernel_size, self.kernel_size // 2, self.stride, None)
        return self.proj(x.flatten(3))
