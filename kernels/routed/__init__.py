"""Attention from each region of a map to the regions that were chosen for it: BiFormer."""

from torch import Tensor

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
        ValueError: shapes that do not belong together; says which and what was expected.
    """
    rows, columns = (regions, regions) if isinstance(regions, int) else regions
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
    return routed_attention_reference(q, k, v, routes, (rows, columns), scale)
