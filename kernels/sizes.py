"""Arithmetic on sizes that may be symbols, in graphs that are exported for many sizes."""

import torch
from torch import Tensor


def is_zero(length: int | torch.SymInt) -> bool:
    """Whether a length is zero; of a symbol, whether it is for every size that the graph is for."""
    if not isinstance(length, torch.SymInt):
        return length == 0
    from torch.fx.experimental.symbolic_shapes import statically_known_true  # imports SymPy

    return statically_known_true(length == 0)


def ceil_div(length: int | torch.SymInt, step: int) -> int | torch.SymInt:
    """How many steps cover a length. Not `-(-length // step)`: ONNX rounds quotients towards zero."""
    return (length + step - 1) // step


def crop(x: Tensor, height: int | torch.SymInt, width: int | torch.SymInt) -> Tensor:
    """The first rows and columns of a map (B, H, W, ...)."""
    if not (isinstance(height, torch.SymInt) or isinstance(width, torch.SymInt)):
        return x[:, :height, :width]
    # Whether a slice is contiguous depends on the size, so that its graph would be for some sizes alone.
    for axis, length in ((1, height), (2, width)):
        if not is_zero(x.shape[axis] - length):
            x = x.index_select(axis, torch.arange(length, device=x.device))
    return x
