"""Outlook attention: weights of a neighbourhood that come straight from its centre, without queries and keys (VOLO)."""

from torch import Tensor

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
        ValueError: shapes that do not belong together; says which and what was expected.
    """
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
    return outlook_attention_reference(logits, v, kernel_size, padding, stride, scale)
