"""How images become tokens and maps become smaller."""

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from .linear import MapLinear


@fx.wrap
@torch.jit.ignore
def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """(B, H, W, C) with zero rows and columns at the bottom and right, so that `multiple` divides both sides."""
    bottom, right = -x.shape[1] % multiple, -x.shape[2] % multiple
    if bottom == 0 and right == 0:
        return x
    return F.pad(x, (0, 0, 0, right, 0, bottom))


class PatchStem(nn.Module):
    """Patches to tokens: (B, in_chans, H, W) to (B, ceil(H / p), ceil(W / p), dim), then LayerNorm.

    Images whose sides the patch size p does not divide are padded with zeros on the right and bottom. With `overlap`,
    a token sees 2p - 1 pixels a side around the patch's first ones, and zeros around the image.
    """

    def __init__(self, in_chans: int, dim: int, patch_size: int, overlap: bool = False):
        super().__init__()
        self.patch_size = patch_size
        margin = patch_size - 1 if overlap else 0
        self.proj = nn.Conv2d(in_chans, dim, patch_size + margin, patch_size, margin)
        self.norm = nn.LayerNorm(dim)

    def forward(self, images: Tensor) -> Tensor:
        images = pad_to_multiple(images.permute(0, 2, 3, 1), self.patch_size).permute(0, 3, 1, 2)
        return self.norm(self.proj(images).permute(0, 2, 3, 1))


class PatchMerging(nn.Module):
    """Half the resolution, another width: (B, H, W, C) to (B, ceil(H / 2), ceil(W / 2), out_dim).

    Each 2 x 2 cell becomes one token of 4C channels, in the order (row, column) = (0, 0), (1, 0), (0, 1), (1, 1), then
    LayerNorm and a projection without bias (Swin, arXiv:2103.14030, section 3.1). Odd maps are padded with zeros first,
    so the pad goes through the norm with the rest of its cell.
    """

    def __init__(self, dim: int, out_dim: int):
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = MapLinear(4 * dim, out_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = pad_to_multiple(x, 2)
        batch, height, width, dim = x.shape
        cells = x.reshape(batch, height // 2, 2, width // 2, 2, dim).permute(0, 1, 3, 4, 2, 5)
        return self.reduction(self.norm(cells.flatten(3)))


class ConvReduction(nn.Module):
    """Half the resolution, another width: (B, H, W, C) to (B, ceil(H / 2), ceil(W / 2), out_dim).

    LayerNorm, then a convolution that makes one token of each 2 x 2 cell. Odd maps are padded with zeros on the right
    and bottom after the norm, so the pad stays zero.
    """

    def __init__(self, dim: int, out_dim: int):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.proj = nn.Conv2d(dim, out_dim, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = pad_to_multiple(self.norm(x), 2)
        return self.proj(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
