"""A transformer block that learns where its tokens are from their neighbours."""

from timm.layers import DropPath
from torch import Tensor, nn

from .convolution import ConditionalPosition
from .linear import Mlp


class PositionedBlock(nn.Module):
    """Attention, then MLP, each after a convolution for position: (B, H, W, C) to the same shape.

    The convolutions act on the residual stream itself, outside drop path.

    Args:
        attention: a module from map to map.
    """

    def __init__(self, dim: int, attention: nn.Module, mlp_ratio: float, drop_path: float):
        super().__init__()
        self.position1 = ConditionalPosition(dim)
        self.norm1 = nn.LayerNorm(dim)
        self.attention = attention
        self.position2 = ConditionalPosition(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = self.position1(x)
        x = x + self.drop_path(self.attention(self.norm1(x)))
        x = self.position2(x)
        return x + self.drop_path(self.mlp(self.norm2(x)))
