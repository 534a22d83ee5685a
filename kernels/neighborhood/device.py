"""Neighbourhood attention and aggregation in Triton.

A program takes a tile of 8 x 8 queries, all of one residue class modulo the dilation, and goes through the union of
their windows in blocks of 8 x 8 keys of that class; what is outside a query's window is masked. The gradient of keys
and values goes the other way round, from a tile of keys through all queries that see one of them. The gradient of the
bias is summed over many tiles by a program that stays at one place relative to the queries. Nothing is added to one
number by two programs.

Attention and aggregation differ in where logits come from: products of queries and keys, or a tensor. `SOFTMAX` says
whether they are logits or, of an aggregation, the weights themselves.
"""

import triton
import triton.language as tl

from ..tiles import load_tile, store_tile

SIDE = tl.constexpr(8)  # of a tile
SLOTS = tl.constexpr(64)


@triton.jit
def _window_start(position, length, K: tl.constexpr):
    """First key of the window of a query, both counted among the `length` members of their class."""
    return tl.maximum(tl.minimum(position - K // 2, length - K), 0)


@triton.jit
def _find_tile(program, shape):
    """Head; image; of rows and of columns: class, members of the class, and the first one in this tile."""
    _, height, width, heads, dilation = shape
    tiles_r = tl.cdiv(tl.cdiv(height, dilation), SIDE)
    tiles_c = tl.cdiv(tl.cdiv(width, dilation), SIDE)
    head = program % heads
    program = program // heads
    first_c = program % tiles_c * SIDE
    program = program // tiles_c
    first_r = program % tiles_r * SIDE
    program = program // tiles_r
    class_c = program % dilation
    program = program // dilation
    class_r = program % dilation
    length_r = tl.cdiv(height - class_r, dilation)
    length_c = tl.cdiv(width - class_c, dilation)
    return head, program // dilation, class_r, class_c, length_r, length_c, first_r, first_c


@triton.jit
def _load(x, strides, tile, shape, row, column, D: tl.constexpr, PAD_D: tl.constexpr):
    """Tokens at `row` and `column`, counted within the class; zeros where there is none."""
    head, image, class_r, class_c, length_r, length_c, _, _ = tile
    there = (row < length_r) & (column < length_c)
    row, column = row * shape[4] + class_r, column * shape[4] + class_c
    return load_tile(x, strides, image, row, column, head, there, D, PAD_D)


@triton.jit
def _store(x, strides, tile, shape, row, column, tokens, D: tl.constexpr, PAD_D: tl.constexpr):
    head, image, class_r, class_c, length_r, length_c, _, _ = tile
    there = (row < length_r) & (column < length_c)
    row, column = row * shape[4] + class_r, column * shape[4] + class_c
    store_tile(x, strides, image, row, column, head, there, tokens, D, PAD_D)


@triton.jit
def _row_place(tile, shape, row, column):
    """Where a (B, H, W, heads) tensor has a number for each query, and whether there is such a query."""
    head, image, class_r, class_c, length_r, length_c, _, _ = tile
    _, height, width, heads, dilation = shape
    row_place = image.to(tl.int64) * height + row * dilation + class_r
    place = (row_place * width + column * dilation + class_c) * heads + head
    return place, (row < length_r) & (column < length_c)


@triton.jit
def _pairs(tile, row_q, column_q, row_k, column_k, K: tl.constexpr):
    """The element of each query's window that each key is, [queries, keys], and whether it is one."""
    _, _, _, _, length_r, length_c, _, _ = tile
    start_r, start_c = _window_start(row_q, length_r, K), _window_start(column_q, length_c, K)
    # As unsigned numbers, those below zero are large.
    inside = (row_k[None, :] - start_r[:, None]).to(tl.uint32) < K
    inside &= (column_k[None, :] - start_c[:, None]).to(tl.uint32) < K
    inside &= ((row_q < length_r) & (column_q < length_c))[:, None]
    return (row_k * K + column_k)[None, :] - (start_r * K + start_c)[:, None], inside


@triton.jit
def _weights_place(strides, tile, shape, row_q, column_q, element):
    """Where the weights of an aggregation, (B, H, W, heads, K * K), have those of pairs [queries, keys]."""
    head, image, class_r, class_c, _, _, _, _ = tile
    row, column = (row_q * shape[4] + class_r).to(tl.int64), (column_q * shape[4] + class_c).to(tl.int64)
    place = image.to(tl.int64) * strides[0] + row * strides[1] + column * strides[2] + head * strides[3]
    return place[:, None] + element * strides[4]


@triton.jit
def _logits(
    tile_q, tile_k, bias, weights, strides_w, tile, shape, row_q, column_q, row_k, column_k, scale,
    K: tl.constexpr, SOFTMAX: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Logits or weights of all pairs of a tile of queries with a block of keys, nothing for what is no pair."""
    element, inside = _pairs(tile, row_q, column_q, row_k, column_k, K)
    nothing = float("-inf") if SOFTMAX else 0.0
    if weights is not None:
        place = _weights_place(strides_w, tile, shape, row_q, column_q, element)
        logits = tl.load(weights + place, mask=inside, other=nothing).to(tl.float32) * scale
    else:
        logits = tl.dot(tile_q, tl.trans(tile_k), input_precision=PRECISION) * scale
        if bias is not None:
            SPAN: tl.constexpr = 2 * K - 1
            place = (row_k * SPAN + column_k)[None, :] - (row_q * SPAN + column_q)[:, None]
            middle = tile[0] * SPAN * SPAN + (K - 1) * (SPAN + 1)
            logits += tl.load(bias + middle + place, mask=inside, other=0.0).to(tl.float32)
        logits = tl.where(inside, logits, nothing)
    return logits


@triton.jit
def forward_kernel(
    q, k, v, bias, weights, out, lse, strides_q, strides_k, strides_v, strides_w, strides_out, scale, shape,
    K: tl.constexpr, SOFTMAX: tl.constexpr, D: tl.constexpr, PAD_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A tile of queries of one head: softmax as the keys come in."""
    tile = _find_tile(tl.program_id(0), shape)
    _, _, _, _, length_r, length_c, first_r, first_c = tile
    slot = tl.arange(0, SLOTS)
    row_q, column_q = first_r + slot // SIDE, first_c + slot % SIDE
    tile_q = None
    if q is not None:
        tile_q = _load(q, strides_q, tile, shape, row_q, column_q, D, PAD_D)
    top = tl.full([SLOTS], float("-inf"), tl.float32)
    total = tl.zeros([SLOTS], tl.float32)
    mixed = tl.zeros([SLOTS, PAD_D], tl.float32)
    last_r, last_c = tl.minimum(first_r + SIDE, length_r) - 1, tl.minimum(first_c + SIDE, length_c) - 1
    for row in range(_window_start(first_r, length_r, K), _window_start(last_r, length_r, K) + K, SIDE):
        for column in range(_window_start(first_c, length_c, K), _window_start(last_c, length_c, K) + K, SIDE):
            row_k, column_k = row + slot // SIDE, column + slot % SIDE
            tile_k = None
            if q is not None:
                tile_k = _load(k, strides_k, tile, shape, row_k, column_k, D, PAD_D)
            tile_v = _load(v, strides_v, tile, shape, row_k, column_k, D, PAD_D)
            logits = _logits(
                tile_q, tile_k, bias, weights, strides_w, tile, shape, row_q, column_q, row_k, column_k, scale,
                K, SOFTMAX, PRECISION,
            )  # fmt: skip
            if SOFTMAX:
                above = tl.maximum(top, tl.max(logits, 1))
                finite = tl.where(above == float("-inf"), 0.0, above)  # of a query that has met no key yet
                logits = tl.exp(logits - finite[:, None])
                factor = tl.exp(top - finite)
                total = total * factor + tl.sum(logits, 1)
                mixed = mixed * factor[:, None]
                top = above
            mixed += tl.dot(logits.to(tile_v.dtype), tile_v, input_precision=PRECISION)
    if SOFTMAX:
        place, there = _row_place(tile, shape, row_q, column_q)
        total = tl.where(there, total, 1.0)
        mixed = mixed / total[:, None]
        tl.store(lse + place, top + tl.log(total), mask=there)
    _store(out, strides_out, tile, shape, row_q, column_q, mixed, D, PAD_D)


@triton.jit
def backward_q_kernel(
    q, k, v, bias, weights, out, lse, grad, delta, grad_q, grad_w,
    strides_q, strides_k, strides_v, strides_w, strides_grad, strides_out, strides_grad_w, scale, shape,
    K: tl.constexpr, SOFTMAX: tl.constexpr, D: tl.constexpr, PAD_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradient of a tile of queries, or of their weights; and `delta`, (B, H, W, heads), the sums of out * grad."""
    tile = _find_tile(tl.program_id(0), shape)
    _, _, _, _, length_r, length_c, first_r, first_c = tile
    slot = tl.arange(0, SLOTS)
    row_q, column_q = first_r + slot // SIDE, first_c + slot % SIDE
    tile_grad = _load(grad, strides_grad, tile, shape, row_q, column_q, D, PAD_D)
    tile_q = None
    if q is not None:
        tile_q = _load(q, strides_q, tile, shape, row_q, column_q, D, PAD_D)
    if SOFTMAX:
        tile_out = _load(out, strides_out, tile, shape, row_q, column_q, D, PAD_D)
        row_delta = tl.sum(tile_grad.to(tl.float32) * tile_out.to(tl.float32), 1)
        place, there = _row_place(tile, shape, row_q, column_q)
        tl.store(delta + place, row_delta, mask=there)
        row_lse = tl.load(lse + place, mask=there, other=float("inf"))
    sum_q = tl.zeros([SLOTS, PAD_D], tl.float32)
    last_r, last_c = tl.minimum(first_r + SIDE, length_r) - 1, tl.minimum(first_c + SIDE, length_c) - 1
    for row in range(_window_start(first_r, length_r, K), _window_start(last_r, length_r, K) + K, SIDE):
        for column in range(_window_start(first_c, length_c, K), _window_start(last_c, length_c, K) + K, SIDE):
            row_k, column_k = row + slot // SIDE, column + slot % SIDE
            tile_v = _load(v, strides_v, tile, shape, row_k, column_k, D, PAD_D)
            grad_logits = tl.dot(tile_grad, tl.trans(tile_v), input_precision=PRECISION)
            tile_k = None
            if q is not None:
                tile_k = _load(k, strides_k, tile, shape, row_k, column_k, D, PAD_D)
            if SOFTMAX:
                logits = _logits(
                    tile_q, tile_k, bias, weights, strides_w, tile, shape, row_q, column_q, row_k, column_k, scale,
                    K, SOFTMAX, PRECISION,
                )  # fmt: skip
                grad_logits = tl.exp(logits - row_lse[:, None]) * (grad_logits - row_delta[:, None])
            grad_logits = grad_logits * scale
            if q is not None:
                sum_q += tl.dot(grad_logits.to(tile_k.dtype), tile_k, input_precision=PRECISION)
            else:
                element, inside = _pairs(tile, row_q, column_q, row_k, column_k, K)
                place_w = _weights_place(strides_grad_w, tile, shape, row_q, column_q, element)
                tl.store(grad_w + place_w, grad_logits.to(grad_w.dtype.element_ty), mask=inside)
    if q is not None:
        _store(grad_q, strides_out, tile, shape, row_q, column_q, sum_q, D, PAD_D)


@triton.jit
def _seen_by(first, length, K: tl.constexpr):
    """First and past the last of the queries whose window has one of the keys from `first` on, SIDE of them."""
    last = tl.minimum(first + SIDE, length) - 1
    start = tl.where(first < K, 0, first - K // 2)
    return start, tl.where(last >= length - K, length, last + K // 2 + 1)


@triton.jit
def backward_kv_kernel(
    q, k, v, bias, weights, lse, grad, delta, grad_k, grad_v,
    strides_q, strides_k, strides_v, strides_w, strides_grad, strides_out, scale, shape,
    K: tl.constexpr, SOFTMAX: tl.constexpr, D: tl.constexpr, PAD_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of a tile of keys and values, from all queries that see one of them."""
    tile = _find_tile(tl.program_id(0), shape)
    _, _, _, _, length_r, length_c, first_r, first_c = tile
    slot = tl.arange(0, SLOTS)
    row_k, column_k = first_r + slot // SIDE, first_c + slot % SIDE
    tile_k = None
    if q is not None:
        tile_k = _load(k, strides_k, tile, shape, row_k, column_k, D, PAD_D)
    tile_v = _load(v, strides_v, tile, shape, row_k, column_k, D, PAD_D)
    sum_k, sum_v = tl.zeros([SLOTS, PAD_D], tl.float32), tl.zeros([SLOTS, PAD_D], tl.float32)
    start_r, stop_r = _seen_by(first_r, length_r, K)
    start_c, stop_c = _seen_by(first_c, length_c, K)
    for row in range(start_r, stop_r, SIDE):
        for column in range(start_c, stop_c, SIDE):
            row_q, column_q = row + slot // SIDE, column + slot % SIDE
            tile_grad = _load(grad, strides_grad, tile, shape, row_q, column_q, D, PAD_D)
            tile_q = None
            if q is not None:
                tile_q = _load(q, strides_q, tile, shape, row_q, column_q, D, PAD_D)
            logits = _logits(
                tile_q, tile_k, bias, weights, strides_w, tile, shape, row_q, column_q, row_k, column_k, scale,
                K, SOFTMAX, PRECISION,
            )  # fmt: skip
            if SOFTMAX:
                place, there = _row_place(tile, shape, row_q, column_q)
                row_lse = tl.load(lse + place, mask=there, other=float("inf"))
                logits = tl.exp(logits - row_lse[:, None])
            sum_v += tl.dot(tl.trans(logits.to(tile_grad.dtype)), tile_grad, input_precision=PRECISION)
            if q is not None:
                row_delta = tl.load(delta + place, mask=there, other=0.0)
                grad_logits = tl.dot(tile_grad, tl.trans(tile_v), input_precision=PRECISION) - row_delta[:, None]
                grad_logits = (logits * grad_logits * scale).to(tile_q.dtype)
                sum_k += tl.dot(tl.trans(grad_logits), tile_q, input_precision=PRECISION)
    _store(grad_v, strides_out, tile, shape, row_k, column_k, sum_v, D, PAD_D)
    if q is not None:
        _store(grad_k, strides_out, tile, shape, row_k, column_k, sum_k, D, PAD_D)


@triton.jit
def backward_bias_kernel(
    q, k, v, bias, lse, grad, delta, part, strides_q, strides_k, strides_v, strides_grad, scale, shape, tiles, run,
    K: tl.constexpr, BEFORE: tl.constexpr, BLOCKS: tl.constexpr,
    D: tl.constexpr, PAD_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Sums of the gradient of the logits, over a run of tiles, of their pairs with one of the blocks of keys around.

    Along an axis the first block starts BEFORE keys before the tile. `part` is (runs, heads, blocks, queries, keys).
    """
    heads = shape[3]
    head = tl.program_id(0) % heads
    block = tl.program_id(0) // heads % (BLOCKS * BLOCKS)
    program = tl.program_id(0) // heads // (BLOCKS * BLOCKS)
    slot = tl.arange(0, SLOTS)
    total = tl.zeros([SLOTS, SLOTS], tl.float32)
    for i in range(program * run, tl.minimum((program + 1) * run, tiles)):
        tile = _find_tile(i * heads + head, shape)
        _, _, _, _, length_r, length_c, first_r, first_c = tile
        row = first_r - BEFORE + block // BLOCKS * SIDE
        column = first_c - BEFORE + block % BLOCKS * SIDE
        last_r, last_c = tl.minimum(first_r + SIDE, length_r) - 1, tl.minimum(first_c + SIDE, length_c) - 1
        meets = (row < _window_start(last_r, length_r, K) + K) & (row + SIDE > _window_start(first_r, length_r, K))
        meets &= column < _window_start(last_c, length_c, K) + K
        meets &= column + SIDE > _window_start(first_c, length_c, K)
        if meets:
            row_q, column_q = first_r + slot // SIDE, first_c + slot % SIDE
            row_k, column_k = row + slot // SIDE, column + slot % SIDE
            # Keys before the first of the class are in no window; they are read at another place.
            at_r, at_c = tl.maximum(row_k, 0), tl.maximum(column_k, 0)
            tile_q = _load(q, strides_q, tile, shape, row_q, column_q, D, PAD_D)
            tile_k = _load(k, strides_k, tile, shape, at_r, at_c, D, PAD_D)
            tile_v = _load(v, strides_v, tile, shape, at_r, at_c, D, PAD_D)
            tile_grad = _load(grad, strides_grad, tile, shape, row_q, column_q, D, PAD_D)
            place, there = _row_place(tile, shape, row_q, column_q)
            row_lse = tl.load(lse + place, mask=there, other=float("inf"))
            row_delta = tl.load(delta + place, mask=there, other=0.0)
            logits = _logits(
                tile_q, tile_k, bias, None, None, tile, shape, row_q, column_q, row_k, column_k, scale,
                K, True, PRECISION,
            )  # fmt: skip
            grad_logits = tl.dot(tile_grad, tl.trans(tile_v), input_precision=PRECISION) - row_delta[:, None]
            total += tl.exp(logits - row_lse[:, None]) * grad_logits
    place = ((program.to(tl.int64) * heads + head) * BLOCKS * BLOCKS + block) * SLOTS * SLOTS
    tl.store(part + place + slot[:, None] * SLOTS + slot[None, :], total)
