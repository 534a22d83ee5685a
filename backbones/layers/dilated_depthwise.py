"""Depthwise convolutions: a residual one, and a large one with dilated branches that merge into it."""

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from ..errors import InputError

# (kernel size, dilation) of the branches beside a large kernel; each fits into it (UniRepLKNet, arXiv:2311.15599).
BRANCHES = {
    17: ((5, 1), (7, 1), (9, 2), (3, 4), (3, 5), (3, 7)),
    15: ((5, 1), (7, 1), (7, 2), (3, 3), (3, 5), (3, 7)),
    13: ((5, 1), (7, 1), (7, 2), (3, 3), (3, 4), (3, 5)),
    11: ((5, 1), (7, 1), (5, 2), (3, 3), (3, 4), (3, 5)),
    9: ((5, 1), (7, 1), (5, 2), (3, 3), (3, 4)),
    7: ((5, 1), (3, 1), (3, 2), (3, 3)),
    5: ((3, 1), (3, 2)),
}


def depthwise_conv(channels: int, kernel_size: int, dilation: int = 1, bias: bool = True) -> nn.Conv2d:
    """A convolution of each channel with a filter of its own, (B, C, H, W) to the same shape."""
    padding = dilation * (kernel_size - 1) // 2
    return nn.Conv2d(channels, channels, kernel_size, 1, padding, dilation, channels, bias)


class ResidualDepthwiseConv(nn.Conv2d):
    """A map plus its 3 x 3 depthwise convolution: (B, C, H, W) to the same shape."""

    def __init__(self, channels: int):
        super().__init__(channels, channels, 3, padding=1, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


class DilatedDepthwiseConv(nn.Module):
    """A large depthwise convolution beside smaller dilated ones, each through its own batch norm, and their sum.

    (B, C, H, W) to the same shape. A sum of convolutions is a convolution: with the fixed statistics of evaluation the
    branches are merged into one kernel of the large size, at every call, so the parameters stay what they are.
    `reparameterize` keeps the merged kernel in their place.

    Args:
        kernel_size: side of the large kernel, one of `BRANCHES`.
        reparameterized: build the merged form, one convolution with a bias.
    """

    def __init__(self, channels: int, kernel_size: int, reparameterized: bool = False):
        super().__init__()
        if kernel_size not in BRANCHES:
            raise InputError(
                f"A dilated depthwise convolution has no branches for a kernel of {kernel_size} tokens; "
                f"its sizes are {', '.join(map(str, sorted(BRANCHES)))}."
            )
        self.conv = depthwise_conv(channels, kernel_size, bias=reparameterized)
        self.norm = self.branches = None
        if not reparameterized:
            self.norm = nn.BatchNorm2d(channels)
            self.branches = nn.ModuleDict(
                {
                    f"k{k}_{r}": nn.Sequential(depthwise_conv(channels, k, r, bias=False), nn.BatchNorm2d(channels))
                    for k, r in BRANCHES[kernel_size]
                }
            )

    def forward(self, x: Tensor) -> Tensor:
        if self.branches is None:
            return self.conv(x)
        if not self.training:
            weight, bias = self.merged()
            return F.conv2d(x, weight, bias, padding=self.conv.padding, groups=self.conv.groups)
        y = self.norm(self.conv(x))
        for branch in self.branches.values():
            y = y + branch(x)
        return y

    def merged(self) -> tuple[Tensor, Tensor]:
        """Kernel (C, 1, K, K) and bias (C,) of the one convolution that equals all branches in evaluation."""
        pairs = [(self.conv, self.norm), *self.branches.values()]
        return merge_kernels(
            [conv.weight for conv, _ in pairs],
            [conv.dilation[0] for conv, _ in pairs],
            [norm.weight for _, norm in pairs],
            [norm.bias for _, norm in pairs],
            [norm.running_mean for _, norm in pairs],
            [norm.running_var for _, norm in pairs],
            self.norm.eps,
        )

    @torch.no_grad()
    def reparameterize(self) -> None:
        """Keep the merged kernel and drop the branches, for good."""
        if self.branches is None:
            return
        weight, bias = self.merged()
        self.conv.weight.copy_(weight)
        self.conv.bias = nn.Parameter(bias, requires_grad=self.conv.weight.requires_grad)
        self.norm = self.branches = None

    def fit_entries(self, state: dict[str, Tensor], prefix: str) -> None:
        """Make a checkpoint's entries under `prefix` fit, in place: merge its branches if this is the merged form.

        Raises:
            InputError: the checkpoint holds the merged form, and this one has branches.
        """
        names = [name for name in state if name.startswith(prefix)]
        if self.branches is not None and f"{prefix}conv.bias" in names:
            raise InputError(
                "The checkpoint holds the merged form, which cannot be taken apart again. Build the model with "
                "reparameterized=True."
            )
        if self.branches is not None or f"{prefix}norm.weight" not in names:
            return
        apart = DilatedDepthwiseConv(self.conv.in_channels, self.conv.kernel_size[0]).to(state[names[0]].dtype)
        apart.load_state_dict({name.removeprefix(prefix): state.pop(name) for name in names})
        apart.reparameterize()
        state.update({f"{prefix}{name}": value for name, value in apart.state_dict().items()})


@fx.wrap
@torch.jit.ignore
def merge_kernels(
    kernels: list[Tensor],
    dilations: list[int],
    scales: list[Tensor],
    shifts: list[Tensor],
    means: list[Tensor],
    variances: list[Tensor],
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Kernel and bias of the sum of depthwise convolutions, each through a batch norm with fixed statistics.

    The first kernel is the largest; the others are dilated, and lie in its middle.
    """
    precise = torch.promote_types(kernels[0].dtype, torch.float32)
    scale = torch.stack(scales).to(precise) * (torch.stack(variances).to(precise) + eps).rsqrt()
    bias = (torch.stack(shifts).to(precise) - torch.stack(means).to(precise) * scale).sum(0)
    merged = kernels[0].to(precise) * scale[0].view(-1, 1, 1, 1)
    for kernel, dilation, factor in zip(kernels[1:], dilations[1:], scale[1:]):
        start = merged.shape[-1] // 2 - dilation * (kernel.shape[-1] // 2)
        inside = slice(start, merged.shape[-1] - start, dilation)
        merged[..., inside, inside] += kernel.to(precise) * factor.view(-1, 1, 1, 1)
    return merged.to(kernels[0].dtype), bias.to(kernels[0].dtype)
