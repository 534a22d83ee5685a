"""Linear layers on (B, H, W, C) maps."""

from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.utils.checkpoint import checkpoint

LEAST_CHANNELS = 128  # that a convolution takes faster than a matrix product does; benchmarks/linear.py


class MapLinear(nn.Linear):
    """nn.Linear for maps: (B, H, W, in_features) to (B, H, W, out_features), and other shapes as usual.

    A CPU by AMD computes it as a 1 x 1 convolution in eager float32: there oneDNN's is up to 1.5 times as fast as MKL's
    matrix product, forward and backward. On a CPU by Intel the product is the faster one.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not faster_as_convolution(x, self.weight):
            return super().forward(x)
        y = F.conv2d(x.permute(0, 3, 1, 2), self.weight[:, :, None, None], self.bias)
        return y.permute(0, 2, 3, 1).contiguous()


def faster_as_convolution(x: Tensor, weight: Tensor) -> bool:
    """Whether a linear layer on x is better computed as a convolution."""
    if is_traced(x):
        return False
    if type(weight) not in (Tensor, nn.Parameter):  # such as a quantised one, whose product is its own affair
        return False
    on_cpu = x.device.type == "cpu" and x.dtype == torch.float32 and is_product_slow()
    # With a single thread PyTorch does not hand 1 x 1 convolutions to oneDNN.
    if not on_cpu or x.dim() != 4 or torch.get_num_threads() == 1:
        return False
    # The convolution reorders its weights at every call, which must be little beside the map.
    return x.shape[3] >= LEAST_CHANNELS and x.numel() >= weight.numel()


@cache
def is_product_slow() -> bool:
    """Whether products are MKL's, convolutions oneDNN's, and the CPU is one by AMD, as far as Linux says."""
    both = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
    cpuinfo = Path("/proc/cpuinfo")
    return both and cpuinfo.exists() and "AuthenticAMD" in cpuinfo.read_text()


def is_traced(x: Tensor) -> bool:
    """Whether a graph is recorded, which is to hold the plain operations."""
    return isinstance(x, fx.Proxy) or torch.jit.is_tracing() or torch.compiler.is_compiling()


class Mlp(nn.Module):
    """Two projections with a GELU between them: (B, H, W, C) to the same shape.

    Eager training computes the GELU again in the backward pass instead of keeping its output, a fifth of all that a
    network of these blocks would keep.
    """

    def __init__(self, dim: int, hidden_dim: int):
        super().__init__()
        self.fc1 = MapLinear(dim, hidden_dim)
        self.act = nn.GELU()
        self.fc2 = MapLinear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        if is_traced(x) or not torch.is_grad_enabled():
            return self.project(x)
        return checkpoint(self.project, x, use_reentrant=False, preserve_rng_state=False)

    def project(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(x))
