"""What the Triton kernels share: loads and stores of tiles of tokens, and their launch.

Imports Triton, so it is imported by `fused.py` files only.
"""

import contextlib

import torch
import triton
import triton.language as tl
from torch import Tensor

Strides = tuple[int, int, int, int]


@triton.jit
def load_tile(x, strides, image, row, column, head, mask, D: tl.constexpr, PAD_D: tl.constexpr):
    """Tokens of one head of a (B, H, W, heads, D) tensor, [tokens, PAD_D]; zeros where `mask` [tokens] is false."""
    d = tl.arange(0, PAD_D)
    place = image.to(tl.int64) * strides[0] + row.to(tl.int64) * strides[1] + column.to(tl.int64) * strides[2]
    place += head * strides[3]
    return tl.load(x + place[:, None] + d[None, :], mask=mask[:, None] & (d < D)[None, :], other=0.0)


@triton.jit
def store_tile(x, strides, image, row, column, head, mask, tile, D: tl.constexpr, PAD_D: tl.constexpr):
    """The reverse of `load_tile`, in the type of `x`."""
    d = tl.arange(0, PAD_D)
    place = image.to(tl.int64) * strides[0] + row.to(tl.int64) * strides[1] + column.to(tl.int64) * strides[2]
    place += head * strides[3]
    tile = tile.to(x.dtype.element_ty)
    tl.store(x + place[:, None] + d[None, :], tile, mask=mask[:, None] & (d < D)[None, :])


def strides_of(x: Tensor) -> Strides:
    """Strides of batch, rows, columns and heads of a (B, H, W, heads, D) tensor, in elements."""
    return x.stride()[:4]


def dense_channels(x: Tensor) -> Tensor:
    """`x`, or a copy of it, whose last dimension is contiguous."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def contiguous(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


def padded(head_dim: int) -> int:
    """Channels of a tile: a power of two, of at least 16 for the matrix units."""
    return max(16, triton.next_power_of_2(head_dim))


def precision(x: Tensor) -> str:
    """Of products of float32 numbers: exact, unless PyTorch is allowed TF32 for its own."""
    chosen = torch.backends.cuda.matmul.fp32_precision
    if chosen == "none":  # not set apart from all other products
        chosen = torch.backends.fp32_precision
    return "tf32" if x.is_cuda and chosen == "tf32" else "ieee"


def launch(kernel, programs: int, x: Tensor, *args, **options) -> None:
    """Run a kernel's programs on the device of `x`; `options` are its constants and launch settings."""
    if programs == 0:
        return
    with torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext():
        # Triton's default for fused multiply-adds is about to change; results are not to depend on its version.
        kernel[(programs,)](*args, enable_fp_fusion=True, **options)
