"""Multi-head linear attention, and the convolutions that concentrate it."""

import torch
from torch import Tensor, fx, nn

from ..layers import DepthwiseConv, MapLinear, no_autocast
from .heads import check_heads

MIN_NORMALIZER = 100.0  # of the release; without it, positions that match few keys would be divided by almost nothing


class LinearAttention(nn.Module):
    """Attention at linear cost (L2ViT, arXiv:2501.16182, section 3.2): (B, H, W, C) to the same shape, any H and W.

    Queries and keys pass a ReLU in place of the softmax. The temperature, one learned number a head, multiplies the
    numerator alone; there is no other scale.

    Args:
        dim: C; `num_heads` must divide it.
    """

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        check_heads(dim, num_heads)
        self.num_heads = num_heads
        self.qkv = MapLinear(dim, 3 * dim)
        self.temperature = nn.Parameter(torch.full((num_heads, 1, 1), (dim // num_heads) ** -0.5))
        self.proj = MapLinear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        batch, height, width, dim = x.shape
        qkv = self.qkv(x).view(batch, height * width, 3, self.num_heads, dim // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        x = linear_attention(q, k, v, self.temperature).transpose(1, 2)
        return self.proj(x.reshape(batch, height, width, dim))


@fx.wrap
@torch.jit.ignore
def linear_attention(q: Tensor, k: Tensor, v: Tensor, temperature: Tensor) -> Tensor:
    """o_n = q_n (t A) / max(q_n . z, 100), A = sum_n k_n v_n^T, z = sum_n k_n, after a ReLU of q and k.

    The sums over all positions are kept in at least float32.

    Args:
        q, k, v: (B, num_heads, N, d).
        temperature: t, (num_heads, 1, 1).

    Returns:
        (B, num_heads, N, d).
    """
    accurate = torch.promote_types(k.dtype, torch.float32)
    with no_autocast(k):
        q, k = q.relu().to(accurate), k.relu().to(accurate)
        context = k.transpose(2, 3) @ v.to(accurate) * temperature
        normalizer = (q @ k.sum(2).unsqueeze(3)).clamp_min(MIN_NORMALIZER)
        return (q @ context / normalizer).to(v.dtype)


class LocalConcentration(nn.Module):
    """Two depth-wise convolutions that sharpen what linear attention has spread: (B, H, W, C) to the same shape.

    L2ViT, section 3.3. Between the two, GELU comes first and batch norm second.
    """

    def __init__(self, dim: int, kernel_size: int = 7):
        super().__init__()
        self.conv1 = DepthwiseConv(dim, kernel_size)
        self.act = nn.GELU()
        self.norm = nn.BatchNorm2d(dim)
        self.conv2 = DepthwiseConv(dim, kernel_size)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.conv1(x)).permute(0, 3, 1, 2)
        return self.conv2(self.norm(x).permute(0, 2, 3, 1))
