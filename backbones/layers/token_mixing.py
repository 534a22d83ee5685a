"""MixToken (token labelling, arXiv:2104.10858): tokens of two images mixed in a random box."""

import torch
from torch import Tensor


def random_box(rows: int, columns: int, device: torch.device) -> Tensor:
    """Corners r1, c1, r2, c2 (the last two excluded) of a box around a random token, clipped to the grid.

    Its area before clipping is uniform between nothing and the grid: 1 - lambda of it, lambda ~ Beta(1, 1).
    """
    size = torch.tensor([rows, columns], device=device)
    half = (size * torch.rand((), device=device).sqrt()).long() // 2
    centre = torch.cat([torch.randint(rows, (1,), device=device), torch.randint(columns, (1,), device=device)])
    return torch.cat([(centre - half).clamp(min=0), torch.minimum(centre + half, size)])


def take_from_reversed(x: Tensor, box: Tensor) -> Tensor:
    """(B, H, W, C) with what is inside the box r1, c1, r2, c2 from the batch in reversed order."""
    row, column = torch.arange(x.shape[1], device=x.device), torch.arange(x.shape[2], device=x.device)
    r1, c1, r2, c2 = box.unbind()
    inside = ((r1 <= row) & (row < r2))[:, None, None] & ((c1 <= column) & (column < c2))[:, None]
    return torch.where(inside, x.flip(0), x)
