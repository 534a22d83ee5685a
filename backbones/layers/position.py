"""Learned position tables."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn


class RelativePositionBias(nn.Module):
    """A learned bias per head and relative position inside a window (Swin, arXiv:2103.14030, equation 4).

    Row (y_query - y_key + M - 1) * (2M - 1) + (x_query - x_key + M - 1) of the table holds the bias of that offset.

    Args:
        window_size: M, side of the largest window, in tokens.
        num_heads: one column of the table each.
    """

    def __init__(self, window_size: int, num_heads: int):
        super().__init__()
        self.window_size = window_size
        self.table = nn.Parameter(torch.empty((2 * window_size - 1) ** 2, num_heads))
        nn.init.trunc_normal_(self.table, std=0.02)

    def forward(self, window_size: int) -> Tensor:
        """Bias (num_heads, N, N), query before key, of the N tokens of a window of side `window_size` <= M.

        The offsets of a smaller window are the middle of the table.
        """
        return windows_of_table(self.table, self.window_size, window_size)

    def set_window_size(self, window_size: int) -> None:
        """Change M; the table is resized by `resize_table`."""
        if window_size != self.window_size:
            table = self.resize_table(self.table.detach(), window_size)
            self.table = nn.Parameter(table, requires_grad=self.table.requires_grad)
            self.window_size = window_size

    def fit_table(self, table: Tensor) -> Tensor:
        """A table from a checkpoint with another window, resized to this module's; loading calls this."""
        return self.resize_table(table, self.window_size)

    @staticmethod
    def resize_table(table: Tensor, window_size: int) -> Tensor:
        """((2M-1)^2, num_heads) resized to another window, bicubic over the offsets as in the release."""
        old, new = round(len(table) ** 0.5), 2 * window_size - 1
        if old == new or old * old != len(table):  # the latter is no such table, and loading will say so
            return table
        grid = resize_bicubic(table.T.reshape(1, -1, old, old), (new, new))
        return grid.reshape(-1, new * new).T.contiguous()


def resize_bicubic(grid: Tensor, size: Sequence[int]) -> Tensor:
    """(1, C, h, w) interpolated to (1, C, *size), in at least float32; corners not aligned, no antialiasing."""
    precise = grid.to(torch.promote_types(grid.dtype, torch.float32))
    return F.interpolate(precise, size=size, mode="bicubic", align_corners=False).to(grid.dtype)


@fx.wrap
@torch.jit.ignore
def windows_of_table(table: Tensor, table_window: int, window_size: int) -> Tensor:
    """Biases (num_heads, N, N) of a window within that of the table, `table_window`.

    Over the keys of one query the offsets fall by one from key to key: read backwards they are a window of the table,
    for the next query the one beside it. That takes a quarter of the time of indexing, and keeps no indices.
    """
    side, margin = 2 * table_window - 1, table_window - window_size
    grid = table.T.reshape(-1, side, side).flip(1, 2)[:, margin : side - margin, margin : side - margin]
    bias = grid.unfold(1, window_size, 1).unfold(2, window_size, 1).flip(1, 2)  # (heads, y, x of query, y, x of key)
    return bias.reshape(len(grid), window_size**2, window_size**2)
