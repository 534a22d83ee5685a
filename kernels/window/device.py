"""Window attention in Triton: shift, partition, mask, bias, softmax and the way back are index arithmetic in a kernel.

A *unit* is what one tile of tokens is to hold: a window or, where nothing is summed over windows, several small ones
that do not see each other. If a window fits into a tile, a program goes through a run of units with the bias in
registers, and the whole backward pass is one kernel. Larger windows are cut into blocks of queries and of keys: the
forward pass then keeps the logarithm of each row's sum, and three kernels make the gradients of queries, of keys and
values, and of the bias. No two programs add to one number: what several contribute to is written apart and summed
afterwards in a fixed order.
"""

import triton
import triton.language as tl

from ..tiles import load_tile, store_tile
from .tokens import (
    load_bias,
    load_keys,
    load_queries,
    locate,
    logits_of,
    row_place,
    store_bias,
    store_pad,
    store_queries,
    sum_pad,
)


@triton.jit
def forward_kernel(
    q, k, v, bias, pad_key, pad_value, out, lse, strides_q, strides_k, strides_v, strides_out, scale, shape, run,
    units, WINDOW: tl.constexpr, SHIFT: tl.constexpr, PACK: tl.constexpr, SHARED: tl.constexpr,
    D: tl.constexpr, PAD_D: tl.constexpr, SIZE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One head, a block of queries, in `run` units: softmax as the keys come in."""
    TOKENS: tl.constexpr = WINDOW[0] * WINDOW[1]
    BLOCKS: tl.constexpr = (PACK * TOKENS + SIZE - 1) // SIZE
    heads = shape[5]
    head = tl.program_id(0) % heads
    block = tl.program_id(0) // heads % BLOCKS
    first = tl.program_id(0) // heads // BLOCKS * run
    slot = tl.arange(0, SIZE)
    tile_bias = None
    if bias is not None and BLOCKS == 1:
        tile_bias = load_bias(bias, head, slot % TOKENS, slot % TOKENS, TOKENS)
    for unit in range(first, tl.minimum(first + run, units)):
        at_q = locate(block * SIZE + slot, unit, shape, WINDOW, SHIFT, PACK)
        tile_q = load_queries(q, strides_q, at_q, head, WINDOW, SHARED, D, PAD_D)
        top = tl.full([SIZE], float("-inf"), tl.float32)
        total = tl.zeros([SIZE], tl.float32)
        mixed = tl.zeros([SIZE, PAD_D], tl.float32)
        for start in range(0, PACK * TOKENS, SIZE):
            at_k = locate(start + slot, unit, shape, WINDOW, SHIFT, PACK)
            tile_k = load_keys(k, strides_k, pad_key, at_k, head, D, PAD_D)
            tile_v = load_keys(v, strides_v, pad_value, at_k, head, D, PAD_D)
            block_bias = tile_bias
            if bias is not None and BLOCKS > 1:
                block_bias = load_bias(bias, head, at_q[6], at_k[6], TOKENS)
            logits = logits_of(tile_q, tile_k, at_q, at_k, block_bias, scale, SHIFT, PACK, PRECISION)
            above = tl.maximum(top, tl.max(logits, 1))
            above = tl.where(above == float("-inf"), 0.0, above)  # in rows that are no token's
            weights = tl.exp(logits - above[:, None])
            factor = tl.exp(top - above)
            total = total * factor + tl.sum(weights, 1)
            mixed = mixed * factor[:, None]
            mixed += tl.dot(weights.to(tile_v.dtype), tile_v, input_precision=PRECISION)
            top = above
        image, row, column, on_map, there, _, _, _ = at_q
        total = tl.where(there, total, 1.0)
        store_tile(out, strides_out, image, row, column, head, on_map, mixed / total[:, None], D, PAD_D)
        if lse is not None:
            tl.store(lse + row_place(at_q, shape, head), top + tl.log(total), mask=on_map)


@triton.jit
def _first_and_last(program, run, splits, inner):
    """The units of a program: `run` of them, or what is left of its group of `inner` units."""
    group = program // splits
    first = group * inner + program % splits * run
    return first, tl.minimum(first + run, (group + 1) * inner)


@triton.jit
def backward_kernel(
    q, k, v, bias, pad_key, pad_value, grad, grad_q, grad_k, grad_v, part_q, part_bias, part_pad,
    strides_q, strides_k, strides_v, strides_grad, strides_out, scale, shape, run, splits, inner,
    WINDOW: tl.constexpr, SHIFT: tl.constexpr, PACK: tl.constexpr, SHARED: tl.constexpr,
    D: tl.constexpr, PAD_D: tl.constexpr, SIZE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """All gradients of one head in a run of units, each of which is one tile."""
    TOKENS: tl.constexpr = WINDOW[0] * WINDOW[1]
    heads = shape[5]
    head = tl.program_id(0) % heads
    program = tl.program_id(0) // heads
    first, last = _first_and_last(program, run, splits, inner)
    slot = tl.arange(0, SIZE)
    tile_bias = None
    if bias is not None:
        tile_bias = load_bias(bias, head, slot % TOKENS, slot % TOKENS, TOKENS)
    sum_q = tl.zeros([SIZE, PAD_D], tl.float32)
    sum_bias = tl.zeros([SIZE, SIZE], tl.float32)
    sum_pad_k, sum_pad_v = tl.zeros([PAD_D], tl.float32), tl.zeros([PAD_D], tl.float32)
    for unit in range(first, last):
        at = locate(slot, unit, shape, WINDOW, SHIFT, PACK)
        image, row, column, on_map, there, _, _, _ = at
        tile_q = load_queries(q, strides_q, at, head, WINDOW, SHARED, D, PAD_D)
        tile_k = load_keys(k, strides_k, pad_key, at, head, D, PAD_D)
        tile_v = load_keys(v, strides_v, pad_value, at, head, D, PAD_D)
        tile_grad = load_tile(grad, strides_grad, image, row, column, head, on_map, D, PAD_D)
        logits = logits_of(tile_q, tile_k, at, at, tile_bias, scale, SHIFT, PACK, PRECISION)
        top = tl.max(logits, 1)
        weights = tl.exp(logits - tl.where(top == float("-inf"), 0.0, top)[:, None])
        weights = weights / tl.where(there, tl.sum(weights, 1), 1.0)[:, None]
        grad_weights = tl.dot(tile_grad, tl.trans(tile_v), input_precision=PRECISION)
        grad_logits = weights * (grad_weights - tl.sum(weights * grad_weights, 1)[:, None])
        if bias is not None:
            sum_bias += grad_logits
        low = (grad_logits * scale).to(tile_q.dtype)
        tile_grad_q = tl.dot(low, tile_k, input_precision=PRECISION)
        tile_grad_k = tl.dot(tl.trans(low), tile_q, input_precision=PRECISION)
        tile_grad_v = tl.dot(tl.trans(weights.to(tile_q.dtype)), tile_grad, input_precision=PRECISION)
        if SHARED:
            sum_q += tile_grad_q
        else:
            store_tile(grad_q, strides_out, image, row, column, head, on_map, tile_grad_q, D, PAD_D)
        store_tile(grad_k, strides_out, image, row, column, head, on_map, tile_grad_k, D, PAD_D)
        store_tile(grad_v, strides_out, image, row, column, head, on_map, tile_grad_v, D, PAD_D)
        if part_pad is not None:
            sum_pad_k += sum_pad(at, tile_grad_k)
            sum_pad_v += sum_pad(at, tile_grad_v)
    if SHARED:
        store_queries(part_q, program, head, heads, slot, sum_q, TOKENS, D, PAD_D)
    if bias is not None:
        store_bias(part_bias, program, head, heads, slot, slot, sum_bias, TOKENS)
    if part_pad is not None:
        store_pad(part_pad, program, head, heads, sum_pad_k, sum_pad_v, D, PAD_D)


@triton.jit
def _weights(q, k, at_q, at_k, bias, lse, scale, SHIFT: tl.constexpr, PRECISION: tl.constexpr):
    """Softmax weights of a tile, from what the forward pass kept of each row."""
    return tl.exp(logits_of(q, k, at_q, at_k, bias, scale, SHIFT, 1, PRECISION) - lse[:, None])


@triton.jit
def _grad_logits(weights, grad, v, delta, PRECISION: tl.constexpr):
    """Gradient of the logits of a tile, with `delta` the sums over whole rows of weights and their gradient."""
    return weights * (tl.dot(grad, tl.trans(v), input_precision=PRECISION) - delta[:, None])


@triton.jit
def backward_q_kernel(
    q, k, v, bias, pad_key, pad_value, out, lse, grad, delta, grad_q, part_q,
    strides_q, strides_k, strides_v, strides_grad, strides_out, scale, shape, run, splits, inner,
    WINDOW: tl.constexpr, SHIFT: tl.constexpr, SHARED: tl.constexpr,
    D: tl.constexpr, PAD_D: tl.constexpr, SIZE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradient of a block of queries in a run of windows; and `delta`, (B, H, W, heads), the sums of out * grad."""
    TOKENS: tl.constexpr = WINDOW[0] * WINDOW[1]
    BLOCKS: tl.constexpr = (TOKENS + SIZE - 1) // SIZE
    heads = shape[5]
    head = tl.program_id(0) % heads
    slot_q = tl.program_id(0) // heads % BLOCKS * SIZE + tl.arange(0, SIZE)
    program = tl.program_id(0) // heads // BLOCKS
    first, last = _first_and_last(program, run, splits, inner)
    sum_q = tl.zeros([SIZE, PAD_D], tl.float32)
    for unit in range(first, last):
        at_q = locate(slot_q, unit, shape, WINDOW, SHIFT, 1)
        image, row, column, on_map, _, _, token_q, _ = at_q
        tile_q = load_queries(q, strides_q, at_q, head, WINDOW, SHARED, D, PAD_D)
        tile_grad = load_tile(grad, strides_grad, image, row, column, head, on_map, D, PAD_D)
        tile_out = load_tile(out, strides_out, image, row, column, head, on_map, D, PAD_D)
        row_delta = tl.sum(tile_grad.to(tl.float32) * tile_out.to(tl.float32), 1)
        tl.store(delta + row_place(at_q, shape, head), row_delta, mask=on_map)
        row_lse = tl.load(lse + row_place(at_q, shape, head), mask=on_map, other=float("inf"))
        tile_grad_q = tl.zeros([SIZE, PAD_D], tl.float32)
        for start in range(0, TOKENS, SIZE):
            at_k = locate(start + tl.arange(0, SIZE), unit, shape, WINDOW, SHIFT, 1)
            tile_k = load_keys(k, strides_k, pad_key, at_k, head, D, PAD_D)
            tile_v = load_keys(v, strides_v, pad_value, at_k, head, D, PAD_D)
            tile_bias = None
            if bias is not None:
                tile_bias = load_bias(bias, head, token_q, at_k[6], TOKENS)
            weights = _weights(tile_q, tile_k, at_q, at_k, tile_bias, row_lse, scale, SHIFT, PRECISION)
            grad_logits = _grad_logits(weights, tile_grad, tile_v, row_delta, PRECISION)
            tile_grad_q += tl.dot((grad_logits * scale).to(tile_k.dtype), tile_k, input_precision=PRECISION)
        if SHARED:
            sum_q += tile_grad_q
        else:
            store_tile(grad_q, strides_out, image, row, column, head, on_map, tile_grad_q, D, PAD_D)
    if SHARED:
        store_queries(part_q, program, head, heads, slot_q, sum_q, TOKENS, D, PAD_D)


@triton.jit
def backward_kv_kernel(
    q, k, v, bias, pad_key, pad_value, lse, grad, delta, grad_k, grad_v, part_pad,
    strides_q, strides_k, strides_v, strides_grad, strides_out, scale, shape,
    WINDOW: tl.constexpr, SHIFT: tl.constexpr, SHARED: tl.constexpr,
    D: tl.constexpr, PAD_D: tl.constexpr, SIZE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of a block of keys and values of one window."""
    TOKENS: tl.constexpr = WINDOW[0] * WINDOW[1]
    BLOCKS: tl.constexpr = (TOKENS + SIZE - 1) // SIZE
    heads = shape[5]
    head = tl.program_id(0) % heads
    program = tl.program_id(0) // heads
    slot = tl.arange(0, SIZE)
    unit = program // BLOCKS
    at_k = locate(program % BLOCKS * SIZE + slot, unit, shape, WINDOW, SHIFT, 1)
    tile_k = load_keys(k, strides_k, pad_key, at_k, head, D, PAD_D)
    tile_v = load_keys(v, strides_v, pad_value, at_k, head, D, PAD_D)
    tile_grad_k, tile_grad_v = tl.zeros([SIZE, PAD_D], tl.float32), tl.zeros([SIZE, PAD_D], tl.float32)
    for start in range(0, TOKENS, SIZE):
        at_q = locate(start + slot, unit, shape, WINDOW, SHIFT, 1)
        image, row, column, on_map, _, _, _, _ = at_q
        tile_q = load_queries(q, strides_q, at_q, head, WINDOW, SHARED, D, PAD_D)
        tile_grad = load_tile(grad, strides_grad, image, row, column, head, on_map, D, PAD_D)
        row_lse = tl.load(lse + row_place(at_q, shape, head), mask=on_map, other=float("inf"))
        row_delta = tl.load(delta + row_place(at_q, shape, head), mask=on_map, other=0.0)
        tile_bias = None
        if bias is not None:
            tile_bias = load_bias(bias, head, at_q[6], at_k[6], TOKENS)
        weights = _weights(tile_q, tile_k, at_q, at_k, tile_bias, row_lse, scale, SHIFT, PRECISION)
        grad_logits = _grad_logits(weights, tile_grad, tile_v, row_delta, PRECISION)
        tile_grad_v += tl.dot(tl.trans(weights.to(tile_q.dtype)), tile_grad, input_precision=PRECISION)
        grad_logits = (grad_logits * scale).to(tile_q.dtype)
        tile_grad_k += tl.dot(tl.trans(grad_logits), tile_q, input_precision=PRECISION)
    image, row, column, on_map, _, _, _, _ = at_k
    store_tile(grad_k, strides_out, image, row, column, head, on_map, tile_grad_k, D, PAD_D)
    store_tile(grad_v, strides_out, image, row, column, head, on_map, tile_grad_v, D, PAD_D)
    if part_pad is not None:
        sum_k, sum_v = sum_pad(at_k, tile_grad_k), sum_pad(at_k, tile_grad_v)
        store_pad(part_pad, program, head, heads, sum_k, sum_v, D, PAD_D)


@triton.jit
def backward_bias_kernel(
    q, k, v, bias, pad_key, pad_value, lse, grad, delta, part_bias,
    strides_q, strides_k, strides_v, strides_grad, scale, shape, run, splits, inner,
    WINDOW: tl.constexpr, SHIFT: tl.constexpr, SHARED: tl.constexpr,
    D: tl.constexpr, PAD_D: tl.constexpr, SIZE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradient of a block of the bias, over a run of windows."""
    TOKENS: tl.constexpr = WINDOW[0] * WINDOW[1]
    BLOCKS: tl.constexpr = (TOKENS + SIZE - 1) // SIZE
    heads = shape[5]
    head = tl.program_id(0) % heads
    block = tl.program_id(0) // heads % (BLOCKS * BLOCKS)
    program = tl.program_id(0) // heads // (BLOCKS * BLOCKS)
    first, last = _first_and_last(program, run, splits, inner)
    slot_q = block // BLOCKS * SIZE + tl.arange(0, SIZE)
    slot_k = block % BLOCKS * SIZE + tl.arange(0, SIZE)
    tile_bias = load_bias(bias, head, slot_q % TOKENS, slot_k % TOKENS, TOKENS)
    sum_bias = tl.zeros([SIZE, SIZE], tl.float32)
    for unit in range(first, last):
        at_q = locate(slot_q, unit, shape, WINDOW, SHIFT, 1)
        at_k = locate(slot_k, unit, shape, WINDOW, SHIFT, 1)
        image, row, column, on_map, _, _, _, _ = at_q
        tile_q = load_queries(q, strides_q, at_q, head, WINDOW, SHARED, D, PAD_D)
        tile_k = load_keys(k, strides_k, pad_key, at_k, head, D, PAD_D)
        tile_v = load_keys(v, strides_v, pad_value, at_k, head, D, PAD_D)
        tile_grad = load_tile(grad, strides_grad, image, row, column, head, on_map, D, PAD_D)
        row_lse = tl.load(lse + row_place(at_q, shape, head), mask=on_map, other=float("inf"))
        row_delta = tl.load(delta + row_place(at_q, shape, head), mask=on_map, other=0.0)
        weights = _weights(tile_q, tile_k, at_q, at_k, tile_bias, row_lse, scale, SHIFT, PRECISION)
        grad_logits = _grad_logits(weights, tile_grad, tile_v, row_delta, PRECISION)
        sum_bias += grad_logits
    store_bias(part_bias, program, head, heads, slot_q, slot_k, sum_bias, TOKENS)
