"""Depth-wise convolution on (B, H, W, C) maps."""

from torch import Tensor, nn

from ..errors import InputError
from .linear import MapLinear


class DepthwiseConv(nn.Conv2d):
    """A k x k filter of its own for each channel: (B, H, W, C) to the same shape, zeros around the map.

    The map is handed to the convolution as a channels-last view, which it takes and returns without a copy. On a CPU
    that is two to four times as fast as contiguous (B, C, H, W) copies, forward and backward, and 4 to 15 times as fast
    as a sum of shifted maps.

    Args:
        dim: C.
        kernel_size: k, odd.
    """

    def __init__(self, dim: int, kernel_size: int, bias: bool = True):
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise InputError(
                f"A depth-wise convolution of kernel size {kernel_size} has no middle and would shift or resize the "
                "map; choose an odd kernel_size."
            )
        super().__init__(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class ConditionalPosition(DepthwiseConv):
    """Position that follows from the neighbours (Chu et al., arXiv:2102.10882): x + depth-wise convolution of x.

    Zeros around the map tell the tokens near the border from the others, and from there it spreads.
    """

    def __init__(self, dim: int, kernel_size: int = 3, bias: bool = True):
        super().__init__(dim, kernel_size, bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


class DepthwiseMlp(nn.Module):
    """An MLP that mixes neighbours: a 3 x 3 depthwise convolution before its GELU. (B, H, W, C) to the same shape.

    Its zero padding tells tokens where the border is, in place of a position embedding.
    """

    def __init__(self, dim: int, hidden_dim: int):
        super().__init__()
        self.fc1 = MapLinear(dim, hidden_dim)
        self.conv = DepthwiseConv(hidden_dim, 3)
        nn.init.kaiming_normal_(self.conv.weight)  # std sqrt(2 / 9)
        nn.init.zeros_(self.conv.bias)
        self.act = nn.GELU()
        self.fc2 = MapLinear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.conv(self.fc1(x))))
