"""Full multi-head attention with a convolution for position."""

import torch.nn.functional as F
from torch import Tensor, nn

from ..layers import DepthwiseConv, MapLinear
from .heads import check_heads


class LePEAttention(nn.Module):
    """Attention between all tokens of a map, plus LePE: (B, H, W, C) to the same shape.

    LePE, locally-enhanced positional encoding (CSWin, arXiv:2107.00652, section 3.3), is a depth-wise 5 x 5 convolution
    of the values. BiFormer's last stage applies it to the block's input instead, before any projection.

    Args:
        dim: C; `num_heads` must divide it.
        lepe_of_input: whether the convolution sees the input; otherwise it sees the values.
    """

    def __init__(self, dim: int, num_heads: int, lepe_of_input: bool = False):
        super().__init__()
        check_heads(dim, num_heads)
        self.num_heads, self.lepe_of_input = num_heads, lepe_of_input
        self.qkv = MapLinear(dim, 3 * dim, bias=False)
        self.lepe = DepthwiseConv(dim, 5)
        self.proj = MapLinear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        height, width, dim = x.shape[1], x.shape[2], x.shape[3]
        qkv = self.qkv(x)
        q, k, v = qkv.unflatten(3, [3, self.num_heads, -1]).flatten(1, 2).permute(2, 0, 3, 1, 4).unbind(0)
        lepe = self.lepe(x if self.lepe_of_input else qkv[..., 2 * dim :])
        x = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2).unflatten(1, [height, width])
        return self.proj(x + lepe)
