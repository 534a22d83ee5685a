"""Outlook attention in Triton: a pixel gathers from the windows that cover it, so nothing is unfolded or folded.

The forward pass and the gradient of the values go over the pixels of the map, the gradient of the logits over the rows
of all windows. Each number is written by one program.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..settings import settings
from ..tiles import dense_channels, launch, load_tile, padded, store_tile, strides_of


@triton.jit
def _locate_pixels(shape, SIZE: tl.constexpr):
    """Head, image, rows and columns of this program's pixels, and which of them there are."""
    _, height, width, heads, _, _ = shape
    blocks = tl.cdiv(height * width, SIZE)
    program = tl.program_id(0)
    pixel = program // heads % blocks * SIZE + tl.arange(0, SIZE)
    return program % heads, program // heads // blocks, pixel // width, pixel % width, pixel < height * width


@triton.jit
def _covering(n, row, column, shape, K: tl.constexpr, PADDING: tl.constexpr, STRIDE: tl.constexpr):
    """The `n`th window over each pixel: its row and column, the pixel's number in it, and whether there is one."""
    _, _, _, _, rows, columns = shape
    REACH: tl.constexpr = (K + STRIDE - 1) // STRIDE  # windows over a pixel along an axis
    back_r, back_c = n // REACH, n % REACH
    window_r, window_c = (row + PADDING) // STRIDE - back_r, (column + PADDING) // STRIDE - back_c
    place_r, place_c = row + PADDING - window_r * STRIDE, column + PADDING - window_c * STRIDE
    covers = (window_r >= 0) & (window_r < rows) & (window_c >= 0) & (window_c < columns)
    return window_r, window_c, place_r * K + place_c, covers & (place_r < K) & (place_c < K)


@triton.jit
def _member(
    window_r, window_c, number, shape, K: tl.constexpr, PADDING: tl.constexpr, STRIDE: tl.constexpr
):  # fmt: skip
    """Row and column of a window's pixel, and whether the map has it."""
    _, height, width, _, _, _ = shape
    row = window_r * STRIDE - PADDING + number // K
    column = window_c * STRIDE - PADDING + number % K
    return row, column, (row >= 0) & (row < height) & (column >= 0) & (column < width)


@triton.jit
def _row_of_weights(
    logits, strides, image, window_r, window_c, head, number, there, scale, K: tl.constexpr, PAD_K: tl.constexpr
):
    """Softmax of the logits of a window's pixel [pixels, PAD_K], and the logarithm of the sum."""
    source = tl.arange(0, PAD_K)
    place = image.to(tl.int64) * strides[0] + window_r.to(tl.int64) * strides[1] + window_c.to(tl.int64) * strides[2]
    place += head * strides[3] + number * strides[4]
    mask = there[:, None] & (source < K * K)[None, :]
    row = tl.load(logits + place[:, None] + source[None, :] * strides[5], mask=mask, other=float("-inf"))
    row = row.to(tl.float32) * scale
    row = tl.where(mask, row, float("-inf"))  # a scale below zero turns the sign
    top = tl.where(there, tl.max(row, 1), 0.0)
    row = tl.exp(row - top[:, None])
    total = tl.where(there, tl.sum(row, 1), 1.0)
    return row / total[:, None], top + tl.log(total)


@triton.jit
def forward_kernel(
    logits, v, out, lse, strides_l, strides_v, strides_out, scale, shape,
    K: tl.constexpr, PADDING: tl.constexpr, STRIDE: tl.constexpr, PAD_K: tl.constexpr,
    D: tl.constexpr, PAD_D: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """What a block of pixels receives from all windows over them; also `lse`, (B, rows, columns, heads, K * K)."""
    head, image, row, column, there = _locate_pixels(shape, SIZE)
    _, _, _, heads, rows, columns = shape
    REACH: tl.constexpr = (K + STRIDE - 1) // STRIDE
    total = tl.zeros([SIZE, PAD_D], tl.float32)
    for n in range(REACH * REACH):
        window_r, window_c, number, covers = _covering(n, row, column, shape, K, PADDING, STRIDE)
        covers &= there
        weights, row_lse = _row_of_weights(
            logits, strides_l, image, window_r, window_c, head, number, covers, scale, K, PAD_K
        )
        place = ((image.to(tl.int64) * rows + window_r) * columns + window_c) * heads + head
        tl.store(lse + place * K * K + number, row_lse, mask=covers)
        for source in range(K * K):
            source_r, source_c, on_map = _member(window_r, window_c, source, shape, K, PADDING, STRIDE)
            weight = tl.sum(tl.where((tl.arange(0, PAD_K) == source)[None, :], weights, 0.0), 1)
            tile = load_tile(v, strides_v, image, source_r, source_c, head, on_map & covers, D, PAD_D)
            total += weight[:, None] * tile.to(tl.float32)
    store_tile(out, strides_out, image, row, column, head, there, total, D, PAD_D)


@triton.jit
def backward_v_kernel(
    logits, lse, grad, grad_v, strides_l, strides_grad, strides_out, scale, shape,
    K: tl.constexpr, PADDING: tl.constexpr, STRIDE: tl.constexpr,
    D: tl.constexpr, PAD_D: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """Gradient of the values of a block of pixels, from all pixels of all windows over them."""
    head, image, row, column, there = _locate_pixels(shape, SIZE)
    _, _, _, heads, rows, columns = shape
    REACH: tl.constexpr = (K + STRIDE - 1) // STRIDE
    total = tl.zeros([SIZE, PAD_D], tl.float32)
    for n in range(REACH * REACH):
        window_r, window_c, source, covers = _covering(n, row, column, shape, K, PADDING, STRIDE)
        place_l = image.to(tl.int64) * strides_l[0] + head * strides_l[3] + source * strides_l[5]
        place_l += window_r.to(tl.int64) * strides_l[1] + window_c.to(tl.int64) * strides_l[2]
        place = (((image.to(tl.int64) * rows + window_r) * columns + window_c) * heads + head) * K * K
        for number in range(K * K):
            target_r, target_c, on_map = _member(window_r, window_c, number, shape, K, PADDING, STRIDE)
            mask = on_map & covers & there
            logit = tl.load(logits + place_l + number * strides_l[4], mask=mask, other=0.0).to(tl.float32)
            weight = tl.exp(logit * scale - tl.load(lse + place + number, mask=mask, other=0.0))
            tile = load_tile(grad, strides_grad, image, target_r, target_c, head, mask, D, PAD_D)
            total += tl.where(mask, weight, 0.0)[:, None] * tile.to(tl.float32)
    store_tile(grad_v, strides_out, image, row, column, head, there, total, D, PAD_D)


@triton.jit
def backward_logits_kernel(
    logits, v, grad, grad_logits, strides_l, strides_v, strides_grad, scale, shape,
    K: tl.constexpr, PADDING: tl.constexpr, STRIDE: tl.constexpr, PAD_K: tl.constexpr,
    D: tl.constexpr, PAD_D: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """Gradient of a block of rows of the logits, each the weights with which a window's pixel receives."""
    _, _, _, heads, rows, columns = shape
    blocks = tl.cdiv(rows * columns * K * K, SIZE)
    head = tl.program_id(0) % heads
    image = tl.program_id(0) // heads // blocks
    place = tl.program_id(0) // heads % blocks * SIZE + tl.arange(0, SIZE)
    there = place < rows * columns * K * K
    number, window = place % (K * K), place // (K * K)
    window_r, window_c = window // columns, window % columns
    target_r, target_c, on_map = _member(window_r, window_c, number, shape, K, PADDING, STRIDE)
    on_map &= there
    tile_grad = load_tile(grad, strides_grad, image, target_r, target_c, head, on_map, D, PAD_D).to(tl.float32)
    weights, _ = _row_of_weights(logits, strides_l, image, window_r, window_c, head, number, there, scale, K, PAD_K)
    sources = tl.arange(0, PAD_K)
    grad_weights = tl.zeros([SIZE, PAD_K], tl.float32)
    for source in range(K * K):
        source_r, source_c, inside = _member(window_r, window_c, source, shape, K, PADDING, STRIDE)
        tile = load_tile(v, strides_v, image, source_r, source_c, head, inside & on_map, D, PAD_D)
        product = tl.sum(tile_grad * tile.to(tl.float32), 1)
        grad_weights = tl.where((sources == source)[None, :], product[:, None], grad_weights)
    result = weights * (grad_weights - tl.sum(weights * grad_weights, 1)[:, None]) * scale
    place = ((image.to(tl.int64) * rows * columns + window) * heads + head) * K * K + number
    mask = there[:, None] & (sources < K * K)[None, :]
    result = result.to(grad_logits.dtype.element_ty)
    tl.store(grad_logits + place[:, None] * K * K + sources[None, :], result, mask=mask)


def forward(
    logits: Tensor, v: Tensor, kernel_size: int, padding: int, stride: int, scale: float
) -> tuple[Tensor, Tensor]:
    """The output, and the logarithm of the sum of each softmax, (B, rows, columns, heads, k * k)."""
    v = dense_channels(v)
    out = torch.empty_like(v, memory_format=torch.contiguous_format)
    # Pixels of a window that are not on the map receive nothing.
    lse = torch.zeros(logits.shape[:5], dtype=torch.float32, device=v.device)
    shape, constants = _cut(logits, v, kernel_size, padding, stride)
    options = settings("outlook_forward", v)
    launch(
        forward_kernel, _blocks(v, options["SIZE"]), v, logits, v, out, lse,
        logits.stride(), strides_of(v), strides_of(out), scale, shape,
        PAD_K=triton.next_power_of_2(kernel_size**2), **constants, **options,
    )  # fmt: skip
    return out, lse


def backward(
    grad: Tensor, logits: Tensor, v: Tensor, lse: Tensor, kernel_size: int, padding: int, stride: int, scale: float
) -> tuple[Tensor, Tensor]:
    """Gradients of logits and values."""
    v, grad = dense_channels(v), dense_channels(grad)
    grad_logits, grad_v = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (logits, v))
    shape, constants = _cut(logits, v, kernel_size, padding, stride)
    options = settings("outlook_backward_v", v)
    launch(
        backward_v_kernel, _blocks(v, options["SIZE"]), v, logits, lse, grad, grad_v,
        logits.stride(), strides_of(grad), strides_of(grad_v), scale, shape, **constants, **options,
    )  # fmt: skip
    options = settings("outlook_backward_logits", v)
    batch, rows, columns, heads, positions = logits.shape[:5]
    launch(
        backward_logits_kernel, batch * heads * -(-rows * columns * positions // options["SIZE"]), v,
        logits, v, grad, grad_logits, logits.stride(), strides_of(v), strides_of(grad), scale, shape,
        PAD_K=triton.next_power_of_2(kernel_size**2), **constants, **options,
    )  # fmt: skip
    return grad_logits, grad_v


def _blocks(v: Tensor, size: int) -> int:
    """Programs that go over the pixels of a map, `size` of one head at a time."""
    batch, height, width, heads, _ = v.shape
    return batch * heads * -(-height * width // size)


def _cut(logits: Tensor, v: Tensor, kernel_size: int, padding: int, stride: int) -> tuple[tuple[int, ...], dict]:
    shape = (*v.shape[:4], *logits.shape[1:3])
    return shape, dict(K=kernel_size, PADDING=padding, STRIDE=stride, D=v.shape[4], PAD_D=padded(v.shape[4]))
