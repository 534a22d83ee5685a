"""Scales, norms and layers that act channel by channel."""

import torch
from torch import Tensor, fx, nn

from .dilated_depthwise import ResidualDepthwiseConv
from .linear import MapLinear


class ChannelScale(nn.Module):
    """Layer scale with a bias, w_c x + b_c: (B, C, H, W) to the same shape.

    The weight has the four dimensions of a depthwise 1 x 1 convolution's, so optimizers decay it like one.
    """

    def __init__(self, channels: int, initial: float = 1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.full((channels, 1, 1, 1), initial))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.bias.view(-1, 1, 1), x, self.weight.view(-1, 1, 1))


class GlobalResponseNorm(nn.Module):
    """Channels compete by their norm over the whole map (ConvNeXt V2, arXiv:2301.00808): (B, C, H, W) to the same.

    y = (gamma_c G_c / mean(G) + 1) x + beta_c, where G_c is the L2 norm of channel c. timm's layer of this name is the
    same function with vectors for gamma and beta, which optimizers do not decay; here they have four dimensions.
    """

    def __init__(self, channels: int, eps: float = 1e-6):
        super().__init__()
        self.eps = eps
        self.gamma = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.beta = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        scale = self.gamma * relative_norms(x, self.eps) + 1
        return torch.addcmul(self.beta, x, scale)


@fx.wrap
@torch.jit.ignore
def relative_norms(x: Tensor, eps: float) -> Tensor:
    """L2 norm of each channel of (B, C, H, W) over the mean of all, (B, C, 1, 1), computed in at least float32."""
    precise = torch.promote_types(x.dtype, torch.float32)
    # On CPU a tenth of the time of vector_norm. The gradient of the root at zero is infinite, hence the least number.
    norms = x.to(precise).square().sum((2, 3), keepdim=True).clamp_min(torch.finfo(precise).tiny).sqrt()
    return (norms / (norms.mean(1, keepdim=True) + eps)).to(x.dtype)


class ResponseNormMlp(nn.Module):
    """Two projections with a residual depthwise convolution and a global response norm between them.

    (B, C, H, W) to the same shape; with channels last in memory, the projections see tokens without a copy.
    """

    def __init__(self, dim: int, hidden_dim: int):
        super().__init__()
        self.fc1 = MapLinear(dim, hidden_dim)
        self.act = nn.GELU()
        self.dwconv = ResidualDepthwiseConv(hidden_dim)
        self.norm = GlobalResponseNorm(hidden_dim)
        self.fc2 = MapLinear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.fc1(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
        return self.fc2(self.norm(self.dwconv(x)).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
