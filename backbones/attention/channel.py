"""Multi-head attention between the channels of a map."""

import torch
from torch import Tensor, fx, nn

from ..layers import MapLinear, no_autocast
from .heads import check_heads


class ChannelAttention(nn.Module):
    """Channel group attention (DaViT, arXiv:2204.03645, section 3.3): (B, H, W, C) to the same shape, any H and W.

    The tokens are the d channels of a head and every pixel is one of their features, so each output sees the whole map
    at a cost linear in its pixels. As in the release, the first third of the projection is what is averaged, and the
    second and last decide by how much; the paper calls them value, query and key.

    Args:
        dim: C; `num_heads` must divide it.
    """

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        check_heads(dim, num_heads)
        self.num_heads = num_heads
        self.qkv = MapLinear(dim, 3 * dim)
        self.proj = MapLinear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        batch, height, width, dim = x.shape
        qkv = self.qkv(x).view(batch, height * width, 3, self.num_heads, dim // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        x = channel_attention(q, k, v).transpose(1, 2)
        return self.proj(x.reshape(batch, height, width, dim))


@fx.wrap
@torch.jit.ignore
def channel_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """q A^T with A = softmax(k^T v / sqrt(d)), for q, k, v of (B, num_heads, N, d): d channels attend to d channels.

    The logits are sums over all N positions, so they are kept in at least float32.
    """
    scale = q.shape[3] ** -0.5
    accurate = torch.promote_types(k.dtype, torch.float32)
    with no_autocast(k):
        scores = k.to(accurate).transpose(2, 3) @ v.to(accurate)
    return q @ (scores * scale).softmax(-1).to(q.dtype).transpose(2, 3)
