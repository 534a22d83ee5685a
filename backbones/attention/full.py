"""Multi-head attention among all tokens of a map."""

import torch.nn.functional as F
from torch import Tensor, nn

from ..layers import MapLinear
from .heads import check_heads


class SelfAttention(nn.Module):
    """Global multi-head self-attention: (B, H, W, C) to the same shape, any H and W; no position information.

    Args:
        dim: C; `num_heads` must divide it.
        qkv_bias: whether the projection to queries, keys and values has a bias; that to the output always has.
    """

    def __init__(self, dim: int, num_heads: int, qkv_bias: bool = True):
        super().__init__()
        check_heads(dim, num_heads)
        self.num_heads = num_heads
        self.qkv = MapLinear(dim, 3 * dim, bias=qkv_bias)
        self.proj = MapLinear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        batch, height, width, dim = x.shape
        qkv = self.qkv(x).view(batch, height * width, 3, self.num_heads, dim // self.num_heads)
        q, k, v = qkv.unbind(2)
        x = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        return self.proj(x.transpose(1, 2).reshape(batch, height, width, dim))
