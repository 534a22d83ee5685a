"""Attention from each region of a map to the regions that were chosen for it: BiFormer."""

import torch
from torch import Tensor

from ..checks import check_tensors
from ..dispatch import DEBUG, choose_triton, is_transformed, refuse_double_backward
from .reference import routed_attention_reference

__all__ = ["routed_attention"]


def routed_attention(
    q: Tensor, k: Tensor, v: Tensor, routes: Tensor, regions: int | tuple[int, int], scale: float | None = None
) -> Tensor:
    """Softmax attention from every pixel of a region to all pixels of its chosen regions (arXiv:2303.08810, 3.2).

    Args:
        q, k, v: (B, H, W, num_heads, head_dim), any strides with the last dimension contiguous.
        routes: the regions that each region attends to, (B, rows * columns, top_k), integers; regions count row by row.
            A region that is named twice counts twice.
        regions: rows and columns of regions on the map, or one number for both; they divide H and W.
        scale: factor of the logits; head_dim ** -0.5 when None.

    Returns:
        (B, H, W, num_heads, head_dim), contiguous.

    Raises:
        ValueError: shapes, types or devices that do not belong together; says which and what was expected. Routes out
            of range, too, on a CPU; on a GPU, which would have to be waited for, if BACKBONES_KERNELS_DEBUG=1 is set.
    """
    rows, columns = (regions, regions) if isinstance(regions, int) else regions
    check_tensors("routed_attention", dict(q=q, k=k, v=v))
    if q.dim() != 5 or q.shape != k.shape or q.shape != v.shape:
        raise ValueError(
            "routed_attention expects q, k and v of one shape (B, H, W, num_heads, head_dim), but got "
            f"q {tuple(q.shape)}, k {tuple(k.shape)} and v {tuple(v.shape)}."
        )
    if rows < 1 or columns < 1 or q.shape[1] % rows or q.shape[2] % columns:
        raise ValueError(
            f"routed_attention expects a map that {rows} x {columns} regions divide evenly, but got "
            f"{q.shape[1]} x {q.shape[2]} pixels."
        )
    if routes.dim() != 3 or routes.shape[0] != q.shape[0] or routes.shape[1] != rows * columns or routes.shape[2] < 1:
        raise ValueError(
            f"routed_attention expects routes of shape ({q.shape[0]}, {rows * columns}, top_k), but got "
            f"{tuple(routes.shape)}."
        )
    if routes.is_floating_point() or routes.is_complex():
        raise ValueError(f"routed_attention expects routes of an integer type, but got {routes.dtype}.")
    if routes.device != q.device:
        raise ValueError(
            f"routed_attention expects all tensors on one device, but got q on {q.device}, routes on {routes.device}."
        )
    if DEBUG or routes.device.type == "cpu":
        _check_routes(routes, rows * columns)
    if choose_triton("routed_attention", q):
        factor = q.shape[4] ** -0.5 if scale is None else scale
        return _op(q, k, v, routes, rows, columns, factor)[0]
    return routed_attention_reference(q, k, v, routes, (rows, columns), scale)


def _check_routes(routes: Tensor, regions: int) -> None:
    if routes.numel() == 0 or torch.compiler.is_compiling() or torch.jit.is_tracing() or is_transformed(routes):
        return
    lowest, highest = (int(x) for x in routes.aminmax())
    if lowest < 0 or highest >= regions:
        raise ValueError(
            f"routed_attention expects routes to regions 0 to {regions - 1}, but got {lowest} to {highest}."
        )


_INPUTS, _SETTINGS = "Tensor q, Tensor k, Tensor v, Tensor routes", "int rows, int columns, float scale"


@torch.library.custom_op(
    "zoo::routed_attention", mutates_args=(), schema=f"({_INPUTS}, {_SETTINGS}) -> (Tensor out, Tensor lse)"
)
def _op(*arguments) -> tuple[Tensor, Tensor]:
    from .fused import forward  # Triton is imported at the first launch

    return forward(*arguments)


@_op.register_fake
def _(q, k, v, routes, rows, columns, scale):
    return q.new_empty(q.shape), q.new_empty(q.shape[:4], dtype=torch.float32)


@torch.library.custom_op(
    "zoo::routed_attention_backward",
    mutates_args=(),
    schema=f"(Tensor grad, {_INPUTS}, Tensor out, Tensor lse, {_SETTINGS}) -> (Tensor q, Tensor k, Tensor v)",
)
def _op_backward(*arguments) -> tuple[Tensor, Tensor, Tensor]:
    from .fused import backward

    return backward(*arguments)


@_op_backward.register_fake
def _(grad, q, k, v, routes, out, lse, rows, columns, scale):
    return tuple(x.new_empty(x.shape) for x in (q, k, v))


def _save(ctx, inputs, output) -> None:
    *tensors, ctx.rows, ctx.columns, ctx.scale = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.set_materialize_grads(False)


def _differentiate(ctx, grad: Tensor, _) -> tuple[Tensor | None, ...]:
    return *_op_backward(grad, *ctx.saved_tensors, ctx.rows, ctx.columns, ctx.scale), None, None, None, None


_op.register_autograd(_differentiate, setup_context=_save)
refuse_double_backward(_op_backward)
