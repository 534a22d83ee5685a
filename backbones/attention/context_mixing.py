"""Context mixing: dynamic depthwise kernels from the affinity of each position to a pooled context."""

import torch
import torch.nn.functional as F
from timm.layers import SqueezeExcite
from torch import Tensor, fx, nn

from ..errors import InputError
from ..kernels.neighborhood import neighborhood_aggregate
from ..layers import DilatedDepthwiseConv, GlobalResponseNorm, depthwise_conv

REGIONS = 7  # a side, of the context that kernels are made from

fx.wrap("neighborhood_aggregate")  # its arithmetic on sizes is not for symbolic tracing
torch.jit.ignore(neighborhood_aggregate)


class ContextMixing(nn.Module):
    """ContMix (OverLoCK, arXiv:2502.20087): (B, H, W, dim + context_dim) to the same shape, any H and W.

    Each position mixes its neighbours with a small and a large kernel of its own. Their weights are projections of the
    affinities between the position's query and 7 x 7 regions of the context channels, plus a bias per relative
    position, through a softmax. Beside them run a large static convolution and a gate. Windows at the border are moved
    inside, so a map smaller than the large kernel is enlarged to it first.

    Maps have channels last, as in every mechanism here; the convolutions inside see them as views in (B, C, H, W).

    Args:
        dim, context_dim: channels of the map and of the context after them.
        num_heads: kernels per position and size; half of the channels are mixed by each size.
        kernel_size: side of the large kernel, in tokens; one of `DilatedDepthwiseConv`'s.
        small_kernel_size: side of the small kernel, odd and no larger.
        reparameterized: build the static convolution in its merged form.
    """

    def __init__(
        self,
        dim: int,
        context_dim: int,
        num_heads: int,
        kernel_size: int,
        small_kernel_size: int = 5,
        reparameterized: bool = False,
    ):
        super().__init__()
        if dim % (2 * num_heads):
            raise InputError(
                f"A width of {dim} channels cannot be split into two halves of {num_heads} heads of equal size; "
                "choose a dim that 2 * num_heads divides."
            )
        if small_kernel_size % 2 == 0 or not 1 <= small_kernel_size <= kernel_size:
            raise InputError(
                f"The small kernel's side must be odd and at most that of the large one, {kernel_size}, "
                f"but is {small_kernel_size}."
            )
        total = dim + context_dim
        self.dim, self.context_dim, self.num_heads = dim, context_dim, num_heads
        self.small_kernel_size, self.kernel_size = small_kernel_size, kernel_size
        self.scale = (dim / num_heads) ** -0.5  # as released, although a head has half as many query channels
        self.fusion = nn.Sequential(
            depthwise_conv(total, 3),
            nn.BatchNorm2d(total),
            nn.GELU(),
            nn.Conv2d(total, dim, 1),
            GlobalResponseNorm(dim),
        )
        self.gate = nn.Sequential(nn.Conv2d(dim, dim, 1, bias=False), nn.BatchNorm2d(dim), nn.SiLU())
        self.lepe = nn.Sequential(DilatedDepthwiseConv(dim, kernel_size, reparameterized), nn.BatchNorm2d(dim))
        self.query = nn.Sequential(nn.Conv2d(dim, dim // 2, 1, bias=False), nn.BatchNorm2d(dim // 2))
        self.key = nn.Sequential(nn.Conv2d(context_dim, dim // 2, 1, bias=False), nn.BatchNorm2d(dim // 2))
        self.kernels = nn.Linear(REGIONS * REGIONS, small_kernel_size**2 + kernel_size**2)
        self.small_bias = nn.Parameter(torch.zeros(num_heads, 2 * small_kernel_size - 1, 2 * small_kernel_size - 1))
        self.large_bias = nn.Parameter(torch.zeros(num_heads, 2 * kernel_size - 1, 2 * kernel_size - 1))
        self.out = nn.Sequential(nn.Conv2d(dim, dim, 1, bias=False), nn.BatchNorm2d(dim))
        self.se = SqueezeExcite(dim, rd_channels=max(16, dim // 8), act_layer=nn.GELU)
        self.proj = nn.Sequential(nn.BatchNorm2d(dim), nn.Conv2d(dim, total, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 3, 1, 2)
        v = self.fusion(x)
        gate, lepe = self.gate(v), self.lepe(v)
        mixed = self.mix(enlarge(x, self.kernel_size), enlarge(v, self.kernel_size))
        y = self.se(self.out(reduce_like(mixed, v)) + lepe)
        return self.proj(gate * y).permute(0, 2, 3, 1)

    def mix(self, x: Tensor, v: Tensor) -> Tensor:
        """The values v (B, dim, H, W) under the kernels that x (B, dim + context_dim, H, W) makes."""
        height, width = v.shape[2], v.shape[3]
        x, context = x.split((self.dim, self.context_dim), 1)
        query = self.query(x).permute(0, 2, 3, 1).unflatten(3, (self.num_heads, -1))
        query = query.permute(0, 3, 1, 2, 4).flatten(0, 1).flatten(1, 2)  # (B * heads, H * W, channels)
        key = self.key(region_means(context)).flatten(2)
        key = self.scale * key.unflatten(1, (self.num_heads, -1)).flatten(0, 1)  # (B * heads, channels, regions)
        # The affinities query x key are projected to weights. Projecting the keys first needs a third of the products.
        sizes = (self.small_kernel_size**2, self.kernel_size**2)
        small_key, large_key = F.linear(key, self.kernels.weight).split(sizes, 2)
        small_shift, large_shift = self.kernels.bias.split(sizes)
        small_shift = small_shift + neighborhood_bias(self.small_bias, height, width)
        large_shift = large_shift + neighborhood_bias(self.large_bias, height, width)
        small, large = v.permute(0, 2, 3, 1).unflatten(3, (2 * self.num_heads, -1)).chunk(2, 3)
        small = self.convolve(small, query, small_key, small_shift, self.small_kernel_size)
        large = self.convolve(large, query, large_key, large_shift, self.kernel_size)
        return torch.cat([small, large], 3).flatten(3).permute(0, 3, 1, 2)

    def convolve(self, v: Tensor, query: Tensor, key: Tensor, bias: Tensor, kernel_size: int) -> Tensor:
        """Values (B, H, W, heads, channels) under kernels with a key (B * heads, channels, k * k) per element."""
        logits = torch.bmm(query, key).unflatten(0, (-1, self.num_heads)).add_(bias)
        logits = logits.unflatten(2, (v.shape[1], v.shape[2])).permute(0, 2, 3, 1, 4)
        return neighborhood_aggregate(logits, v, kernel_size, 1, True)


@fx.wrap
@torch.jit.ignore
def region_means(x: Tensor) -> Tensor:
    """Means over 7 x 7 regions of a map (B, C, H, W), which overlap where 7 does not divide its sides."""
    if not any(isinstance(side, torch.SymInt) for side in x.shape[2:]):
        return F.adaptive_avg_pool2d(x, REGIONS)
    # ONNX has no such pooling of maps of many sizes, but products with a matrix for each axis.
    return pooling_matrix(x.shape[2], x) @ x @ pooling_matrix(x.shape[3], x).T


def pooling_matrix(length: int, like: Tensor) -> Tensor:
    """Adaptive average pooling of an axis to `REGIONS` entries as a matrix, (REGIONS, length)."""
    region = torch.arange(REGIONS, device=like.device)[:, None]
    begin, end = region * length // REGIONS, ((region + 1) * length + REGIONS - 1) // REGIONS
    position = torch.arange(length, device=like.device)
    inside = (position >= begin) & (position < end)
    return (inside / (end - begin)).to(like.dtype)


@fx.wrap
@torch.jit.ignore
def neighborhood_bias(table: Tensor, height: int, width: int) -> Tensor:
    """Bias of each position's window, (heads, H * W, k * k), from a table (heads, 2k - 1, 2k - 1) of offsets.

    The offset is that of the key from the position; windows at the border are moved inside, as their offsets are.
    """
    heads, kernel_size = len(table), (table.shape[1] + 1) // 2
    for axis, length in ((1, height), (2, width)):
        position = torch.arange(length, device=table.device)
        start = (position - kernel_size // 2).clamp(0, length - kernel_size)
        element = torch.arange(kernel_size, device=table.device)
        offset = (start - position)[:, None] + element + kernel_size - 1
        table = table.index_select(axis, offset.flatten())
    bias = table.view(heads, height, kernel_size, width, kernel_size).transpose(2, 3)
    return bias.reshape(heads, height * width, kernel_size * kernel_size)


@fx.wrap
@torch.jit.ignore
def enlarge(x: Tensor, side: int) -> Tensor:
    """(B, C, H, W) resized so that its shorter side is `side`, if it is less."""
    height, width = x.shape[2:]
    if height >= side and width >= side:
        return x
    # The products in this order, as floating-point numbers, are the release's: 7 / 5 * 45 is rounded down to 62.
    size = (side, int(side / height * width)) if height < width else (int(side / width * height), side)
    return F.interpolate(x, size, mode="bilinear", align_corners=False)


@fx.wrap
@torch.jit.ignore
def reduce_like(x: Tensor, like: Tensor) -> Tensor:
    """x averaged to the height and width of `like`, if it was enlarged."""
    return x if x.shape[2:] == like.shape[2:] else F.adaptive_avg_pool2d(x, like.shape[2:])
