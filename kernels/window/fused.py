"""Launches of the Triton kernels of window attention; `device.py` says how these cut the map."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..settings import TILE, settings
from ..tiles import contiguous, dense_channels, launch, padded, precision, strides_of
from .device import backward_bias_kernel, backward_kernel, backward_kv_kernel, backward_q_kernel, forward_kernel


@dataclass
class Cut:
    """How a map is cut into units of windows, and what all kernels are told of it."""

    shape: tuple[int, ...]  # for `_locate`
    tokens: int  # of a window
    constants: dict

    @property
    def windows(self) -> int:
        batch, _, _, rows, columns, _ = self.shape
        return batch * rows * columns

    def blocks(self, pack: int = 1) -> int:
        """Blocks of queries, or of keys, of a unit of `pack` windows."""
        return -(-pack * self.tokens // TILE)


def cut_map(k: Tensor, window_size: Sequence[int], shift: Sequence[int], shared_query: bool) -> Cut:
    batch, height, width, heads, head_dim = k.shape
    rows, columns = -(-height // window_size[0]), -(-width // window_size[1])
    constants = dict(
        WINDOW=tuple(window_size), SHIFT=tuple(shift), SHARED=shared_query,
        D=head_dim, PAD_D=padded(head_dim), PRECISION=precision(k),
    )  # fmt: skip
    return Cut((batch, height, width, rows, columns, heads), window_size[0] * window_size[1], constants)


def pack_windows(cut: Cut, alone: bool) -> int:
    """Windows of a unit: as many as a tile holds if each is on its own, with nothing to sum over windows."""
    return TILE // cut.tokens if alone and cut.tokens < TILE else 1


def split(inner: int, groups: int, others: int, programs: int) -> tuple[int, tuple[int, int, int]]:
    """How programs share `groups` times `inner` units, if `others` programs do each, and about `programs` are wanted.

    Returns the runs in all, and what `_first_and_last` needs: units of a run, and runs and units of a group.
    """
    splits = max(1, min(inner, programs // (groups * others)))
    run = -(-inner // splits)
    splits = -(-inner // run)
    return groups * splits, (run, splits, inner)


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    pad_key: Tensor | None,
    pad_value: Tensor | None,
    window_size: Sequence[int],
    shift: Sequence[int],
    scale: float,
    shared_query: bool,
) -> tuple[Tensor, Tensor]:
    """The output, and for windows of more than a tile the logarithm of each row's sum, (B, H, W, heads)."""
    cut = cut_map(k, window_size, shift, shared_query)
    out = torch.empty_like(k, memory_format=torch.contiguous_format)
    lse = torch.empty(k.shape[:4] if cut.tokens > TILE else 0, dtype=torch.float32, device=k.device)
    if k.numel() == 0:
        return out, lse
    q, k, v = dense_channels(q), dense_channels(k), dense_channels(v)
    pack = pack_windows(cut, bias is None)
    size = min(TILE, padded(pack * cut.tokens))
    others = cut.blocks(pack) * cut.shape[5]
    options = settings("window_forward", k, size)
    runs, (run, _, units) = split(-(-cut.windows // pack), 1, others, options.pop("programs"))
    launch(
        forward_kernel, runs * others, k, q, k, v, contiguous(bias), contiguous(pad_key), contiguous(pad_value),
        out, lse if cut.tokens > TILE else None, strides_of(q), strides_of(k), strides_of(v), strides_of(out),
        scale, cut.shape, run, units, PACK=pack, SIZE=size, **cut.constants, **options,
    )  # fmt: skip
    return out, lse


def backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    pad_key: Tensor | None,
    pad_value: Tensor | None,
    out: Tensor,
    lse: Tensor,
    window_size: Sequence[int],
    shift: Sequence[int],
    scale: float,
    shared_query: bool,
) -> tuple[Tensor, ...]:
    """Gradients of q, k, v, bias, pad_key and pad_value; without elements for what is None."""
    inputs = (q, k, v, bias, pad_key, pad_value)
    if k.numel() == 0:
        return tuple(k.new_empty(0) if x is None else x.new_zeros(x.shape) for x in inputs)
    cut = cut_map(k, window_size, shift, shared_query)
    batch, height, width, _, _, heads = cut.shape
    inputs = tuple(dense_channels(x) for x in inputs[:3]) + tuple(contiguous(x) for x in inputs[3:])
    grad = dense_channels(grad)
    filled = (pad_key is not None or pad_value is not None) and (height % window_size[0] or width % window_size[1])
    backward = backward_of_tiles if cut.tokens <= TILE else backward_of_blocks
    grad_q, grad_k, grad_v, part_q, part_bias, part_pad = backward(grad, inputs, out, lse, cut, scale, filled)
    if shared_query:
        grad_q = part_q.view(batch, -1, *q.shape[1:]).sum(1).to(q.dtype)
    grad_bias = k.new_empty(0) if bias is None else part_bias.sum(0).to(bias.dtype)
    pads = part_pad.sum(0).to(k.dtype).unbind(1) if filled else (k.new_zeros(heads, k.shape[4]),) * 2
    pads = (k.new_empty(0) if x is None else pad.clone() for x, pad in zip((pad_key, pad_value), pads))
    return grad_q, grad_k, grad_v, grad_bias, *pads


def new_gradients(inputs: tuple[Tensor | None, ...], shared_query: bool) -> list[Tensor | None]:
    """Of q, unless all windows share it, k and v."""
    q, k, v = inputs[:3]
    return [
        None if x is None else torch.empty_like(x, memory_format=torch.contiguous_format)
        for x in (None if shared_query else q, k, v)
    ]


def new_sums(count: int, like: Tensor, *shape: int) -> Tensor:
    """What `count` programs contribute to a sum, each a tensor of `shape`."""
    return torch.empty((count, *shape), dtype=torch.float32, device=like.device)


def backward_of_tiles(
    grad: Tensor, inputs: tuple[Tensor | None, ...], out: Tensor, lse: Tensor, cut: Cut, scale: float, filled: bool
) -> tuple[Tensor | None, ...]:
    """Gradients of q, k and v, and parts of the sums for those of a shared q, the bias, and the padding."""
    q, k, v, bias, _, _ = inputs
    shared, heads = cut.constants["SHARED"], cut.shape[5]
    pack = pack_windows(cut, bias is None and not shared)
    size = min(TILE, padded(pack * cut.tokens))
    groups = cut.shape[0] if shared else 1
    options = settings("window_backward", k, size)
    runs, share = split(-(-cut.windows // groups // pack), groups, heads, options.pop("programs"))
    grads = new_gradients(inputs, shared)
    part_q = new_sums(runs, k, *q.shape[1:]) if shared else None
    part_bias = None if bias is None else new_sums(runs, k, *bias.shape)
    part_pad = new_sums(runs, k, heads, 2, k.shape[4]) if filled else None
    launch(
        backward_kernel, runs * heads, k, *inputs, grad, *grads, part_q, part_bias, part_pad,
        strides_of(q), strides_of(k), strides_of(v), strides_of(grad), strides_of(grads[1]), scale, cut.shape, *share,
        PACK=pack, SIZE=size, **cut.constants, **options,
    )  # fmt: skip
    return *grads, part_q, part_bias, part_pad


def backward_of_blocks(
    grad: Tensor, inputs: tuple[Tensor | None, ...], out: Tensor, lse: Tensor, cut: Cut, scale: float, filled: bool
) -> tuple[Tensor | None, ...]:
    """As `backward_of_tiles`, for windows of several blocks."""
    q, k, v, bias, _, _ = inputs
    shared, heads, blocks = cut.constants["SHARED"], cut.shape[5], cut.blocks()
    strides = strides_of(q), strides_of(k), strides_of(v), strides_of(grad)
    groups = cut.shape[0] if shared else 1
    grads, delta = new_gradients(inputs, shared), torch.empty_like(lse)

    options = settings("window_backward_q", k)
    runs, share = split(cut.windows // groups, groups, blocks * heads, options.pop("programs"))
    part_q = new_sums(runs, k, *q.shape[1:]) if shared else None
    launch(
        backward_q_kernel, runs * blocks * heads, k, *inputs, out, lse, grad, delta, grads[0], part_q,
        *strides, strides_of(out), scale, cut.shape, *share, SIZE=TILE, **cut.constants, **options,
    )  # fmt: skip
    part_pad = new_sums(cut.windows * blocks, k, heads, 2, k.shape[4]) if filled else None
    options = settings("window_backward_kv", k)
    launch(
        backward_kv_kernel, cut.windows * blocks * heads, k, *inputs, lse, grad, delta, *grads[1:], part_pad,
        *strides, strides_of(grads[1]), scale, cut.shape, SIZE=TILE, **cut.constants, **options,
    )  # fmt: skip
    if bias is None:
        return *grads, part_q, None, part_pad
    options = settings("window_backward_bias", k)
    runs, share = split(cut.windows, 1, blocks * blocks * heads, options.pop("programs"))
    part_bias = new_sums(runs, k, *bias.shape)
    launch(
        backward_bias_kernel, runs * blocks * blocks * heads, k, *inputs, lse, grad, delta, part_bias,
        *strides, scale, cut.shape, *share, SIZE=TILE, **cut.constants, **options,
    )  # fmt: skip
    return *grads, part_q, part_bias, part_pad
