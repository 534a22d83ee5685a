"""A learned vector per position of a grid."""

import torch
from torch import Tensor, fx, nn

from .position import resize_bicubic


class GridPosition(nn.Module):
    """Adds a learned vector per position to a map: (B, H, W, C) to the same shape, any H and W.

    The table is made for one grid. To maps of another size its bicubic interpolation is added, which is the rule by
    which checkpoints of another grid are loaded, too.

    Args:
        grid: rows and columns of the table, in tokens.
    """

    def __init__(self, grid: tuple[int, int], dim: int):
        super().__init__()
        self.table = nn.Parameter(torch.empty(1, *grid, dim))
        nn.init.trunc_normal_(self.table, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        return x + resize_grid(self.table, x.shape[1], x.shape[2])

    def set_grid(self, grid: tuple[int, int]) -> None:
        """Change the grid; the table is resized."""
        table = resize_grid(self.table.detach(), *grid)
        self.table = nn.Parameter(table, requires_grad=self.table.requires_grad)

    def fit_table(self, table: Tensor) -> Tensor:
        """A table from a checkpoint with another grid, resized to this module's; loading calls this.

        Square grids written as a sequence, (1, N, C), are understood.
        """
        side = round(table.shape[1] ** 0.5) if table.dim() == 3 else 0
        if table.dim() == 3 and side * side == table.shape[1]:
            table = table.unflatten(1, (side, side))
        if table.dim() != 4:  # no such table, and loading will say so
            return table
        return resize_grid(table, *self.table.shape[1:3])


@fx.wrap
@torch.jit.ignore
def resize_grid(table: Tensor, height: int, width: int) -> Tensor:
    """(1, h, w, C) interpolated to (1, height, width, C): bicubic, corners not aligned, no antialiasing."""
    symbols = isinstance(height, torch.SymInt) or isinstance(width, torch.SymInt)  # then it is for many sizes
    if not symbols and table.shape[1] == height and table.shape[2] == width:
        return table
    return resize_bicubic(table.permute(0, 3, 1, 2), (height, width)).permute(0, 2, 3, 1)
