"""Calls of the attention operators, at shapes of any choice: what the kernel tests and the compilation go over."""

import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from backbones.kernels.dispatch import use
from backbones.kernels.neighborhood import neighborhood_aggregate, neighborhood_attention
from backbones.kernels.outlook import outlook_attention
from backbones.kernels.routed import routed_attention
from backbones.kernels.window import window_attention

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@dataclass
class Case:
    """An operator's tensors by name, in float64, and the call that takes them.

    The name of each argument and its value go into the name of a test that fails.
    """

    operator: str
    arguments: dict
    tensors: dict[str, Tensor]
    call: Callable[..., Tensor]

    def __repr__(self) -> str:
        return f"{self.operator}({', '.join(f'{k}={v}' for k, v in self.arguments.items())})"

    def run(self, dtype: torch.dtype, device: str = "cpu") -> tuple[Tensor, dict[str, Tensor]]:
        """The output, and the gradient of each tensor for a random gradient of the output."""
        inputs = {n: x.to(device, dtype).detach().requires_grad_() for n, x in self.tensors.items()}
        out = self.call(**inputs)
        generator = torch.Generator().manual_seed(1)
        cotangent = torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out)
        grads = torch.autograd.grad(out, list(inputs.values()), cotangent, materialize_grads=True)
        return out.detach(), dict(zip(inputs, grads))


def random_tensor(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def projected(batch: int, height: int, width: int, heads: int, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values as a fused projection gives them: views of one tensor."""
    return random_tensor(batch, height, width, 3, heads, dim).unbind(3)


def window_case(
    batch=1, height=9, width=10, heads=2, dim=16, window=(4, 4), shift=(0, 0), bias=True, pad=True, shared=False
) -> Case:  # fmt: skip
    arguments = dict(locals())
    q, k, v = projected(batch, height, width, heads, dim)
    tokens = window[0] * window[1]
    tensors = dict(q=random_tensor(batch, *window, heads, dim) if shared else q, k=k, v=v)
    if bias:
        tensors["bias"] = random_tensor(heads, tokens, tokens)
    if pad:
        tensors |= dict(pad_key=random_tensor(heads, dim), pad_value=random_tensor(heads, dim))

    def call(q, k, v, bias=None, pad_key=None, pad_value=None):
        return window_attention(q, k, v, window, shift, bias, None, pad_key, pad_value, shared)

    return Case("window_attention", arguments, tensors, call)


def neighborhood_case(batch=1, height=9, width=10, heads=2, dim=16, kernel=3, dilation=1, bias=True) -> Case:
    arguments = dict(locals())
    tensors = dict(zip("qkv", projected(batch, height, width, heads, dim)))
    if bias:
        tensors["bias"] = random_tensor(heads, 2 * kernel - 1, 2 * kernel - 1)

    def call(q, k, v, bias=None):
        return neighborhood_attention(q, k, v, kernel, dilation, bias)

    return Case("neighborhood_attention", arguments, tensors, call)


def aggregate_case(batch=1, height=9, width=10, heads=2, dim=16, kernel=3, dilation=1, softmax=False) -> Case:
    arguments = dict(locals())
    # As ContMix has them: heads before positions in memory.
    weights = random_tensor(batch, heads, height, width, kernel**2).permute(0, 2, 3, 1, 4)
    tensors = dict(weights=weights, v=random_tensor(batch, height, width, heads, dim))

    def call(weights, v):
        return neighborhood_aggregate(weights, v, kernel, dilation, softmax)

    return Case("neighborhood_aggregate", arguments, tensors, call)


def outlook_case(batch=1, height=9, width=10, heads=2, dim=16, kernel=3, padding=1, stride=2) -> Case:
    arguments = dict(locals())
    rows, columns = ((side + 2 * padding - kernel) // stride + 1 for side in (height, width))
    logits = random_tensor(batch, rows, columns, heads, kernel**2, kernel**2)

    def call(logits, v):
        return outlook_attention(logits, v, kernel, padding, stride)

    tensors = dict(logits=logits, v=random_tensor(batch, height, width, heads, dim))
    return Case("outlook_attention", arguments, tensors, call)


def routed_case(batch=1, regions=(3, 2), size=(2, 3), heads=2, dim=16, top_k=2) -> Case:
    arguments = dict(locals())
    count = regions[0] * regions[1]
    routes = torch.randint(count, (batch, count, top_k))
    q, k, v = projected(batch, regions[0] * size[0], regions[1] * size[1], heads, dim)

    def call(q, k, v):
        return routed_attention(q, k, v, routes.to(q.device), regions)

    return Case("routed_attention", arguments, dict(q=q, k=k, v=v), call)


def grid() -> list[Case]:
    """What a kernel is likely to get wrong: one call of each kind."""
    torch.manual_seed(0)
    return [
        window_case(height=7, width=7, window=(7, 7)),
        window_case(height=9, width=13, window=(7, 7), shift=(3, 3)),
        window_case(height=9, width=13, dim=24, window=(4, 6), shift=(2, 3)),
        window_case(height=3, width=3, window=(7, 7)),
        window_case(height=1, width=11, window=(1, 4), shift=(0, 2), bias=False),
        window_case(batch=2, height=6, width=10, window=(2, 2), bias=False, pad=False),
        window_case(batch=2, height=7, width=9, window=(2, 2), shift=(1, 1), bias=False),
        window_case(batch=2, height=6, width=10, window=(4, 4), shared=True),
        window_case(height=11, width=13, heads=1, window=(9, 9), shift=(4, 4)),
        window_case(batch=2, height=10, width=9, heads=1, window=(9, 9), shared=True),
        window_case(height=10, width=9, heads=1, window=(9, 9), bias=False, pad=False),
        window_case(batch=0, window=(4, 4)),
        window_case(batch=0, window=(9, 9), shared=True),
        neighborhood_case(height=7, width=7, kernel=7),
        neighborhood_case(height=22, width=10, heads=1, kernel=7),
        neighborhood_case(height=15, width=17, heads=1, dim=24, kernel=5, dilation=2),
        neighborhood_case(height=9, width=13, heads=1, kernel=3, dilation=3, bias=False),
        neighborhood_case(height=17, width=14, heads=1, kernel=13),
        neighborhood_case(batch=0),
        aggregate_case(height=9, width=13, kernel=5),
        aggregate_case(batch=2, height=9, width=6, heads=1, kernel=3, dilation=2, softmax=True),
        aggregate_case(height=13, width=14, heads=1, kernel=13, softmax=True),
        aggregate_case(batch=0, softmax=True),
        outlook_case(height=8, width=8, dim=32),
        outlook_case(batch=2, height=7, width=9, heads=1),
        outlook_case(height=7, width=9, heads=1, dim=24, stride=1),
        outlook_case(height=6, width=10, heads=1, kernel=5, padding=2, stride=3),
        outlook_case(height=1, width=9, heads=1, padding=0, kernel=1, stride=2),
        outlook_case(height=9, width=9, heads=1, padding=0, stride=3),
        outlook_case(batch=0),
        routed_case(batch=2),
        routed_case(regions=(2, 2), size=(9, 9), heads=1, top_k=3),
        routed_case(regions=(4, 6), size=(1, 1), dim=24, top_k=5),
        routed_case(batch=0),
    ]


def draw(operator: str, seed: int) -> Case:
    """A small call of an operator at a random shape."""
    torch.manual_seed(seed)
    pick = random.Random(seed)
    side = lambda low, high: pick.randint(low, high)  # noqa: E731
    common = dict(batch=side(0, 2), heads=side(1, 2), dim=pick.choice([8, 16, 20, 32, 48]))
    shape = dict(height=side(1, 12), width=side(1, 12))
    if operator == "window_attention":
        window = (side(1, 5), side(1, 5)) if side(0, 3) else (side(8, 9), side(8, 9))
        shift = (side(0, window[0] - 1), side(0, window[1] - 1))
        flags = dict(bias=side(0, 1) == 1, pad=side(0, 1) == 1, shared=side(0, 3) == 0)
        return window_case(**common, **shape, window=window, shift=shift, **flags)
    if operator in ("neighborhood_attention", "neighborhood_aggregate"):
        kernel = pick.choice([3, 3, 5, 7])
        shape = dict(height=side(kernel, kernel + 6), width=side(kernel, kernel + 6))
        dilation = side(1, min(shape.values()) // kernel)
        if operator == "neighborhood_attention":
            return neighborhood_case(**common, **shape, kernel=kernel, dilation=dilation, bias=side(0, 1) == 1)
        return aggregate_case(**common, **shape, kernel=kernel, dilation=dilation, softmax=side(0, 1) == 1)
    if operator == "outlook_attention":
        kernel = side(1, 4)
        padding = side(0, kernel - 1)
        shape = {name: max(value, kernel - 2 * padding) for name, value in shape.items()}
        return outlook_case(**common, **shape, kernel=kernel, padding=padding, stride=side(1, 4))
    regions = (side(1, 4), side(1, 3))
    return routed_case(**common, regions=regions, size=(side(1, 4), side(1, 4)), top_k=side(1, 5))


def relative(x, expected) -> float:
    """Mismatch relative to the expected tensor, whose elements count as at least 0.1: some gradients are zero."""
    x, expected = x.cpu().double(), expected.cpu().double()
    return float((x - expected).norm() / expected.norm().clamp(min=0.1 * max(1, x.numel()) ** 0.5))


def check(case: Case, dtype: torch.dtype, limit: float) -> None:
    with use("reference"):
        out, grads = case.run(torch.float64)
    with use("triton"):
        found, found_grads = case.run(dtype, DEVICE)
    assert found.shape == out.shape and found.dtype == dtype and found.is_contiguous()
    mismatch = {"out": relative(found, out)} | {n: relative(found_grads[n], g) for n, g in grads.items()}
    assert all(v <= limit for v in mismatch.values()), (case, mismatch)


OPERATORS = (
    "window_attention",
    "neighborhood_attention",
    "neighborhood_aggregate",
    "outlook_attention",
    "routed_attention",
)
