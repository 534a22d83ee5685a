"""The definition of routed attention in plain PyTorch."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

PIECE_BYTES = 1_500_000  # of gathered keys and logits at a time on a CPU; measured on biformer_t


def routed_attention_reference(
    q: Tensor, k: Tensor, v: Tensor, routes: Tensor, regions: tuple[int, int], scale: float | None = None
) -> Tensor:
    """Softmax attention to the pixels of chosen regions; see `routed_attention` for the arguments."""
    batch, height, width, num_heads, head_dim = q.shape
    rows, columns = regions
    size = (height // rows, width // columns)
    scale = head_dim**-0.5 if scale is None else scale
    q, k, v = (_to_regions(x, regions, size) for x in (q * scale, k, v))
    # A region of one head and image is one row of k and of v, so that gathering copies whole blocks of memory.
    first = torch.arange(batch * num_heads, device=q.device).view(batch, num_heads, 1, 1) * (rows * columns)
    index = (first + routes[:, None]).flatten(0, 2)
    eager = not (torch.jit.is_tracing() or torch.compiler.is_compiling())
    out = (_InPieces.apply if eager else _attend)(q, k, v, index)
    out = out.view(batch, num_heads, rows, columns, *size, head_dim).permute(0, 2, 4, 3, 5, 1, 6)
    return out.reshape(batch, height, width, num_heads, head_dim).contiguous()


def _to_regions(x: Tensor, regions: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """(B, H, W, heads, head_dim) to (B * heads * regions, tokens, head_dim), regions and tokens in row-major order."""
    x = x.reshape(x.shape[0], regions[0], size[0], regions[1], size[1], *x.shape[3:])
    return x.permute(0, 5, 1, 3, 2, 4, 6).reshape(-1, size[0] * size[1], x.shape[6])


def _gather(x: Tensor, index: Tensor) -> Tensor:
    """Rows of x (m, tokens, head_dim) by index (n, top_k), one after the other, (n, top_k * tokens, head_dim)."""
    return x.index_select(0, index.flatten()).view(index.shape[0], index.shape[1] * x.shape[1], x.shape[2])


def _attend(q: Tensor, k: Tensor, v: Tensor, index: Tensor) -> Tensor:
    """Queries (n, tokens, head_dim), each to the rows `index` (n, top_k) of keys and values (m, tokens, head_dim)."""
    k, v = _gather(k, index), _gather(v, index)
    return F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None], scale=1.0)[:, 0]


class _InPieces(torch.autograd.Function):
    """`_attend`, a few regions at a time on a CPU, which keeps nothing gathered for the backward pass.

    What is gathered is top_k times as large as the map. Gathering again costs less than to keep it.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(q: Tensor, k: Tensor, v: Tensor, index: Tensor) -> Tensor:
        pieces = [_attend(queries, k, v, rows) for queries, rows in _split(q, k, index, q, index)]
        return torch.cat(pieces) if len(pieces) > 1 else pieces[0]

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.save_for_backward(*inputs, output)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, index, out = ctx.saved_tensors
        grad_q, grad_k, grad_v = [], torch.zeros_like(k), torch.zeros_like(v)
        # The sum over keys in the derivative of softmax is that of the output with its gradient.
        total = (out * grad).sum(-1, keepdim=True)
        for queries, rows, g, t in _split(q, k, index, q, index, grad, total):
            keys, values = _gather(k, rows), _gather(v, rows)
            weights = torch.bmm(queries, keys.transpose(1, 2)).softmax(-1)
            grad_logits = weights * torch.bmm(g, values.transpose(1, 2)).sub_(t)
            grad_q.append(torch.bmm(grad_logits, keys))
            grad_k.index_add_(0, rows.flatten(), torch.bmm(grad_logits.transpose(1, 2), queries).view(-1, *k.shape[1:]))
            grad_v.index_add_(0, rows.flatten(), torch.bmm(weights.transpose(1, 2), g).view(-1, *v.shape[1:]))
        return torch.cat(grad_q), grad_k, grad_v, None


def _split(q: Tensor, k: Tensor, index: Tensor, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The tensors in pieces of as many rows as `PIECE_BYTES` allows; on a GPU, in one piece."""
    keys = index.shape[1] * k.shape[1]
    row_bytes = max(1, keys * (q.shape[1] + q.shape[2]) * q.element_size())
    length = max(1, PIECE_BYTES // row_bytes) if q.device.type == "cpu" else max(1, q.shape[0])
    return zip(*(x.split(length) for x in tensors))
