"""The convolutional block of networks with large kernels (UniRepLKNet, arXiv:2311.15599)."""

from timm.layers import DropPath, LayerNorm2d, SqueezeExcite
from torch import Tensor, nn

from .channelwise import ChannelScale, ResponseNormMlp
from .dilated_depthwise import DilatedDepthwiseConv, ResidualDepthwiseConv


class LargeKernelBlock(nn.Module):
    """A large depthwise convolution with squeeze and excitation, then an MLP: (B, C, H, W) to the same shape.

    Args:
        kernel_size: side of the large kernel, in tokens.
        mlp_ratio: hidden width of the MLP by `dim`.
        scaled: multiply the shortcut by a learned scale per channel.
        reparameterized: build the merged form of the large convolution.
        drop_path: probability of leaving the block out for an image.
    """

    def __init__(
        self,
        dim: int,
        kernel_size: int,
        mlp_ratio: float,
        scaled: bool,
        reparameterized: bool = False,
        drop_path: float = 0.0,
    ):
        super().__init__()
        large = DilatedDepthwiseConv(dim, kernel_size, reparameterized)
        self.dwconv = ResidualDepthwiseConv(dim)
        self.norm = LayerNorm2d(dim, eps=1e-6)
        self.large = nn.Sequential(large, nn.BatchNorm2d(dim))
        self.se = SqueezeExcite(dim, rd_channels=max(16, dim // 8), act_layer=nn.GELU)
        self.mlp = ResponseNormMlp(dim, int(mlp_ratio * dim))
        self.ls = ChannelScale(dim) if scaled else nn.Identity()
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = self.dwconv(x)
        y = self.se(self.large(self.norm(x)))
        return self.ls(x) + self.drop_path(self.mlp(y))
