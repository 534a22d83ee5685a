"""What the kernels of window attention do with a tile of tokens: find it on the map, load it, compare it, store it.

`at` stands for what `locate` says about the tokens of a tile.
"""

import triton
import triton.language as tl

from ..tiles import load_tile

MASKED = tl.constexpr(-100.0)  # as in the reference


@triton.jit
def locate(slot, unit, shape, WINDOW: tl.constexpr, SHIFT: tl.constexpr, PACK: tl.constexpr):
    """Where the tokens `slot` of a unit are.

    Returns image, row and column; whether that is on the map, which a token that fills it up is not; whether there is
    such a token at all; its window, counted over the batch; its number in it; and its region of the shifted map.
    """
    batch, height, width, rows, columns, _ = shape  # rows and columns of windows
    window = unit * PACK + slot // (WINDOW[0] * WINDOW[1])
    token = slot % (WINDOW[0] * WINDOW[1])
    there = slot < PACK * WINDOW[0] * WINDOW[1]
    if PACK > 1:  # the last unit may have fewer windows
        there &= window < batch * rows * columns
    place = window % (rows * columns)
    row = place // columns * WINDOW[0] + token // WINDOW[1]
    column = place % columns * WINDOW[1] + token % WINDOW[1]
    # Along an axis 0 below n - window, 1 below n - shift, 2 where the roll brought tokens in from the opposite border.
    region = (row >= (rows - 1) * WINDOW[0]).to(tl.int32) + (row >= rows * WINDOW[0] - SHIFT[0]).to(tl.int32)
    region = region * 3 + (column >= (columns - 1) * WINDOW[1]).to(tl.int32)
    region += (column >= columns * WINDOW[1] - SHIFT[1]).to(tl.int32)
    row = (row + SHIFT[0]) % (rows * WINDOW[0])
    column = (column + SHIFT[1]) % (columns * WINDOW[1])
    on_map = there & (row < height) & (column < width)
    return window // (rows * columns), row, column, on_map, there, window, token, region


@triton.jit
def load_queries(
    x, strides, at, head, WINDOW: tl.constexpr, SHARED: tl.constexpr, D: tl.constexpr, PAD_D: tl.constexpr
):
    image, row, column, on_map, there, _, token, _ = at
    if SHARED:
        row, column, on_map = token // WINDOW[1], token % WINDOW[1], there
    return load_tile(x, strides, image, row, column, head, on_map, D, PAD_D)


@triton.jit
def load_keys(x, strides, pad, at, head, D: tl.constexpr, PAD_D: tl.constexpr):
    """Keys or values; tokens that fill the map up have those of `pad`, (heads, D), or zeros."""
    image, row, column, on_map, there, _, _, _ = at
    tile = load_tile(x, strides, image, row, column, head, on_map, D, PAD_D)
    if pad is not None:
        d = tl.arange(0, PAD_D)
        fill = tl.load(pad + head * D + d, mask=d < D, other=0.0)
        tile = tl.where((there & (on_map == 0))[:, None], fill[None, :], tile)
    return tile


@triton.jit
def load_bias(bias, head, token_q, token_k, TOKENS: tl.constexpr):
    """[queries, keys] of the bias (heads, TOKENS, TOKENS)."""
    place = (head * TOKENS + token_q)[:, None] * TOKENS + token_k[None, :]
    return tl.load(bias + place).to(tl.float32)


@triton.jit
def logits_of(q, k, at_q, at_k, bias, scale, SHIFT: tl.constexpr, PACK: tl.constexpr, PRECISION: tl.constexpr):
    """Scaled, biased and masked products of a tile of queries with one of keys; `bias` is a tile or None."""
    _, _, _, _, _, window_q, _, region_q = at_q
    _, _, _, _, there_k, window_k, _, region_k = at_k
    logits = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
    if bias is not None:
        logits += bias
    if SHIFT[0] + SHIFT[1] > 0:
        logits += tl.where(region_q[:, None] != region_k[None, :], MASKED, 0.0)
    together = there_k[None, :]
    if PACK > 1:
        together &= window_q[:, None] == window_k[None, :]
    return tl.where(together, logits, float("-inf"))


@triton.jit
def row_place(at, shape, head):
    """Where a (B, H, W, heads) tensor has a number for each token of a tile."""
    image, row, column, _, _, _, _, _ = at
    _, height, width, _, _, heads = shape
    return ((image.to(tl.int64) * height + row) * width + column) * heads + head


@triton.jit
def sum_pad(at, tile):
    """Sum of a tile over the tokens that fill the map up."""
    _, _, _, on_map, there, _, _, _ = at
    return tl.sum(tl.where((there & (on_map == 0))[:, None], tile, 0.0), 0)


@triton.jit
def store_pad(part, program, head, heads, sum_k, sum_v, D: tl.constexpr, PAD_D: tl.constexpr):
    """To (programs, heads, 2, D)."""
    d = tl.arange(0, PAD_D)
    place = (program * heads + head) * 2 * D + d
    tl.store(part + place, sum_k, mask=d < D)
    tl.store(part + place + D, sum_v, mask=d < D)


@triton.jit
def store_queries(part, program, head, heads, token, tile, TOKENS: tl.constexpr, D: tl.constexpr, PAD_D: tl.constexpr):
    """To (programs, TOKENS, heads, D)."""
    d = tl.arange(0, PAD_D)
    place = ((program.to(tl.int64) * TOKENS + token) * heads + head)[:, None] * D + d[None, :]
    tl.store(part + place, tile, mask=(token < TOKENS)[:, None] & (d < D)[None, :])


@triton.jit
def store_bias(part, program, head, heads, token_q, token_k, tile, TOKENS: tl.constexpr):
    """To (programs, heads, TOKENS, TOKENS)."""
    place = ((program.to(tl.int64) * heads + head) * TOKENS + token_q)[:, None] * TOKENS + token_k[None, :]
    tl.store(part + place, tile, mask=(token_q < TOKENS)[:, None] & (token_k < TOKENS)[None, :])
