"""The definition of neighbourhood attention and aggregation in plain PyTorch.

Both cut the map into blocks: positions of one residue class (all congruent modulo the dilation) that lie together are a
block of queries, and all positions in any of their windows its block of keys. Per block this is one dense product, in
which what is outside a query's window is masked. A block of 8 x 8 queries and windows of 7 x 7 take 14 x 14 keys, so
keys and values are copied about three times, not 49 times.
"""

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..sizes import ceil_div, crop, is_zero

# What a query of a block costs besides its products with keys, for the copies of these, in products. Measured on CPU.
OVERHEAD = 4
EXPORTED = 7  # side of the blocks in a graph for many sizes
PART = 4_000_000  # pairs of a query and a key that are computed together


@dataclass
class Axis:
    """How the positions of an axis are cut into `blocks` blocks of `size` queries in each of `dilation` classes.

    A last block may have fewer members than `size`; the rest of it is computed and dropped.

    Attributes:
        keys: (dilation, blocks, u) positions of the keys of each block.
        start: (dilation, blocks, size) first key of each query's window, counted within its block's keys.
        relative: (dilation or 1, blocks, size, u) key minus query in steps of the dilation, plus kernel_size - 1, and
            2 * kernel_size - 1 outside the window. One class stands for all where they are alike.
    """

    dilation: int
    blocks: int
    size: int
    keys: Tensor
    start: Tensor
    relative: Tensor

    def part(self, part: tuple[slice, slice]) -> "Axis":
        """Some of the classes or blocks."""
        classes = part[0] if len(self.relative) > 1 else slice(None)
        relative = self.relative[classes, part[1]]
        return replace(self, keys=self.keys[part], start=self.start[part], relative=relative)


def cut_axis(length: int, kernel_size: int, dilation: int, device: torch.device) -> Axis:
    """Blocks of an axis of `length` positions, at least kernel_size * dilation."""
    longest = ceil_div(length, dilation)  # members of the first class; the last ones may have one less
    if torch.compiler.is_exporting() and isinstance(length, torch.SymInt):
        blocks, size, u = ceil_div(longest, EXPORTED), EXPORTED, EXPORTED + kernel_size - 1
    else:
        length = operator.index(length)  # a compiled graph is for one size, as the blocks are
        _, blocks = min([_cost(longest, size, kernel_size) for size in (longest, 4, 5, 6, 7, 8)])
        size = ceil_div(longest, blocks)
        u = min(longest, size + kernel_size - 1)

    residue = torch.arange(dilation, device=device)[:, None, None]
    members = (length - residue + dilation - 1) // dilation
    query = torch.arange(blocks * size, device=device).view(blocks, size).minimum(members - 1)  # ranks within the class
    begin = (query - kernel_size // 2).clamp(min=0).minimum(members - kernel_size)
    first = begin[:, :, :1].minimum((members - u).clamp(min=0))
    key = first + torch.arange(u, device=device)

    element = key[:, :, None, :] - begin[..., None]
    relative = key[:, :, None, :] - query[..., None] + kernel_size - 1
    relative = torch.where((element >= 0) & (element < kernel_size), relative, 2 * kernel_size - 1)
    return Axis(
        dilation,
        blocks,
        size,
        keys=key.minimum(members - 1) * dilation + residue,
        start=begin - first,
        relative=relative[:1] if is_zero(length % dilation) else relative,
    )


def _cost(length: int, size: int, kernel_size: int) -> tuple[int, int]:
    """Cost of cutting a class into blocks of at most `size` queries, and the number of these blocks."""
    blocks = ceil_div(length, size)
    size = ceil_div(length, blocks)
    return blocks * (size + OVERHEAD) * min(length, size + kernel_size - 1), blocks


def cut_map(x: Tensor, kernel_size: int, dilation: int) -> tuple[Axis, Axis]:
    """Rows and columns of a map (B, H, W, ...)."""
    rows = cut_axis(x.shape[1], kernel_size, dilation, x.device)
    if is_zero(x.shape[1] - x.shape[2]):
        return rows, rows
    return rows, cut_axis(x.shape[2], kernel_size, dilation, x.device)


def neighborhood_attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kernel_size: int,
    dilation: int = 1,
    bias: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Softmax attention to the window around every position; see `neighborhood_attention` for the arguments."""
    rows, columns = cut_map(q, kernel_size, dilation)
    q = q * (q.shape[4] ** -0.5 if scale is None else scale)
    if bias is None:
        bias = q.new_zeros(1, 2 * kernel_size - 1, 2 * kernel_size - 1)

    def attend(q: Tensor, k: Tensor, v: Tensor, rows: Axis) -> Tensor:
        scores = _bmm(q, k.transpose(-1, -2)).add_(_block_bias(bias, rows.relative, columns.relative))
        return _bmm(scores.softmax(-1), v)

    return _by_parts(attend, q, (k, v), rows, columns)


def neighborhood_scores_reference(
    q: Tensor, k: Tensor, kernel_size: int, dilation: int = 1, bias: Tensor | None = None, scale: float | None = None
) -> Tensor:
    """The logits of every position's window; see `neighborhood_scores` for the arguments."""
    rows, columns = cut_map(q, kernel_size, dilation)
    q = q * (q.shape[4] ** -0.5 if scale is None else scale)

    def score(q: Tensor, k: Tensor, rows: Axis) -> Tensor:
        scores = _bmm(q, k.transpose(-1, -2))
        if bias is not None:
            scores.add_(_block_bias(bias, rows.relative, columns.relative))
        index = _window_index(rows, columns, kernel_size)
        return scores.gather(-1, index.expand(*scores.shape[:-1], -1))

    return _by_parts(score, q, (k,), rows, columns)


def neighborhood_aggregate_reference(weights: Tensor, v: Tensor, kernel_size: int, dilation: int = 1) -> Tensor:
    """Weighted sum of the window around every position; see `neighborhood_aggregate` for the arguments."""
    rows, columns = cut_map(v, kernel_size, dilation)

    def add_up(weights: Tensor, v: Tensor, rows: Axis) -> Tensor:
        # Every weight goes to its key's column of a matrix that is zero elsewhere.
        index = _window_index(rows, columns, kernel_size).expand_as(weights)
        spread = weights.new_zeros(*weights.shape[:-1], v.shape[-2]).scatter_(-1, index, weights)
        return _bmm(spread, v)

    return _by_parts(add_up, weights, (v,), rows, columns)


def _by_parts(
    compute: Callable[..., Tensor], queries: Tensor, keys: Sequence[Tensor], rows: Axis, columns: Axis
) -> Tensor:
    """compute(blocks of queries, blocks of each of `keys`, rows) as a map; in eager inference on a CPU in parts.

    The parts are some of the classes or blocks of rows: no tensor of pairs is then so large that its memory has to be
    mapped anew at every call. Blocks are (B, heads, row classes, row blocks, column classes, column blocks, tokens, d),
    and `queries` and `keys` (B, H, W, heads, d).
    """
    height, width = queries.shape[1:3]
    queries = _query_blocks(queries, rows, columns)
    takes = [_key_blocks(x, rows, columns) for x in keys]
    axis = 0 if rows.dilation > 1 else 1
    if torch.is_grad_enabled() or torch.jit.is_tracing() or torch.compiler.is_compiling():
        parts = compute(queries, *(take((slice(None), slice(None))) for take in takes), rows)
        return crop(_to_map(parts, rows, columns), height, width).contiguous()
    length = rows.keys.shape[axis]
    pairs = queries.shape[:-1].numel() * rows.keys.shape[2] * columns.keys.shape[2]
    step = max(1, length * PART // max(1, pairs))
    parts = []
    for i in range(0, length, step):
        part = (slice(i, i + step), slice(None)) if axis == 0 else (slice(None), slice(i, i + step))
        parts.append(compute(queries[:, :, *part], *(take(part) for take in takes), rows.part(part)))
    return _to_map(torch.cat(parts, 2 + axis), rows, columns)[:, :height, :width].contiguous()


def _block_bias(bias: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """The table for all pairs of each block, (heads, row classes, row blocks, column classes, column blocks, t, u)."""
    table = F.pad(bias, (0, 1, 0, 1), value=float("-inf"))
    # One axis after the other: the gradient then adds whole rows, not single entries.
    table = table.index_select(2, columns.flatten()).index_select(1, rows.flatten())
    table = table.view(-1, *rows.shape, *columns.shape).permute(0, 1, 2, 5, 6, 3, 7, 4, 8)
    return table.flatten(7, 8).flatten(5, 6)


def _window_index(rows: Axis, columns: Axis, kernel_size: int) -> Tensor:
    """Which of its block's keys each query's window holds, row by row.

    (row classes, row blocks, column classes, column blocks, queries, kernel_size ** 2)
    """
    element = torch.arange(kernel_size, device=rows.start.device)
    row = (rows.start[..., None] + element)[:, :, None, None, :, None, :, None]
    column = (columns.start[..., None] + element)[None, None, :, :, None, :, None, :]
    index = row * columns.keys.shape[2] + column  # (…, row, column of the query, row, column of the window)
    return index.flatten(6, 7).flatten(4, 5)


def _query_blocks(x: Tensor, rows: Axis, columns: Axis) -> Tensor:
    """(B, H, W, heads, d) to (B, heads, row classes, row blocks, column classes, column blocks, queries, d)."""
    batch, height, width, num_heads, dim = x.shape
    bottom = rows.blocks * rows.size * rows.dilation - height
    right = columns.blocks * columns.size * columns.dilation - width
    if not (is_zero(bottom) and is_zero(right)):
        x = F.pad(x, (0, 0, 0, 0, 0, right, 0, bottom))
    # A position is (block * size + rank in the block) * dilation + class.
    x = x.reshape(
        (batch, rows.blocks, rows.size, rows.dilation, columns.blocks, columns.size, columns.dilation, num_heads, dim)
    )
    return x.permute(0, 7, 3, 1, 6, 4, 2, 5, 8).flatten(6, 7)


def _key_blocks(x: Tensor, rows: Axis, columns: Axis) -> Callable[[tuple[slice, slice]], Tensor]:
    """What makes the blocks of keys of a part, slices of row classes and row blocks, of a map (B, H, W, heads, d)."""
    if is_zero(rows.blocks - 1) and is_zero(columns.blocks - 1):  # every query's keys are its class, in the same order
        blocks = _query_blocks(x, rows, columns)
        return lambda part: blocks[:, :, *part]
    batch, height, width, num_heads, dim = x.shape
    x = x.permute(0, 3, 1, 2, 4).reshape(batch, num_heads, height * width, dim)

    def take(part: tuple[slice, slice]) -> Tensor:
        index = rows.keys[part][:, :, None, None, :, None] * width + columns.keys[None, None, :, :, None, :]
        return x.index_select(2, index.flatten()).view(batch, num_heads, *index.flatten(4, 5).shape, dim)

    return take


def _to_map(x: Tensor, rows: Axis, columns: Axis) -> Tensor:
    """The inverse of `_query_blocks`, with the rows and columns that fill up blocks."""
    x = x.unflatten(6, (rows.size, columns.size)).permute(0, 3, 6, 2, 5, 7, 4, 1, 8)
    return x.flatten(4, 6).flatten(1, 3)


def _bmm(a: Tensor, b: Tensor) -> Tensor:
    """Matrix product of the last two dimensions; the others are equal."""
    # torch.matmul would look for a broadcast and copy transposed matrices.
    return torch.bmm(a.reshape(-1, *a.shape[-2:]), b.reshape(-1, *b.shape[-2:])).view(*a.shape[:-1], b.shape[-1])
