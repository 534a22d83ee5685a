"""Down-sampling that chooses where to look."""

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn


class DeformableMerging(nn.Module):
    """Deformable token merging (LIT, arXiv:2105.14217): (B, H, W, C) to (B, floor(H / 2), floor(W / 2), out_dim).

    A 2 x 2 convolution of stride 2 whose pixels are each moved by a learned offset, in tokens and shared by all
    channels, then batch norm and GELU. The offsets start at zero. An odd last row or column takes no part unless an
    offset reaches it. Positions and bilinear sampling are computed in at least float32.
    """

    def __init__(self, dim: int, out_dim: int):
        super().__init__()
        self.offset = nn.Conv2d(dim, 8, kernel_size=2, stride=2)
        nn.init.zeros_(self.offset.weight)
        nn.init.zeros_(self.offset.bias)
        self.proj = nn.Conv2d(dim, out_dim, kernel_size=2, stride=2)
        self.norm = nn.BatchNorm2d(out_dim)
        self.act = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = cell_positions(self.offset(x.permute(0, 3, 1, 2)))
        # What the shifted pixels see, put together, is a map that an ordinary convolution merges.
        x = bilinear_sample(x, rows, columns).to(x.dtype)
        return self.act(self.norm(self.proj(x.permute(0, 3, 1, 2)))).permute(0, 2, 3, 1)


@fx.wrap
@torch.jit.ignore
def cell_positions(offset: Tensor) -> tuple[Tensor, Tensor]:
    """Offsets of the pixels of each 2 x 2 cell to rows and columns in the map, (B, 2h, 2w) each.

    Channels of `offset` (B, 8, h, w): the pixels (0, 0), (0, 1), (1, 0), (1, 1) of a cell, each a row and a column.
    """
    batch, _, height, width = offset.shape
    offset = offset.to(torch.promote_types(offset.dtype, torch.float32))
    offset = offset.reshape(batch, 2, 2, 2, height, width).permute(3, 0, 4, 1, 5, 2)
    shift_rows, shift_columns = offset.reshape(2, batch, 2 * height, 2 * width).unbind(0)
    rows = torch.arange(2 * height, dtype=offset.dtype, device=offset.device)
    columns = torch.arange(2 * width, dtype=offset.dtype, device=offset.device)
    return rows[:, None] + shift_rows, columns + shift_columns


@fx.wrap
@torch.jit.ignore
def bilinear_sample(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """The values of a map (B, H, W, C) at positions (B, h, w), in pixels: (B, h, w, C), of the positions' dtype.

    Pixels outside the map are zeros. At whole positions the derivative is that of the side of larger positions.
    """
    batch, height, width, channels = x.shape
    row, row_share = _neighbours(rows, height)
    column, column_share = _neighbours(columns, width)
    image = torch.arange(batch, device=x.device).view(-1, 1, 1, 1)
    index = ((image * height + row) * width)[..., :, None] + column[..., None, :]  # (B, h, w, 2, 2)
    share = row_share[..., :, None] * column_share[..., None, :]
    pixels = x.reshape(-1, channels).to(share.dtype)
    if torch.compiler.is_exporting():  # ONNX has no bags, and would get a loop over all positions
        return (pixels[index.flatten(3)] * share.flatten(3)[..., None]).sum(3)
    # A weighted bag of four pixels: nothing of the size of four maps is stored.
    y = F.embedding_bag(index.view(-1, 4), pixels, mode="sum", per_sample_weights=share.view(-1, 4))
    return y.view(*rows.shape, channels)


def _neighbours(position: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """The two pixels around each position along an axis, and the share that each has in it: (..., 2) both."""
    position = position.clamp(-1, length)  # nothing but zeros further out
    before = position.detach().floor()
    index = torch.stack([before, before + 1], dim=-1)
    share = torch.stack([1 - (position - before), position - before], dim=-1)
    share = share.masked_fill((index < 0) | (index >= length), 0)
    return index.long().clamp(0, length - 1), share
