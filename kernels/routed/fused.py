"""Routed attention in Triton: a region's queries read the keys of its chosen regions where they are.

The forward pass and the gradient of the queries go through the keys that `routes` lists for a region. The gradient of
keys and values goes through the queries of all regions that chose theirs, which the sorted routes list; so nothing is
gathered, and each number is written by one program.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..settings import TILE, settings
from ..tiles import dense_channels, launch, load_tile, padded, precision, store_tile, strides_of


@triton.jit
def _locate(region, token, geometry):
    """Row and column of a region's token."""
    _, _, _, _, columns, height, width = geometry
    return region // columns * height + token // width, region % columns * width + token % width


@triton.jit
def _own_block(geometry, SIZE: tl.constexpr):
    """Head; image and region; and of this program's tokens of the region: row, column, and whether there is one."""
    _, _, heads, rows, columns, height, width = geometry
    blocks = tl.cdiv(height * width, SIZE)
    program = tl.program_id(0) // heads
    token = program % blocks * SIZE + tl.arange(0, SIZE)
    region = program // blocks % (rows * columns)
    row, column = _locate(region, token, geometry)
    image = program // blocks // (rows * columns)
    return tl.program_id(0) % heads, image, region, row, column, token < height * width


@triton.jit
def _row_place(image, row, column, head, geometry):
    """Where a (B, H, W, heads) tensor has a number for each token."""
    _, _, heads, rows, columns, height, width = geometry
    return ((image.to(tl.int64) * rows * height + row) * columns * width + column) * heads + head


@triton.jit
def _chosen_keys(slot, routes, image, region, geometry):
    """Row and column of the keys `slot` among all those of a region's chosen regions, and whether there is one."""
    _, top_k, _, rows, columns, height, width = geometry
    there = slot < top_k * height * width
    place = (image * rows * columns + region) * top_k + slot // (height * width)
    chosen = tl.load(routes + place, mask=there, other=0)
    row, column = _locate(chosen, slot % (height * width), geometry)
    return row, column, there


@triton.jit
def _choosing_queries(slot, first, last, order, image, geometry):
    """Row and column of the queries `slot` of the regions `first` to `last` of `order`, and whether there is one."""
    _, top_k, _, rows, columns, height, width = geometry
    entry = first + slot // (height * width)
    there = entry < last
    choosing = tl.load(order + image * rows * columns * top_k + entry, mask=there, other=0) // top_k
    row, column = _locate(choosing, slot % (height * width), geometry)
    return row, column, there


@triton.jit
def forward_kernel(
    q, k, v, routes, out, lse, strides_q, strides_k, strides_v, strides_out, scale, geometry,
    D: tl.constexpr, PAD_D: tl.constexpr, SIZE: tl.constexpr, OTHERS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A block of queries of a region: softmax as the keys come in."""
    head, image, region, row, column, there = _own_block(geometry, SIZE)
    _, top_k, _, _, _, height, width = geometry
    tile_q = load_tile(q, strides_q, image, row, column, head, there, D, PAD_D)
    top = tl.full([SIZE], float("-inf"), tl.float32)
    total = tl.zeros([SIZE], tl.float32)
    mixed = tl.zeros([SIZE, PAD_D], tl.float32)
    for start in range(0, top_k * height * width, OTHERS):
        row_k, column_k, there_k = _chosen_keys(start + tl.arange(0, OTHERS), routes, image, region, geometry)
        tile_k = load_tile(k, strides_k, image, row_k, column_k, head, there_k, D, PAD_D)
        tile_v = load_tile(v, strides_v, image, row_k, column_k, head, there_k, D, PAD_D)
        logits = tl.dot(tile_q, tl.trans(tile_k), input_precision=PRECISION) * scale
        logits = tl.where(there_k[None, :], logits, float("-inf"))
        above = tl.maximum(top, tl.max(logits, 1))
        weights = tl.exp(logits - above[:, None])
        factor = tl.exp(top - above)
        total = total * factor + tl.sum(weights, 1)
        mixed = mixed * factor[:, None] + tl.dot(weights.to(tile_v.dtype), tile_v, input_precision=PRECISION)
        top = above
    store_tile(out, strides_out, image, row, column, head, there, mixed / total[:, None], D, PAD_D)
    tl.store(lse + _row_place(image, row, column, head, geometry), top + tl.log(total), mask=there)


@triton.jit
def _weights(q, k, lse, there_k, scale, PRECISION: tl.constexpr):
    """Softmax weights of a tile, from what the forward pass kept of each row."""
    logits = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
    return tl.where(there_k[None, :], tl.exp(logits - lse[:, None]), 0.0)


@triton.jit
def _grad_products(weights, grad, v, delta, scale, PRECISION: tl.constexpr):
    """Gradient of the products of a tile, with `delta` the sums over whole rows of weights and their gradient."""
    return weights * (tl.dot(grad, tl.trans(v), input_precision=PRECISION) - delta[:, None]) * scale


@triton.jit
def backward_q_kernel(
    q, k, v, routes, out, lse, grad, delta, grad_q, strides_q, strides_k, strides_v, strides_grad, strides_out,
    scale, geometry,
    D: tl.constexpr, PAD_D: tl.constexpr, SIZE: tl.constexpr, OTHERS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradient of a block of queries; and `delta`, (B, H, W, heads), the sums of out * grad."""
    head, image, region, row, column, there = _own_block(geometry, SIZE)
    _, top_k, _, _, _, height, width = geometry
    tile_q = load_tile(q, strides_q, image, row, column, head, there, D, PAD_D)
    tile_grad = load_tile(grad, strides_grad, image, row, column, head, there, D, PAD_D)
    tile_out = load_tile(out, strides_out, image, row, column, head, there, D, PAD_D)
    row_delta = tl.sum(tile_grad.to(tl.float32) * tile_out.to(tl.float32), 1)
    place = _row_place(image, row, column, head, geometry)
    tl.store(delta + place, row_delta, mask=there)
    row_lse = tl.load(lse + place, mask=there, other=float("inf"))
    total = tl.zeros([SIZE, PAD_D], tl.float32)
    for start in range(0, top_k * height * width, OTHERS):
        row_k, column_k, there_k = _chosen_keys(start + tl.arange(0, OTHERS), routes, image, region, geometry)
        tile_k = load_tile(k, strides_k, image, row_k, column_k, head, there_k, D, PAD_D)
        tile_v = load_tile(v, strides_v, image, row_k, column_k, head, there_k, D, PAD_D)
        weights = _weights(tile_q, tile_k, row_lse, there_k, scale, PRECISION)
        grad_products = _grad_products(weights, tile_grad, tile_v, row_delta, scale, PRECISION)
        total += tl.dot(grad_products.to(tile_k.dtype), tile_k, input_precision=PRECISION)
    store_tile(grad_q, strides_out, image, row, column, head, there, total, D, PAD_D)


@triton.jit
def backward_kv_kernel(
    q, k, v, order, starts, lse, grad, delta, grad_k, grad_v,
    strides_q, strides_k, strides_v, strides_grad, strides_out, scale, geometry,
    D: tl.constexpr, PAD_D: tl.constexpr, SIZE: tl.constexpr, OTHERS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of a block of keys and values of a region, from the regions that chose it."""
    head, image, region, row, column, there = _own_block(geometry, SIZE)
    _, _, _, rows, columns, height, width = geometry
    tile_k = load_tile(k, strides_k, image, row, column, head, there, D, PAD_D)
    tile_v = load_tile(v, strides_v, image, row, column, head, there, D, PAD_D)
    sum_k, sum_v = tl.zeros([SIZE, PAD_D], tl.float32), tl.zeros([SIZE, PAD_D], tl.float32)
    first = tl.load(starts + image * (rows * columns + 1) + region)
    last = tl.load(starts + image * (rows * columns + 1) + region + 1)
    for start in range(0, (last - first) * height * width, OTHERS):
        slot = start + tl.arange(0, OTHERS)
        row_q, column_q, there_q = _choosing_queries(slot, first, last, order, image, geometry)
        tile_q = load_tile(q, strides_q, image, row_q, column_q, head, there_q, D, PAD_D)
        tile_grad = load_tile(grad, strides_grad, image, row_q, column_q, head, there_q, D, PAD_D)
        place = _row_place(image, row_q, column_q, head, geometry)
        row_lse = tl.load(lse + place, mask=there_q, other=float("inf"))
        row_delta = tl.load(delta + place, mask=there_q, other=0.0)
        weights = _weights(tile_q, tile_k, row_lse, there, scale, PRECISION)
        grad_products = _grad_products(weights, tile_grad, tile_v, row_delta, scale, PRECISION)
        sum_v += tl.dot(tl.trans(weights.to(tile_q.dtype)), tile_grad, input_precision=PRECISION)
        sum_k += tl.dot(tl.trans(grad_products.to(tile_q.dtype)), tile_q, input_precision=PRECISION)
    store_tile(grad_k, strides_out, image, row, column, head, there, sum_k, D, PAD_D)
    store_tile(grad_v, strides_out, image, row, column, head, there, sum_v, D, PAD_D)


def forward(
    q: Tensor, k: Tensor, v: Tensor, routes: Tensor, rows: int, columns: int, scale: float
) -> tuple[Tensor, Tensor]:
    """The output, and the logarithm of each row's sum, (B, H, W, heads)."""
    q, k, v = dense_channels(q), dense_channels(k), dense_channels(v)
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    lse = torch.empty(q.shape[:4], dtype=torch.float32, device=q.device)
    programs, geometry, constants = _cut(q, routes, rows, columns)
    launch(
        forward_kernel, programs, q, q, k, v, routes.to(torch.int32).contiguous(), out, lse,
        strides_of(q), strides_of(k), strides_of(v), strides_of(out), scale, geometry,
        **constants, **settings("routed_forward", q, constants["SIZE"]),
    )  # fmt: skip
    return out, lse


def backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    routes: Tensor,
    out: Tensor,
    lse: Tensor,
    rows: int,
    columns: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v."""
    q, k, v, grad = dense_channels(q), dense_channels(k), dense_channels(v), dense_channels(grad)
    grad_q, grad_k, grad_v = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
    delta = torch.empty_like(lse)
    routes = routes.to(torch.int32).contiguous()
    programs, geometry, constants = _cut(q, routes, rows, columns)
    strides = strides_of(q), strides_of(k), strides_of(v), strides_of(grad), strides_of(out)
    launch(
        backward_q_kernel, programs, q, q, k, v, routes, out, lse, grad, delta, grad_q, *strides, scale, geometry,
        **constants, **settings("routed_backward_q", q, constants["SIZE"]),
    )  # fmt: skip
    # Per image, the places in `routes` that name region 0, then 1, …: where each of these groups starts, and the whole.
    chosen, order = routes.flatten(1).sort(dim=1, stable=True)
    regions = torch.arange(rows * columns + 1, dtype=torch.int32, device=q.device)
    starts = torch.searchsorted(chosen, regions.expand(len(chosen), -1).contiguous(), out_int32=True)
    launch(
        backward_kv_kernel, programs, q, q, k, v, order.to(torch.int32), starts, lse, grad, delta, grad_k, grad_v,
        *strides, scale, geometry, **constants, **settings("routed_backward_kv", q, constants["SIZE"]),
    )  # fmt: skip
    return grad_q, grad_k, grad_v


def _cut(q: Tensor, routes: Tensor, rows: int, columns: int) -> tuple[int, tuple[int, ...], dict]:
    """Programs that go over all blocks of a region, what the kernels know of the map, and their constants."""
    batch, height, width, heads, head_dim = q.shape
    top_k = routes.shape[2]
    tokens = height // rows * (width // columns)
    size, others = min(TILE, padded(tokens)), min(TILE, padded(top_k * tokens))
    programs = batch * rows * columns * -(-tokens // size) * heads
    geometry = (batch, top_k, heads, rows, columns, height // rows, width // columns)
    return programs, geometry, dict(
        D=head_dim, PAD_D=padded(head_dim), SIZE=size, OTHERS=others, PRECISION=precision(q)
    )  # fmt: skip
