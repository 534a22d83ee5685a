"""Attention of a class token to a map."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .heads import check_heads


class ClassAttention(nn.Module):
    """Class attention (CaiT, arXiv:2103.17239, section 3): a token (B, C) reads a map (B, H, W, C); gives (B, C).

    The token's query asks the token itself and all tokens of the map; the map stays as it is.

    Args:
        dim: C; `num_heads` must divide it.
        qkv_bias: whether the projections to query, keys and values have a bias; that to the output always has.
    """

    def __init__(self, dim: int, num_heads: int, qkv_bias: bool = False):
        super().__init__()
        check_heads(dim, num_heads)
        self.num_heads = num_heads
        self.q = nn.Linear(dim, dim, bias=qkv_bias)
        self.kv = nn.Linear(dim, 2 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, token: Tensor, x: Tensor) -> Tensor:
        batch, dim = token.shape
        tokens = torch.cat([token[:, None], x.flatten(1, 2)], 1)
        q = self.q(token).view(batch, self.num_heads, 1, dim // self.num_heads)
        kv = self.kv(tokens).unflatten(2, (2, self.num_heads, dim // self.num_heads))
        k, v = kv.unbind(2)
        return self.proj(F.scaled_dot_product_attention(q, k.transpose(1, 2), v.transpose(1, 2)).flatten(1))
