"""The operators as the models call them: what is timed, tuned and compiled ahead of time."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .neighborhood import neighborhood_aggregate, neighborhood_attention
from .outlook import outlook_attention
from .routed import routed_attention
from .window import window_attention


@dataclass(frozen=True)
class Workload:
    """A call of an operator.

    Attributes:
        operator, name: the public function, and what is particular about the call.
        call: takes the tensors by name.
        maps: shape of each (B, H, W, …) tensor of an image, without the batch; q, k and v are views of one projection.
        tables: shapes of the tensors that all images share.
        products: multiply-adds of the definition for an image.
        options: what else the call was made with.
    """

    operator: str
    name: str
    call: Callable[..., Tensor]
    maps: dict[str, tuple[int, ...]]
    tables: dict[str, tuple[int, ...]]
    products: int
    options: dict = field(default_factory=dict)

    def tensors(self, batch: int, dtype: torch.dtype, device: torch.device | str) -> dict[str, Tensor]:
        """Random inputs, by name."""
        inputs = {}
        for name, shape in self.maps.items():
            if name in inputs:
                continue
            if name == "q" and self.maps["q"] == self.maps["k"]:
                rows, columns, heads, dim = shape
                fused = torch.randn(batch, rows, columns, 3, heads, dim, dtype=dtype, device=device)
                inputs |= dict(zip("qkv", fused.unbind(3)))
            else:
                inputs[name] = torch.randn(batch, *shape, dtype=dtype, device=device)
        # Tables are parameters, in float32 also where maps are not.
        return inputs | {name: torch.randn(shape, device=device) for name, shape in self.tables.items()}

    def elements(self, batch: int) -> int:
        """Numbers that the forward pass must read and write."""
        read = sum(torch.Size(shape).numel() for shape in self.maps.values())
        return batch * (read + torch.Size(self.maps["v"]).numel())


def window(side: int, heads: int, window: int, shift: int = 0, shared: bool = False, bias: bool = True, dim: int = 32):
    tokens = window * window
    whole = -(-side // window) * window
    size, step, shape = (window, window), (shift, shift), (side, side, heads, dim)
    name = f"{side} x {side}, {heads} heads, windows of {window}" + (", shifted" if shift else "")
    maps = dict(q=(*size, heads, dim) if shared else shape, k=shape, v=shape)

    def call(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
        return window_attention(q, k, v, size, step, bias, None, None, None, shared)

    tables = dict(bias=(heads, tokens, tokens)) if bias else {}
    name += (", one window of queries" if shared else "") + ("" if bias else ", no bias")
    options = dict(window_size=window, shift=shift, shared=shared)
    return Workload("window_attention", name, call, maps, tables, 2 * whole**2 * tokens * heads * dim, options)


def neighborhood(side: int, heads: int, kernel_size: int, dilation: int = 1, dim: int = 32) -> Workload:
    shape = (side, side, heads, dim)

    def call(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        return neighborhood_attention(q, k, v, kernel_size, dilation, bias)

    name = f"{side} x {side}, {heads} heads, {kernel_size} x {kernel_size}, dilation {dilation}"
    tables = dict(bias=(heads, 2 * kernel_size - 1, 2 * kernel_size - 1))
    products = 2 * side**2 * kernel_size**2 * heads * dim
    options = dict(kernel_size=kernel_size, dilation=dilation)
    return Workload("neighborhood_attention", name, call, dict(q=shape, k=shape, v=shape), tables, products, options)


def aggregate(side: int, heads: int, kernel_size: int, softmax: bool, dim: int = 32) -> Workload:
    maps = dict(weights=(side, side, heads, kernel_size**2), v=(side, side, heads, dim))

    def call(weights: Tensor, v: Tensor) -> Tensor:
        return neighborhood_aggregate(weights, v, kernel_size, 1, softmax)

    name = f"{side} x {side}, {heads} heads, {kernel_size} x {kernel_size}" + (", softmax" if softmax else "")
    products = side**2 * kernel_size**2 * heads * dim
    options = dict(kernel_size=kernel_size, softmax=softmax)
    return Workload("neighborhood_aggregate", name, call, maps, {}, products, options)


def outlook(side: int, heads: int, kernel_size: int = 3, stride: int = 2, dim: int = 32) -> Workload:
    windows, area = (side + 2 * (kernel_size // 2) - kernel_size) // stride + 1, kernel_size**2
    maps = dict(logits=(windows, windows, heads, area, area), v=(side, side, heads, dim))

    def call(logits: Tensor, v: Tensor) -> Tensor:
        return outlook_attention(logits, v, kernel_size, kernel_size // 2, stride)

    name = f"{side} x {side}, {heads} heads, {kernel_size} x {kernel_size}, stride {stride}"
    return Workload("outlook_attention", name, call, maps, {}, windows**2 * area**2 * heads * dim)


def routed(side: int, heads: int, regions: int, top_k: int, dim: int = 32) -> Workload:
    shape = (side, side, heads, dim)

    @functools.cache
    def routes(device: torch.device) -> Tensor:
        """Each region's own, and those after it."""
        return (torch.arange(regions**2)[:, None] + torch.arange(top_k)).remainder(regions**2).to(device)

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return routed_attention(q, k, v, routes(q.device).expand(len(q), -1, -1), regions)

    name = f"{side} x {side}, {heads} heads, {top_k} of {regions} x {regions} regions"
    products = 2 * side**2 * (side // regions) ** 2 * top_k * heads * dim
    return Workload("routed_attention", name, call, dict(q=shape, k=shape, v=shape), {}, products)


# The stages of swin_t, litv2_s, gcvit_t, swin_b_384; dinat_t; overlock_t; volo_d1; biformer_t.
WORKLOADS = [
    window(56, 3, 7),
    window(56, 3, 7, shift=3),
    window(28, 6, 7, shift=3),
    window(14, 12, 7, shift=3),
    window(7, 24, 7),
    window(14, 2, 2, bias=False),
    window(14, 8, 14, shared=True),
    window(48, 8, 12, shift=6),
    neighborhood(56, 2, 7),
    neighborhood(56, 2, 7, dilation=8),
    neighborhood(28, 4, 7),
    neighborhood(28, 4, 7, dilation=4),
    neighborhood(14, 8, 7, dilation=2),
    neighborhood(7, 16, 7),
    aggregate(14, 4, 13, softmax=False),
    aggregate(14, 4, 13, softmax=True),
    aggregate(14, 4, 5, softmax=True),
    aggregate(7, 8, 7, softmax=True),
    outlook(28, 6),
    routed(56, 2, 7, 1),
    routed(28, 4, 7, 4),
    routed(14, 8, 7, 16),
]
