"""Varying window attention and a decoder of it, after VWFormer (Yan et al., ICLR 2024, arXiv:2404.16573).

A window of queries looks at a context R times as large around it, for several R side by side, at the cost of looking at
itself. From the paper are: windows whose context varies, pre-scaling of the context to the window's own number of
tokens so that neither memory nor operations grow with R, maps of strides 8, 16 and 32 aggregated at stride 8, branches
for R = 2, 4 and 8 beside a short path, and the enhancement by the map of stride 4. This is written from that idea and
not from the released code, whose weights do not fit. Chosen here are:

- the scaling is the mean over cells of R x R tokens, before the projections to keys and values, which then cost less;
  the paper has a learned patch embedding that overlaps;
- a context that reaches beyond the map is neither filled with zeros nor shifted back: a cell is the mean of its tokens
  inside the map, and cells wholly outside are masked, so that no attention goes to padding;
- one layer norm before all branches, no position table, and layer norm with GELU where others have batch norm with
  ReLU, so that batches may be of any size.

Layout inside: NHWC.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones.errors import InputError


class VaryingWindowAttention(nn.Module):
    """Every P x P window of queries attends to the P x P means of a context of R P x R P tokens around its centre.

    For a query x in the window with the corner (r P, c P), token of a map (H, W), and the cells j of R x R tokens that
    begin at (r P - (R - 1) P / 2, c P - (R - 1) P / 2):

        y(x) = W_o sum_j softmax_j(q(x) . k_j / sqrt(head_dim)) v_j,   k_j = W_k m_j,   v_j = W_v m_j,

    m_j being the mean of the cell's tokens that lie in the map; cells without any take no part. R = 1 is attention in
    windows that do not overlap. (B, H, W, C) to the same shape, for any H and W.

    Args:
        dim: channels C.
        num_heads: attention heads.
        window_size: side P of a window of queries, in tokens; even.
        ratio: R, side of the context in windows; divides P, so that the cells of all windows are those of one grid.
    """

    def __init__(self, dim: int, num_heads: int, window_size: int, ratio: int):
        super().__init__()
        if dim % num_heads or window_size % 2 or window_size % ratio:
            raise InputError(
                f"Varying windows need num_heads that divide the channels, and an even window_size that the ratio "
                f"divides, but got dim={dim}, num_heads={num_heads}, window_size={window_size}, ratio={ratio}."
            )
        self.num_heads, self.window_size, self.ratio = num_heads, window_size, ratio
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        batch, height, width, dim = x.shape
        side = self.window_size
        rows, columns = -(-height // side), -(-width // side)
        means, inside = self._cells(x, rows, columns)
        q = F.pad(self.q(x), (0, 0, 0, columns * side - width, 0, rows * side - height))
        q = self._heads(self._windows(q, side), 1)[0]
        k, v = self._heads(self._windows(self.kv(means), side // self.ratio), 2)
        mask = self._windows(inside[None, :, :, None], side // self.ratio)  # (windows, P * P, 1)
        mask = mask.transpose(1, 2)[:, None].repeat(batch, 1, 1, 1)  # the same for all heads and queries
        y = F.scaled_dot_product_attention(q, k, v, mask)  # (batch * windows, heads, P * P, head_dim)
        y = y.reshape(batch, rows, columns, self.num_heads, side, side, -1).permute(0, 1, 4, 2, 5, 3, 6)
        return self.proj(y.reshape(batch, rows * side, columns * side, dim)[:, :height, :width])

    def _cells(self, x: Tensor, rows: int, columns: int) -> tuple[Tensor, Tensor]:
        """Means (B, h, w, C) of all windows' cells, and (h, w), whether any token of a cell is in the map."""
        side, ratio = self.window_size, self.ratio
        before = (ratio - 1) * side // 2
        empty, shift = before // ratio, before % ratio  # whole cells before the map, and what the first has of another
        height, width = (-(-(n + shift) // ratio) for n in x.shape[1:3])
        steps = [(n - 1) * side // ratio + side - empty - m for n, m in ((rows, height), (columns, width))]
        borders = (shift, width * ratio - shift - x.shape[2], shift, height * ratio - shift - x.shape[1])

        def pooled(maps: Tensor) -> Tensor:
            # Cells outside are added after pooling: before it they would be R * R times as many tokens.
            maps = F.avg_pool2d(F.pad(maps, borders) if any(borders) else maps, ratio)
            return F.pad(maps, (empty, steps[1], empty, steps[0]))

        share = pooled(x.new_ones(1, 1, *x.shape[1:3]))
        means = pooled(x.permute(0, 3, 1, 2)) / share.clamp(min=ratio**-2)
        return means.permute(0, 2, 3, 1), share[0, 0] > 0

    def _windows(self, x: Tensor, step: int) -> Tensor:
        """(B, h, w, C) to windows of P x P at every `step`, (B * windows, P * P, C)."""
        windows = x.unfold(1, self.window_size, step).unfold(2, self.window_size, step)
        return windows.permute(0, 1, 2, 4, 5, 3).reshape(-1, self.window_size**2, x.shape[-1])

    def _heads(self, x: Tensor, parts: int) -> Tensor:
        """(N, L, parts * C) to (parts, N, heads, L, head_dim)."""
        return x.unflatten(2, (parts, self.num_heads, -1)).permute(2, 0, 3, 1, 4)


class VWFormerDecoder(nn.Module):
    """Maps at strides 4, 8, 16 and 32 to one at stride 4 that saw contexts of several sizes.

    Args:
        in_channels: of the four maps.
        width: channels of the tokens and of what comes out.
        window_size: side of a window of queries, in tokens of 8 pixels.
        ratios: sides of the contexts, in windows.
        head_dim: channels per attention head; where it does not divide the width, there is one head.
    """

    def __init__(
        self,
        in_channels: list[int],
        width: int,
        window_size: int = 8,
        ratios: tuple[int, ...] = (2, 4, 8),
        head_dim: int = 32,
    ):
        super().__init__()
        self.out_channels = width
        num_heads = 1 if width % head_dim else width // head_dim
        self.lateral = nn.ModuleList([nn.Linear(channels, width) for channels in in_channels[1:]])
        self.aggregate = _dense(width * len(self.lateral), width)
        self.norm = nn.LayerNorm(width)
        self.branches = nn.ModuleList(
            [VaryingWindowAttention(width, num_heads, window_size, ratio) for ratio in ratios]
        )
        self.fuse = _dense(width * (1 + len(ratios)), width)
        self.detail = _dense(in_channels[0], width)
        self.enhance = _dense(2 * width, width)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Four maps (B, C, H, W), finest first, to (B, width, H, W) of the first one's size."""
        finest, *coarser = (x.permute(0, 2, 3, 1) for x in maps)
        size = coarser[0].shape[1:3]
        x = self.aggregate(torch.cat([_resize(linear(y), size) for linear, y in zip(self.lateral, coarser)], -1))
        normed = self.norm(x)
        x = self.fuse(torch.cat([x, *(branch(normed) for branch in self.branches)], -1))
        x = self.enhance(torch.cat([_resize(x, finest.shape[1:3]), self.detail(finest)], -1))
        return x.permute(0, 3, 1, 2)


def _dense(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(in_channels, out_channels), nn.LayerNorm(out_channels), nn.GELU())


def _resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, h, w, C) to (B, *size, C)."""
    if x.shape[1:3] == size:
        return x
    return F.interpolate(x.permute(0, 3, 1, 2), size, mode="bilinear").permute(0, 2, 3, 1)
