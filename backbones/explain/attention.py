"""The weights with which one token reads the others, of every attention mechanism of the zoo, exactly.

All mechanisms but one are linear in their values, once queries and keys are known: the output of a head at a token is
the sum over positions of weight times value, with the same weights for all channels of the head. The gradient of one of
these channels with respect to the values is therefore the row of weights itself. It is read at the layers before and
after the attention, so that it includes what an operator does in between: shifts, masks, windows at the border, routes,
overlaps, resizing. Tokens that only fill a map up have no place on it; their weights are left out.

The exception is DaViT's channel attention, which is linear in its queries, over the channels of a token.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..attention import (
    BiLevelRoutingAttention,
    ChannelAttention,
    ContextMixing,
    GlobalQueryAttention,
    HiLoAttention,
    LePEAttention,
    LinearAttention,
    NeighborhoodAttention,
    OutlookAttention,
    SelfAttention,
    WindowAttention,
)
from ..attention.routed import divide
from ..attention.window import effective_window
from ..backbone import Backbone

MECHANISMS = (
    BiLevelRoutingAttention,
    ChannelAttention,
    ContextMixing,
    GlobalQueryAttention,
    HiLoAttention,
    LePEAttention,
    LinearAttention,
    NeighborhoodAttention,
    OutlookAttention,
    SelfAttention,
    WindowAttention,
)


@dataclass
class Attention:
    """Where a token looks in one block, or in one group of its heads.

    Attributes:
        stage, block: place in the model, counted from 0.
        title: the mechanism in a few words.
        token: row and column of the token that looks, on the stage's map.
        weights: (heads, H, W), of each token of the stage's map. Between channels: (groups, d, d), of each channel of
            a group (second) in the new value of another (first).
        of_channels: whether the weights are those between channels, the same for all tokens.
    """

    stage: int
    block: int
    title: str
    token: tuple[int, int]
    weights: Tensor
    of_channels: bool

    @property
    def map(self) -> Tensor:
        """The mean of the heads, (H, W); between channels, of the groups, (d, d)."""
        return self.weights.mean(0)


class Place(NamedTuple):
    """Where the values of some heads enter a mechanism, and where what they mix comes out.

    title: what they do, in a few words; heads: their number; values: the layer whose output has the values last among
    `parts` equal parts, channels last; out: the layer that takes the mixture; cell: side of what a value is the mean
    of, in tokens.
    """

    title: str
    heads: int
    values: str = "qkv"
    parts: int = 3
    out: str = "proj"
    cell: int = 1


def attention_of(model: Backbone, image: Tensor, point: tuple[float, float]) -> list[Attention]:
    """Where the token under a point looks, in every block with attention, in the order of the network.

    Args:
        image: (1, channels, H, W).
        point: x and y, in pixels of that image.
    """
    calls: dict[nn.Module, tuple] = {}
    with ExitStack() as stack, torch.no_grad():
        for module in model.stages.modules():
            if isinstance(module, MECHANISMS):
                keep = module.register_forward_pre_hook(lambda module, inputs: calls.update({module: inputs}))
                stack.callback(keep.remove)
        model.forward_intermediates(image, intermediates_only=True)

    found = []
    for s, stage in enumerate(model.stages):
        pixels = model.feature_info[s]["reduction"]
        for b, block in enumerate(stage.blocks):
            for module in block.modules():
                if module not in calls:
                    continue
                height, width = calls[module][0].shape[1:3]
                token = (min(int(point[1] / pixels), height - 1), min(int(point[0] / pixels), width - 1))
                for title, weights in attention_weights(module, token, *calls[module]):
                    found.append(Attention(s, b, title, token, weights, isinstance(module, ChannelAttention)))
    return found


def attention_weights(module: nn.Module, token: tuple[int, int], x: Tensor, *args: Any) -> list[tuple[str, Tensor]]:
    """A name and the weights of a token, as in `Attention`, for each group of heads of a mechanism.

    Args:
        token: row and column on the map.
        x, args: what the mechanism is called with, x of (1, H, W, C).
    """
    if isinstance(module, ChannelAttention):
        return [("between channels", _channel_weights(module, token, x))]
    found: list[tuple[str, Tensor]] = []
    for place in _places(module, x, *args):
        values, mixed = _run(module, place, x, *args)
        (grad,) = torch.autograd.grad(mixed.unflatten(3, (place.heads, -1))[0, *token, :, 0].sum(), values)
        if isinstance(module, ContextMixing):
            grad = grad.permute(0, 2, 3, 1)
        weights = grad[0].unflatten(2, (place.parts, place.heads, -1))[:, :, -1, :, 0].permute(2, 0, 1)
        # Each token has its share of a mean.
        weights = weights.repeat_interleave(place.cell, 1).repeat_interleave(place.cell, 2) / place.cell**2
        weights = weights[:, : x.shape[1], : x.shape[2]]
        if isinstance(module, ContextMixing):
            sides = dict(small=module.small_kernel_size, large=module.kernel_size)
            names = [f"{size} dynamic kernel, {side} × {side} tokens" for size, side in sides.items()]
            found += zip(names, weights.chunk(2))
        else:
            found.append((place.title, weights))
    return found


def _places(module: nn.Module, x: Tensor, *args: Any) -> Iterator[Place]:
    """The places of a mechanism that is called with these arguments."""
    match module:
        case WindowAttention():
            side, shift = effective_window(x.shape[1], x.shape[2], module.window_size, module.shifted, *args or [False])
            yield Place(f"{'shifted ' if shift else ''}window, {side} × {side} tokens", module.num_heads)
        case GlobalQueryAttention():
            side = module.window_size
            yield Place(f"window, {side} × {side} tokens, global query", module.num_heads, "kv", 2)
        case NeighborhoodAttention():
            side, step = module.kernel_size, module.dilation
            dilated = f", {step} apart" if step > 1 else ""
            yield Place(f"neighbourhood, {side} × {side} tokens{dilated}", module.num_heads)
        case BiLevelRoutingAttention():
            (rows, columns), _, _ = divide(x.shape[1], x.shape[2], module.num_regions, module.ragged)
            yield Place(f"{module.top_k} of {rows} × {columns} regions, chosen", module.num_heads)
        case OutlookAttention():
            side = module.kernel_size
            yield Place(f"outlook, windows of {side} × {side} tokens", module.num_heads, "v", 1)
        case HiLoAttention():
            side = module.window_size
            if module.high_heads:
                yield Place(f"Hi-Fi heads, window of {side} × {side}", module.high_heads, "high_qkv", 3, "high_proj")
            if module.low_heads:
                title = f"Lo-Fi heads, means of {side} × {side}" if side > 1 else "Lo-Fi heads, all tokens"
                yield Place(title, module.low_heads, "low_kv", 2, "low_proj", side)
        case LinearAttention():
            yield Place("linear, all tokens", module.num_heads)
        case SelfAttention() | LePEAttention():
            yield Place("all tokens", module.num_heads)
        case ContextMixing():
            yield Place("dynamic kernels", 2 * module.num_heads, "fusion", 1, "out")


def _run(module: nn.Module, place: Place, x: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    """Call a mechanism; returns the output of the layer of values, cut off from what was before, and the mixture."""
    kept: dict[str, Tensor] = {}

    def cut(layer: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
        kept["values"] = output.detach().requires_grad_()
        return kept["values"]

    def keep(layer: nn.Module, inputs: tuple) -> None:
        mixed = inputs[0]
        kept["mixed"] = mixed.permute(0, 2, 3, 1) if isinstance(module, ContextMixing) else mixed

    with ExitStack() as stack, torch.enable_grad():
        stack.callback(module.get_submodule(place.values).register_forward_hook(cut).remove)
        stack.callback(module.get_submodule(place.out).register_forward_pre_hook(keep).remove)
        if hasattr(module, "lepe"):  # a convolution of the values that is added to the mixture, and no part of it
            stack.callback(module.lepe.register_forward_hook(lambda layer, inputs, output: output.detach()).remove)
        module(x, *args)
    return kept["values"], kept["mixed"]


def _channel_weights(module: ChannelAttention, token: tuple[int, int], x: Tensor) -> Tensor:
    """(groups, d, d): row by row, the gradient of a channel of the output with respect to the token's queries."""
    values, mixed = _run(module, Place("", module.num_heads), x)
    mixed = mixed[0, *token].unflatten(0, (module.num_heads, -1))
    rows = []
    for i in range(mixed.shape[1]):
        (grad,) = torch.autograd.grad(mixed[:, i].sum(), values, retain_graph=True)
        rows.append(grad[0, *token].unflatten(0, (3, module.num_heads, -1))[0])
    return torch.stack(rows, 1)
