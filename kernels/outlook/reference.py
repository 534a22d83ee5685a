"""The definition of outlook attention in plain PyTorch."""

import torch
import torch.nn.functional as F
from torch import Tensor


def outlook_attention_reference(
    logits: Tensor,
    v: Tensor,
    kernel_size: int = 3,
    padding: int = 1,
    stride: int = 2,
    scale: float | None = None,
) -> Tensor:
    """Mix the pixels inside each window and add up overlaps; see `outlook_attention` for the arguments."""
    batch, rows, columns, num_heads, positions = logits.shape[:5]
    head_dim = v.shape[4]
    acc = torch.promote_types(logits.dtype, torch.float32)
    # The softmax of many short rows is slow on a CPU, that of few long columns is not.
    columnwise = (logits.to(acc) * (head_dim**-0.5 if scale is None else scale)).flatten(0, 4).t()
    weights = columnwise.softmax(0).to(v.dtype).t().reshape(-1, positions, positions)
    x = _to_windows(v, (rows, columns), kernel_size, padding, stride)
    x = torch.bmm(weights, x.view(-1, positions, head_dim))
    x = x.view(batch, rows, columns, num_heads, kernel_size, kernel_size, head_dim)
    return _add_windows(x, (v.shape[1], v.shape[2]), padding, stride)


def _to_windows(v: Tensor, grid: tuple[int, int], kernel_size: int, padding: int, stride: int) -> Tensor:
    """(B, H, W, heads, head_dim) to (B, rows, columns, heads, k, k, head_dim), zeros around the map.

    The padded map is cut into cells of stride x stride pixels. A window starts at the corner of a cell and reaches over
    `reach` cells along each axis, so it is put together from whole cells and a part of the last.
    """
    batch, height, width, num_heads, head_dim = v.shape
    (rows, columns), reach = grid, -(-kernel_size // stride)
    down, right = rows + reach - 1, columns + reach - 1  # number of cells
    bottom, end = down * stride - padding - height, right * stride - padding - width
    cells = F.pad(v, (0, 0, 0, 0, padding, end, padding, bottom))
    cells = cells.view(batch, down, stride, right, stride, num_heads, head_dim)
    parts = [cells[:, i : i + rows, : kernel_size - i * stride] for i in range(reach)]
    bands = torch.cat(parts, 2).permute(0, 1, 3, 5, 2, 4, 6)  # (B, rows, right, heads, k, stride, head_dim)
    return torch.cat([bands[:, :, i : i + columns, ..., : kernel_size - i * stride, :] for i in range(reach)], 5)


def _add_windows(windows: Tensor, size: tuple[int, int], padding: int, stride: int) -> Tensor:
    """The transpose of `_to_windows`: each pixel of a (B, H, W, heads, head_dim) map is the sum of its copies."""
    batch, rows, columns, num_heads, kernel_size, _, head_dim = windows.shape
    reach = -(-kernel_size // stride)
    down, right = (rows + reach - 1) * stride, (columns + reach - 1) * stride
    x = windows.permute(0, 1, 4, 2, 5, 3, 6).flatten(5)  # (B, rows, k, columns, k, C)
    x = _add_along(x, reach, stride).reshape(batch, rows, kernel_size, right * num_heads * head_dim)
    x = _add_along(x, reach, stride).reshape(batch, down, right, num_heads, head_dim)
    bottom, end = padding + size[0] - down, padding + size[1] - right
    return F.pad(x, (0, 0, 0, 0, -padding, end, -padding, bottom))


def _add_along(x: Tensor, reach: int, stride: int) -> Tensor:
    """(..., n, k, C), windows along one axis, to (..., n + reach - 1, stride, C): sums over the windows, in cells."""
    total = None
    for i in range(reach):
        part = x[..., i * stride : (i + 1) * stride, :]
        part = F.pad(part, (0, 0, 0, stride - part.shape[-2], i, reach - 1 - i))
        total = part if total is None else total.add_(part)
    return total
