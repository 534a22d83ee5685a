"""Attention inside (shifted) windows of a map: Swin, and every family with a window-local branch."""

import torch
from torch import Tensor

from ..checks import check_tensors
from ..dispatch import choose_triton, refuse_double_backward
from ..settings import TILE
from .reference import window_attention_reference

__all__ = ["window_attention"]


def window_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window_size: tuple[int, int],
    shift: tuple[int, int] = (0, 0),
    bias: Tensor | None = None,
    scale: float | None = None,
    pad_key: Tensor | None = None,
    pad_value: Tensor | None = None,
    shared_query: bool = False,
) -> Tensor:
    """Softmax attention inside the windows of a map (Swin, arXiv:2103.14030, section 3.2).

    The map is filled up on the right and bottom to whole windows, rolled by `-shift`, cut into windows, and put back.
    Where the roll joins tokens of opposite borders in one window, these do not attend to each other (-100 on the
    logits). The tokens that fill the map up take part as keys and are dropped as queries.

    Args:
        q, k, v: (B, H, W, num_heads, head_dim), any strides with the last dimension contiguous.
        window_size: rows and columns of a window, in tokens.
        shift: rows and columns of the cyclic shift, in tokens, each less than the window.
        bias: added to the scaled logits, (num_heads, N, N) for the N tokens of a window, query before key.
        scale: factor of the logits; head_dim ** -0.5 when None.
        pad_key, pad_value: key and value of the tokens that fill the map up, (num_heads, head_dim); zeros when None.
        shared_query: q holds one window of queries per image, (B, *window_size, num_heads, head_dim), which stands in
            every window of that image (GC ViT, arXiv:2206.09959, section 3.2).

    Returns:
        (B, H, W, num_heads, head_dim) for the H and W of k and v, contiguous.

    Raises:
        ValueError: shapes, types or devices that do not belong together; says which and what was expected.
    """
    check_tensors("window_attention", dict(q=q, k=k, v=v), dict(bias=bias, pad_key=pad_key, pad_value=pad_value))
    queries = (k.shape[0], *window_size, *k.shape[3:]) if shared_query else k.shape
    if k.dim() != 5 or k.shape != v.shape or q.shape != queries:
        expected = f"q of shape {queries} and k and v" if shared_query and k.dim() == 5 else "q, k and v"
        raise ValueError(
            f"window_attention expects {expected} of one shape (B, H, W, num_heads, head_dim), but got "
            f"q {tuple(q.shape)}, k {tuple(k.shape)} and v {tuple(v.shape)}."
        )
    num_heads, head_dim = k.shape[3], k.shape[4]
    tokens = window_size[0] * window_size[1]
    if not (0 <= shift[0] < window_size[0] and 0 <= shift[1] < window_size[1]):
        raise ValueError(f"window_attention expects 0 <= shift < window_size {window_size}, but got shift {shift}.")
    for name, value, expected in (
        ("bias", bias, (num_heads, tokens, tokens)),
        ("pad_key", pad_key, (num_heads, head_dim)),
        ("pad_value", pad_value, (num_heads, head_dim)),
    ):
        if value is not None and value.shape != expected:
            raise ValueError(f"window_attention expects {name} of shape {expected}, but got {tuple(value.shape)}.")
    if choose_triton("window_attention", k):
        factor = head_dim**-0.5 if scale is None else scale
        return _op(q, k, v, bias, pad_key, pad_value, window_size, shift, factor, shared_query)[0]
    return window_attention_reference(q, k, v, window_size, shift, bias, scale, pad_key, pad_value, shared_query)


_INPUTS = "Tensor q, Tensor k, Tensor v, Tensor? bias, Tensor? pad_key, Tensor? pad_value"
_SETTINGS = "int[] window_size, int[] shift, float scale, bool shared_query"


@torch.library.custom_op(
    "zoo::window_attention", mutates_args=(), schema=f"({_INPUTS}, {_SETTINGS}) -> (Tensor out, Tensor lse)"
)
def _op(*arguments) -> tuple[Tensor, Tensor]:
    from .fused import forward  # Triton is imported at the first launch

    return forward(*arguments)


@_op.register_fake
def _(q, k, v, bias, pad_key, pad_value, window_size, shift, scale, shared_query):
    rows = k.shape[:4] if window_size[0] * window_size[1] > TILE else (0,)
    return k.new_empty(k.shape), k.new_empty(rows, dtype=torch.float32)


@torch.library.custom_op(
    "zoo::window_attention_backward",
    mutates_args=(),
    schema=f"(Tensor grad, {_INPUTS}, Tensor out, Tensor lse, {_SETTINGS}) -> "
    "(Tensor q, Tensor k, Tensor v, Tensor bias, Tensor pad_key, Tensor pad_value)",
)
def _op_backward(*arguments) -> tuple[Tensor, ...]:
    from .fused import backward

    return backward(*arguments)


@_op_backward.register_fake
def _(grad, q, k, v, bias, pad_key, pad_value, out, lse, window_size, shift, scale, shared_query):
    # No optional results in a schema: what is None has a gradient of no elements.
    return tuple(k.new_empty(0) if x is None else x.new_empty(x.shape) for x in (q, k, v, bias, pad_key, pad_value))


def _save(ctx, inputs, output) -> None:
    *tensors, ctx.window_size, ctx.shift, ctx.scale, ctx.shared_query = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.set_materialize_grads(False)


def _differentiate(ctx, grad: Tensor, _) -> tuple[Tensor | None, ...]:
    settings = (ctx.window_size, ctx.shift, ctx.scale, ctx.shared_query)
    saved = ctx.saved_tensors  # once: checkpointing gives them once
    grads = _op_backward(grad, *saved, *settings)
    return (*(None if x is None else g for x, g in zip(saved, grads)), None, None, None, None)


_op.register_autograd(_differentiate, setup_context=_save)
refuse_double_backward(_op_backward)
