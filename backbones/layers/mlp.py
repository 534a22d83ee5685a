"""The feed-forward network of a transformer block."""

import torch
from torch import Tensor, fx, nn

PIECE_BYTES = 16 * 2**20  # of the hidden layer on a CPU: the C library maps larger tensors anew at every call


class Mlp(nn.Module):
    """Linear, exact GELU, Linear on the last axis: (..., dim) to (..., dim).

    Args:
        hidden_dim: width in between.
    """

    def __init__(self, dim: int, hidden_dim: int):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        if not goes_in_pieces(x):
            return self.fc2(self.act(self.fc1(x)))
        rows = max(1, PIECE_BYTES // (self.fc1.out_features * x.element_size()))
        pieces = [self.fc2(self.act(self.fc1(piece))) for piece in x.flatten(0, -2).split(rows)]
        return torch.cat(pieces).view(x.shape) if len(pieces) > 1 else pieces[0].view(x.shape)


def goes_in_pieces(x: Tensor) -> bool:
    """Whether nothing keeps the hidden layer: eager inference on a CPU, where piece by piece is faster and smaller."""
    if isinstance(x, fx.Proxy) or torch.jit.is_tracing() or torch.compiler.is_compiling():
        return False
    return x.device.type == "cpu" and not torch.is_grad_enabled()
