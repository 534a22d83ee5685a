"""A stem and down-sampling of overlapping 3 x 3 convolutions, each followed by a batch norm."""

from collections import OrderedDict

import torch
from torch import Tensor, nn


class ConvNorm(nn.Sequential):
    """3 x 3 convolution and batch norm, (B, C, H, W) to (B, out_channels, ceil(H / stride), ceil(W / stride))."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 2):
        proj = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        super().__init__(OrderedDict(proj=proj, norm=nn.BatchNorm2d(out_channels)))


class SplitConvNorm(nn.Module):
    """A `ConvNorm` for the map's channels and one for those of the context after them, both to half the resolution.

    (B, dim + context_dim, H, W) to (B, out_dim + context_dim, ceil(H / 2), ceil(W / 2)).
    """

    def __init__(self, dim: int, out_dim: int, context_dim: int):
        super().__init__()
        self.dims = (dim, context_dim)
        self.x_proj, self.h_proj = ConvNorm(dim, out_dim), ConvNorm(context_dim, context_dim)

    def forward(self, x: Tensor) -> Tensor:
        x, context = x.split(self.dims, 1)
        return torch.cat([self.x_proj(x), self.h_proj(context)], 1)


class ConvStem(nn.Module):
    """Four convolutions, GELU between them: (B, in_chans, H, W) to (B, dim, ceil(H / stride), ceil(W / stride)).

    The map's memory is in channels-last order, as the norms and projections over channels after it want it.

    Args:
        stride: 4 if the first and the third convolution halve the map, 2 if only the first does.
    """

    def __init__(self, in_chans: int, dim: int, stride: int = 4):
        super().__init__()
        half = dim // 2
        self.proj = nn.Conv2d(in_chans, half, 3, 2, 1, bias=False)
        self.norm = nn.BatchNorm2d(half)
        self.convs = nn.ModuleList([ConvNorm(half, half, 1), ConvNorm(half, dim, stride // 2), ConvNorm(dim, dim, 1)])
        self.act = nn.GELU()

    def forward(self, images: Tensor) -> Tensor:
        x = self.norm(self.proj(images.contiguous(memory_format=torch.channels_last)))
        x = x.contiguous(memory_format=torch.channels_last)  # images of one channel have no such order to keep
        for conv in self.convs:
            x = conv(self.act(x))
        return x
