"""Launches of the Triton kernels of neighbourhood attention and aggregation; `device.py` says how these work."""

import torch
import triton
from torch import Tensor

from ..settings import settings
from ..tiles import contiguous, dense_channels, launch, padded, precision, strides_of
from .device import SIDE, backward_bias_kernel, backward_kv_kernel, backward_q_kernel, forward_kernel


def forward(
    q: Tensor | None,
    k: Tensor | None,
    v: Tensor,
    bias: Tensor | None,
    weights: Tensor | None,
    kernel_size: int,
    dilation: int,
    scale: float,
    softmax: bool,
) -> tuple[Tensor, Tensor]:
    """The output, and after a softmax the logarithm of each row's sum, (B, H, W, heads).

    An attention has q, k and perhaps a bias, an aggregation has weights.
    """
    q, k, v = (None if x is None else dense_channels(x) for x in (q, k, v))
    bias = contiguous(bias)
    out = torch.empty_like(v, memory_format=torch.contiguous_format)
    lse = torch.empty(v.shape[:4] if softmax else 0, dtype=torch.float32, device=v.device)
    shape = (*v.shape[:4], dilation)
    chosen = settings("neighborhood_forward" if softmax else "aggregate_forward", v)
    launch(
        forward_kernel, _tiles(shape) * shape[3], v, q, k, v, bias, weights, out, lse,
        *_all_strides(q, k, v, weights), strides_of(out), scale, shape,
        SOFTMAX=softmax, **_constants(v, kernel_size), **chosen,
    )  # fmt: skip
    return out, lse


def backward(
    grad: Tensor,
    q: Tensor | None,
    k: Tensor | None,
    v: Tensor,
    bias: Tensor | None,
    weights: Tensor | None,
    out: Tensor,
    lse: Tensor,
    kernel_size: int,
    dilation: int,
    scale: float,
    softmax: bool,
) -> tuple[Tensor, ...]:
    """Gradients of q, k, v, bias and weights; without elements for what is None."""
    q, k, v, grad = (None if x is None else dense_channels(x) for x in (q, k, v, grad))
    bias = contiguous(bias)
    grad_q, grad_k, grad_v, grad_w = (
        v.new_empty(0) if x is None else torch.empty_like(x, memory_format=torch.contiguous_format)
        for x in (q, k, v, weights)
    )
    delta = torch.empty_like(lse)
    shape = (*v.shape[:4], dilation)
    tiles, heads = _tiles(shape), shape[3]
    strides = *_all_strides(q, k, v, weights), strides_of(grad)
    constants = _constants(v, kernel_size)
    launch(
        backward_q_kernel, tiles * heads, v, q, k, v, bias, weights, out, lse, grad, delta, grad_q, grad_w,
        *strides, strides_of(out), (0,) * 5 if weights is None else grad_w.stride(), scale, shape,
        SOFTMAX=softmax, **constants, **settings("neighborhood_backward_q", v),
    )  # fmt: skip
    launch(
        backward_kv_kernel, tiles * heads, v, q, k, v, bias, weights, lse, grad, delta, grad_k, grad_v,
        *strides, strides_of(out), scale, shape,
        SOFTMAX=softmax, **constants, **settings("neighborhood_backward_kv", v),
    )  # fmt: skip
    if bias is None:
        return grad_q, grad_k, grad_v, v.new_empty(0), grad_w
    # Blocks of keys relative to a tile: those between, and as many before and after as a window at the border reaches.
    radius, side = kernel_size // 2, SIDE.value
    before = radius + -(-(kernel_size - 1 - radius) // side) * side
    blocks = -(-(before + side + kernel_size - 1) // side)
    options = settings("neighborhood_backward_bias", v)
    runs = max(1, min(tiles, options.pop("programs") // (heads * blocks**2)))
    run = -(-tiles // runs)
    runs = -(-tiles // max(1, run))
    part = torch.empty(runs, heads, blocks, blocks, side, side, side, side, dtype=torch.float32, device=v.device)
    launch(
        backward_bias_kernel, runs * heads * blocks**2, v, q, k, v, bias, lse, grad, delta, part,
        *strides[:3], strides_of(grad), scale, shape, tiles, run,
        BEFORE=before, BLOCKS=blocks, **constants, **options,
    )  # fmt: skip
    # (heads, query row, key row, query column, key column), then sums over all pairs of the same relative place
    total = part.sum(0).permute(0, 3, 1, 5, 4, 2, 6).flatten(5, 6).flatten(2, 3)
    grad_bias = _sum_diagonals(_sum_diagonals(total, before, kernel_size), before, kernel_size)
    return grad_q, grad_k, grad_v, grad_bias.to(bias.dtype), grad_w


def _sum_diagonals(x: Tensor, before: int, kernel_size: int) -> Tensor:
    """(heads, queries, keys, …) to (heads, …, 2 * kernel_size - 1): sums by key - query, from 1 - kernel_size on.

    The first key is `before` places before the first query.
    """
    query = torch.arange(x.shape[1], device=x.device)
    key = before + torch.arange(1 - kernel_size, kernel_size, device=x.device)[:, None] + query
    inside = (key >= 0) & (key < x.shape[2])
    picked = x.movedim((1, 2), (-2, -1))[..., query, key.clamp(0, x.shape[2] - 1)]
    return picked.where(inside, 0).sum(-1)


def _tiles(shape: tuple[int, ...]) -> int:
    """Tiles of queries of a head."""
    batch, height, width, _, dilation = shape
    rows, columns = (triton.cdiv(triton.cdiv(side, dilation), SIDE.value) for side in (height, width))
    return batch * dilation**2 * rows * columns


def _all_strides(q: Tensor | None, k: Tensor | None, v: Tensor, weights: Tensor | None) -> tuple:
    first = ((0,) * 4, (0,) * 4) if q is None else (strides_of(q), strides_of(k))
    return *first, strides_of(v), (0,) * 5 if weights is None else weights.stride()


def _constants(v: Tensor, kernel_size: int) -> dict:
    return dict(K=kernel_size, D=v.shape[4], PAD_D=padded(v.shape[4]), PRECISION=precision(v))
