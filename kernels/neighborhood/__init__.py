"""Attention to, and aggregation over, the window around each position: NAT, DiNAT, OverLoCK."""

import torch
from torch import Tensor

from ..checks import check_tensors
from ..dispatch import choose_triton, refuse_double_backward
from .reference import (
    neighborhood_aggregate_reference,
    neighborhood_attention_reference,
    neighborhood_scores_reference,
)

__all__ = ["neighborhood_aggregate", "neighborhood_attention", "neighborhood_scores"]


def neighborhood_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kernel_size: int,
    dilation: int = 1,
    bias: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Softmax attention of every position to the kernel_size x kernel_size positions around it (NAT, arXiv:2204.07143).

    The window is centred on its query and pushed inwards at a border, so it is always full: nothing is masked, nothing
    is filled up. With a dilation (DiNAT, arXiv:2209.15001) rows and columns fall into `dilation` interleaved classes
    each, position modulo dilation, and all of this happens among the positions of one class.

    Args:
        q, k, v: (B, H, W, num_heads, head_dim), any strides with the last dimension contiguous.
        kernel_size: side of the window, odd, in positions of a class.
        dilation: step of the window, in positions of the map; kernel_size * dilation fits into H and W.
        bias: added to the scaled logits by relative position, (num_heads, 2 * kernel_size - 1, 2 * kernel_size - 1);
            its middle is the query's own position, and it is key minus query, in steps of the dilation.
        scale: factor of the logits; head_dim ** -0.5 when None.

    Returns:
        (B, H, W, num_heads, head_dim), contiguous.

    Raises:
        ValueError: shapes, types or devices that do not belong together; says which and what was expected.
    """
    check_tensors("neighborhood_attention", dict(q=q, k=k, v=v), dict(bias=bias))
    if q.dim() != 5 or q.shape != k.shape or q.shape != v.shape:
        raise ValueError(
            "neighborhood_attention expects q, k and v of one shape (B, H, W, num_heads, head_dim), but got "
            f"q {tuple(q.shape)}, k {tuple(k.shape)} and v {tuple(v.shape)}."
        )
    _check_window("neighborhood_attention", v, kernel_size, dilation)
    _check_bias("neighborhood_attention", bias, q, kernel_size)
    if choose_triton("neighborhood_attention", q):
        factor = q.shape[4] ** -0.5 if scale is None else scale
        return _op(q, k, v, bias, None, kernel_size, dilation, factor, True)[0]
    if q.is_meta:
        q, k = q.reshape(-1, 1, q.shape[4]), k.reshape(-1, k.shape[4], 1).expand(-1, -1, kernel_size**2)
        return _aggregate_on_meta(torch.bmm(q, k), v)
    return neighborhood_attention_reference(q, k, v, kernel_size, dilation, bias, scale)


def neighborhood_scores(
    q: Tensor, k: Tensor, kernel_size: int, dilation: int = 1, bias: Tensor | None = None, scale: float | None = None
) -> Tensor:
    """The logits of `neighborhood_attention` before their softmax, for code that works on the weights themselves.

    `neighborhood_aggregate` with softmax=True makes the attention of them. PyTorch computes them on every device: what
    is fused in a kernel never writes them.

    Args:
        q, k, kernel_size, dilation, bias, scale: as in `neighborhood_attention`.

    Returns:
        (B, H, W, num_heads, kernel_size ** 2), contiguous, the elements of a window row by row.

    Raises:
        ValueError: shapes, types or devices that do not belong together; says which and what was expected.
    """
    check_tensors("neighborhood_scores", dict(q=q, k=k), dict(bias=bias))
    if q.dim() != 5 or q.shape != k.shape:
        raise ValueError(
            "neighborhood_scores expects q and k of one shape (B, H, W, num_heads, head_dim), but got "
            f"q {tuple(q.shape)} and k {tuple(k.shape)}."
        )
    _check_window("neighborhood_scores", q, kernel_size, dilation)
    _check_bias("neighborhood_scores", bias, q, kernel_size)
    return neighborhood_scores_reference(q, k, kernel_size, dilation, bias, scale)


def neighborhood_aggregate(
    weights: Tensor, v: Tensor, kernel_size: int, dilation: int = 1, softmax: bool = False
) -> Tensor:
    """Sum of the kernel_size x kernel_size values around every position, each position with weights of its own.

    The window is that of `neighborhood_attention`, with its elements counted row by row. The weights are used as they
    are, or after a softmax over the window.

    Args:
        weights: (B, H, W, num_heads, kernel_size ** 2), any strides.
        v: (B, H, W, num_heads, head_dim), any strides.
        kernel_size, dilation: side of the window and its step, as in `neighborhood_attention`.
        softmax: whether `weights` are logits, of which the weights are the softmax.

    Returns:
        (B, H, W, num_heads, head_dim), contiguous.

    Raises:
        ValueError: shapes, types or devices that do not belong together; says which and what was expected.
    """
    check_tensors("neighborhood_aggregate", dict(v=v), dict(weights=weights))
    if v.dim() != 5 or weights.shape != (*v.shape[:4], kernel_size**2):
        raise ValueError(
            "neighborhood_aggregate expects v (B, H, W, num_heads, head_dim) and weights (B, H, W, num_heads, "
            f"{kernel_size**2}), but got v {tuple(v.shape)} and weights {tuple(weights.shape)}."
        )
    _check_window("neighborhood_aggregate", v, kernel_size, dilation)
    if choose_triton("neighborhood_aggregate", v):
        return _op(None, None, v, None, weights, kernel_size, dilation, 1.0, softmax)[0]
    if v.is_meta:
        return _aggregate_on_meta(weights, v)
    if softmax:
        weights = weights.softmax(-1)
    return neighborhood_aggregate_reference(weights, v, kernel_size, dilation)


def _check_window(operator: str, v: Tensor, kernel_size: int, dilation: int) -> None:
    if kernel_size < 1 or kernel_size % 2 == 0 or dilation < 1:
        raise ValueError(
            f"{operator} expects an odd kernel_size and a dilation of at least 1, but got kernel_size {kernel_size} "
            f"and dilation {dilation}."
        )
    if v.shape[1] < kernel_size * dilation or v.shape[2] < kernel_size * dilation:
        raise ValueError(
            f"{operator} expects a map of at least kernel_size * dilation = {kernel_size * dilation} positions a side, "
            f"but got {v.shape[1]} x {v.shape[2]}. Fill the map up, or reduce the dilation: the largest that fits is "
            f"{min(v.shape[1], v.shape[2]) // kernel_size}."
        )


def _check_bias(operator: str, bias: Tensor | None, q: Tensor, kernel_size: int) -> None:
    expected = (q.shape[3], 2 * kernel_size - 1, 2 * kernel_size - 1)
    if bias is not None and bias.shape != expected:
        raise ValueError(f"{operator} expects bias of shape {expected}, but got {tuple(bias.shape)}.")


def _aggregate_on_meta(weights: Tensor, v: Tensor) -> Tensor:
    """The result's shape, at the cost of the definition: as many products as a window has elements.

    Where only shapes and costs are asked for, what blocks compute besides and mask is not to be counted.
    """
    weights = weights.reshape(v.shape[:4].numel(), 1, -1)
    values = v.reshape(-1, 1, v.shape[4]).expand(-1, weights.shape[2], -1)
    return torch.bmm(weights, values).view(v.shape)


# Attention of q to k, with or without a bias, or aggregation by weights; the others are None.
_INPUTS = "Tensor? q, Tensor? k, Tensor v, Tensor? bias, Tensor? weights"
_SETTINGS = "int kernel_size, int dilation, float scale, bool softmax"


@torch.library.custom_op(
    "zoo::neighborhood", mutates_args=(), schema=f"({_INPUTS}, {_SETTINGS}) -> (Tensor out, Tensor lse)"
)
def _op(*arguments) -> tuple[Tensor, Tensor]:
    from .fused import forward  # Triton is imported at the first launch

    return forward(*arguments)


@_op.register_fake
def _(q, k, v, bias, weights, kernel_size, dilation, scale, softmax):
    return v.new_empty(v.shape), v.new_empty(v.shape[:4] if softmax else 0, dtype=torch.float32)


@torch.library.custom_op(
    "zoo::neighborhood_backward",
    mutates_args=(),
    schema=f"(Tensor grad, {_INPUTS}, Tensor out, Tensor lse, {_SETTINGS}) -> "
    "(Tensor q, Tensor k, Tensor v, Tensor bias, Tensor weights)",
)
def _op_backward(*arguments) -> tuple[Tensor, ...]:
    from .fused import backward

    return backward(*arguments)


@_op_backward.register_fake
def _(grad, q, k, v, bias, weights, out, lse, kernel_size, dilation, scale, softmax):
    # No optional results in a schema: what is None has a gradient of no elements.
    return tuple(v.new_empty(0) if x is None else x.new_empty(x.shape) for x in (q, k, v, bias, weights))


def _save(ctx, inputs, output) -> None:
    *tensors, ctx.kernel_size, ctx.dilation, ctx.scale, ctx.softmax = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.set_materialize_grads(False)


def _differentiate(ctx, grad: Tensor, _) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors  # once: checkpointing gives them once
    grads = _op_backward(grad, *saved, ctx.kernel_size, ctx.dilation, ctx.scale, ctx.softmax)
    return (*(None if x is None else g for x, g in zip(saved, grads)), None, None, None, None)


_op.register_autograd(_differentiate, setup_context=_save)
refuse_double_backward(_op_backward)
