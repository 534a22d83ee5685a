"""The definition of (shifted) window attention in plain PyTorch."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..sizes import ceil_div, crop, is_zero

# On CPU PyTorch's fused attention beats the plain products from about this many tokens of a window on, for inference:
# it has no gradient for the bias.
FUSED_TOKENS = 144
MASKED = -100.0  # what the Swin release adds to the logits of pairs from different regions: large, not infinite


def window_attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window_size: tuple[int, int],
    shift: tuple[int, int] = (0, 0),
    bias: Tensor | None = None,
    scale: float | None = None,
    pad_key: Tensor | None = None,
    pad_value: Tensor | None = None,
    shared_query: bool = False,
) -> Tensor:
    """Softmax attention inside the windows of a map; see `window_attention` for the arguments."""
    height, width, head_dim = k.shape[1], k.shape[2], k.shape[4]
    padded = [ceil_div(side, step) * step for side, step in zip((height, width), window_size)]
    k = _to_windows(_pad(k, padded, pad_key), window_size, shift)
    # A shared query is one window, which the product repeats.
    q = _to_windows(q, window_size, (0, 0)) if shared_query else _to_windows(_pad(q, padded, None), window_size, shift)

    factor = head_dim**-0.5 if scale is None else scale
    # An exported graph is taken apart further, where the fused one has another layout than the views after it expect.
    fused = k.shape[3] > FUSED_TOKENS and shift == (0, 0) and not torch.compiler.is_exporting()
    if fused and not torch.is_grad_enabled():
        v = _to_windows(_pad(v, padded, pad_value), window_size, shift)
        q = q.expand(-1, k.shape[1], -1, -1, -1)
        mask = None if bias is None else bias.to(q.dtype)[None]
        out = F.scaled_dot_product_attention(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), mask, scale=factor)
        out = out.view(v.shape)
    else:
        scores = (q * factor) @ k.transpose(-2, -1)
        del q, k  # without gradients these copies go before the values' copy comes
        # In place: the product's result, unlike a view, takes it without a copy in the backward pass.
        if bias is not None:
            scores = scores.add_(bias)
        if shift[0] or shift[1]:
            regions = shift_regions(padded, window_size, shift, scores.device)
            apart = regions[:, None, :, None] != regions[:, None, None, :]  # (windows, 1, queries, keys)
            scores = scores.add_(torch.zeros_like(apart, dtype=scores.dtype).masked_fill_(apart, MASKED))
        scores = scores.softmax(-1)
        out = scores @ _to_windows(_pad(v, padded, pad_value), window_size, shift)
    return crop(_from_windows(out, padded, window_size, shift), height, width).contiguous()


def shift_regions(
    size: list[int], window_size: tuple[int, int], shift: tuple[int, int], device: torch.device
) -> Tensor:
    """Region label of every token of the rolled map, (windows, tokens); only equal labels attend to each other.

    Along an axis of length n the label is 0 below n - window, 1 below n - shift, and 2 where the roll brought tokens
    in from the opposite border.
    """
    labels = []
    for length, window, step in zip(size, window_size, shift):
        position = torch.arange(length, device=device)
        labels.append((position >= length - window).long() + (position >= length - step).long())
    grid = 3 * labels[0][:, None] + labels[1][None, :]
    rows, columns = size[0] // window_size[0], size[1] // window_size[1]
    grid = grid.view(rows, window_size[0], columns, window_size[1]).transpose(1, 2)
    return grid.reshape(rows * columns, window_size[0] * window_size[1])


def _pad(x: Tensor, size: list[int], fill: Tensor | None) -> Tensor:
    """(B, H, W, heads, head_dim) extended on the right and bottom with `fill` (heads, head_dim), or with zeros."""
    bottom, right = size[0] - x.shape[1], size[1] - x.shape[2]
    if is_zero(bottom) and is_zero(right):
        return x
    if fill is None:
        return F.pad(x, (0, 0, 0, 0, 0, right, 0, bottom))
    x = torch.cat([x, fill.expand(x.shape[0], x.shape[1], right, -1, -1)], dim=2)
    return torch.cat([x, fill.expand(x.shape[0], bottom, size[1], -1, -1)], dim=1)


def _to_windows(x: Tensor, window_size: tuple[int, int], shift: tuple[int, int]) -> Tensor:
    """(B, H, W, heads, head_dim) to (B, windows, heads, tokens, head_dim), windows and tokens in row-major order."""
    if shift[0] or shift[1]:
        x = torch.roll(x, (-shift[0], -shift[1]), dims=(1, 2))
    batch, height, width, num_heads, head_dim = x.shape
    rows, columns = height // window_size[0], width // window_size[1]
    x = x.reshape(batch, rows, window_size[0], columns, window_size[1], num_heads, head_dim)
    x = x.permute(0, 1, 3, 5, 2, 4, 6)
    return x.reshape(batch, rows * columns, num_heads, window_size[0] * window_size[1], head_dim)


def _from_windows(x: Tensor, size: list[int], window_size: tuple[int, int], shift: tuple[int, int]) -> Tensor:
    """The inverse of `_to_windows`."""
    batch, num_heads, head_dim = x.shape[0], x.shape[2], x.shape[4]
    rows, columns = size[0] // window_size[0], size[1] // window_size[1]
    x = x.view(batch, rows, columns, num_heads, window_size[0], window_size[1], head_dim)
    x = x.permute(0, 1, 4, 2, 5, 3, 6).reshape(batch, size[0], size[1], num_heads, head_dim)
    return torch.roll(x, shift, dims=(1, 2)) if shift[0] or shift[1] else x
