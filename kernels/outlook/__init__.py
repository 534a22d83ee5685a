"""Outlook attention: weights of a neighbourhood that come straight from its centre, without queries and keys (VOLO)."""

import torch
from torch import Tensor

from ..checks import check_tensors
from ..dispatch import choose_triton, refuse_double_backward
from .reference import outlook_attention_reference

__all__ = ["outlook_attention"]


def outlook_attention(
    logits: Tensor,
    v: Tensor,
    kernel_size: int = 3,
    padding: int = 1,
    stride: int = 2,
    scale: float | None = None,
) -> Tensor:
    """Mix the pixels inside each window with given weights, and add up where windows overlap (VOLO, arXiv:2106.13112).

    Window (i, j) covers rows stride * i - padding to stride * i - padding + k - 1, and columns likewise; its pixels are
    numbered row by row. With A = softmax(scale * logits) over the last dimension, window (i, j) gives to its pixel p
    the sum over q of A[i, j, p, q] * v[pixel q], and a pixel receives the plain sum over the windows that cover it.
    Pixels outside the map have value 0 but keep their share of the softmax; what they would receive is dropped.

    Args:
        logits: (B, h, w, num_heads, k * k, k * k), receiving position p before source position q, with
            h = (H + 2 * padding - k) // stride + 1 and w likewise; any strides.
        v: (B, H, W, num_heads, head_dim), any strides with the last dimension contiguous.
        kernel_size: k, side of a window, in pixels of the map.
        padding: rows and columns by which the first window stands over the border.
        stride: from one window to the next.
        scale: factor of the logits; head_dim ** -0.5 when None.

    Returns:
        (B, H, W, num_heads, head_dim), contiguous, in the dtype of `v`.

    Raises:
        ValueError: shapes, types or devices that do not belong together; says which and what was expected.
    """
    check_tensors("outlook_attention", dict(v=v), dict(logits=logits))
    if v.dim() != 5:
        raise ValueError(
            f"outlook_attention expects v of shape (B, H, W, num_heads, head_dim), but got {tuple(v.shape)}."
        )
    if kernel_size < 1 or stride < 1 or not 0 <= padding < kernel_size:
        raise ValueError(
            "outlook_attention expects kernel_size and stride of at least 1 and 0 <= padding < kernel_size, but got "
            f"kernel_size {kernel_size}, padding {padding} and stride {stride}."
        )
    rows, columns = ((side + 2 * padding - kernel_size) // stride + 1 for side in v.shape[1:3])
    if rows < 1 or columns < 1:
        raise ValueError(
            f"outlook_attention expects a map that a window of {kernel_size} fits into with padding {padding}, but got "
            f"v {tuple(v.shape)}."
        )
    expected = (v.shape[0], rows, columns, v.shape[3], kernel_size**2, kernel_size**2)
    if logits.shape != expected:
        raise ValueError(
            f"outlook_attention expects logits of shape {expected} for v {tuple(v.shape)}, kernel_size {kernel_size}, "
            f"padding {padding} and stride {stride}, but got {tuple(logits.shape)}."
        )
    if choose_triton("outlook_attention", v):
        factor = v.shape[4] ** -0.5 if scale is None else scale
        return _op(logits, v, kernel_size, padding, stride, factor)[0]
    return outlook_attention_reference(logits, v, kernel_size, padding, stride, scale)


_SETTINGS = "int kernel_size, int padding, int stride, float scale"


@torch.library.custom_op(
    "zoo::outlook_attention",
    mutates_args=(),
    schema=f"(Tensor logits, Tensor v, {_SETTINGS}) -> (Tensor out, Tensor lse)",
)
def _op(*arguments) -> tuple[Tensor, Tensor]:
    from .fused import forward  # Triton is imported at the first launch

    return forward(*arguments)


@_op.register_fake
def _(logits, v, kernel_size, padding, stride, scale):
    return v.new_empty(v.shape), v.new_empty(logits.shape[:5], dtype=torch.float32)


@torch.library.custom_op(
    "zoo::outlook_attention_backward",
    mutates_args=(),
    schema=f"(Tensor grad, Tensor logits, Tensor v, Tensor lse, {_SETTINGS}) -> (Tensor logits, Tensor v)",
)
def _op_backward(*arguments) -> tuple[Tensor, Tensor]:
    from .fused import backward

    return backward(*arguments)


@_op_backward.register_fake
def _(grad, logits, v, lse, kernel_size, padding, stride, scale):
    return logits.new_empty(logits.shape), v.new_empty(v.shape)


def _save(ctx, inputs, output) -> None:
    logits, v, *ctx.settings = inputs
    ctx.save_for_backward(logits, v, output[1])
    ctx.set_materialize_grads(False)


def _differentiate(ctx, grad: Tensor, _) -> tuple[Tensor | None, ...]:
    return *_op_backward(grad, *ctx.saved_tensors, *ctx.settings), None, None, None, None


_op.register_autograd(_differentiate, setup_context=_save)
refuse_double_backward(_op_backward)
