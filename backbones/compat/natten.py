"""Names that NATTEN has dropped, on this project's kernels: `install()` makes `import natten` find them.

`natten2dqkrpb` and `natten2dav` (NATTEN 0.14.6 to 0.17.4), `na2d_qk_with_bias` (0.15), `na2d_qk` and `na2d_av` (0.15 to
0.17) and `NeighborhoodAttention2D` with its position bias, forward and backward, on any device. Maps are NATTEN's,
(B, heads, H, W, head_dim), and weights (B, heads, H, W, kernel_size ** 2).

Not here: one and three dimensions, causal windows, windows that are not square, additional keys.
"""

import importlib.util
import sys
from collections.abc import Sequence

import torch.nn.functional as F
from timm.layers import to_2tuple
from torch import Tensor, nn

from ..errors import InputError
from ..kernels.neighborhood import neighborhood_aggregate, neighborhood_attention, neighborhood_scores

__version__ = "0.15.1"  # the release that this stands in for, for code that asks
__all__ = [
    "NeighborhoodAttention2D",
    "na2d_av",
    "na2d_qk",
    "na2d_qk_with_bias",
    "natten2dav",
    "natten2dqkrpb",
]

functional = natten2d = na2d = sys.modules[__name__]  # NATTEN's modules of these names


def na2d_qk(
    query: Tensor,
    key: Tensor,
    kernel_size: int | Sequence[int],
    dilation: int | Sequence[int] = 1,
    *,
    rpb: Tensor | None = None,
) -> Tensor:
    """Products of each query with the keys of its window, row by row, (B, heads, H, W, kernel_size ** 2).

    Nothing is scaled. At a border the window is pushed inwards.

    Args:
        query, key: (B, heads, H, W, head_dim).
        kernel_size, dilation: of both axes, as a number or as two equal ones; kernel_size * dilation fits into H and W.
        rpb: added by relative position, key minus query, (heads, 2 * kernel_size - 1, 2 * kernel_size - 1), or None.

    Raises:
        ValueError: a map smaller than the window, or shapes that do not belong together.
    """
    kernel_size, dilation = _of_both_axes("kernel_size", kernel_size), _of_both_axes("dilation", dilation)
    scores = neighborhood_scores(_heads_last(query), _heads_last(key), kernel_size, dilation, rpb, scale=1.0)
    return scores.permute(0, 3, 1, 2, 4).contiguous()


def na2d_av(attn: Tensor, value: Tensor, kernel_size: int | Sequence[int], dilation: int | Sequence[int] = 1) -> Tensor:
    """Sums of the values of each window, (B, heads, H, W, head_dim), weighted with `attn`, shaped as `na2d_qk`'s."""
    kernel_size, dilation = _of_both_axes("kernel_size", kernel_size), _of_both_axes("dilation", dilation)
    out = neighborhood_aggregate(_heads_last(attn), _heads_last(value), kernel_size, dilation)
    return out.permute(0, 3, 1, 2, 4).contiguous()


def na2d_qk_with_bias(query: Tensor, key: Tensor, bias: Tensor | None, kernel_size: int, dilation: int) -> Tensor:
    """`na2d_qk` by its name of NATTEN 0.15."""
    return na2d_qk(query, key, kernel_size, dilation, rpb=bias)


def natten2dqkrpb(query: Tensor, key: Tensor, rpb: Tensor | None, kernel_size: int, dilation: int) -> Tensor:
    """`na2d_qk` by its first name."""
    return na2d_qk(query, key, kernel_size, dilation, rpb=rpb)


def natten2dav(attn: Tensor, value: Tensor, kernel_size: int, dilation: int) -> Tensor:
    """`na2d_av` by its first name."""
    return na2d_av(attn, value, kernel_size, dilation)


class NeighborhoodAttention2D(nn.Module):
    """NATTEN's module with the names of its parameters: `qkv`, `rpb`, `proj`. (B, H, W, C) to the same shape.

    A side shorter than kernel_size * dilation is filled up with zeros, as up to NATTEN 0.15; later ones refuse it.

    Args:
        bias: whether relative positions have a bias.
        rel_pos_bias: what NATTEN calls `bias` from 0.17 on; stands for it where it is given.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        kernel_size: int | Sequence[int],
        dilation: int | Sequence[int] | None = 1,
        bias: bool = True,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        rel_pos_bias: bool | None = None,
    ):
        super().__init__()
        self.num_heads, self.head_dim = num_heads, dim // num_heads
        self.scale = qk_scale or self.head_dim**-0.5
        self.kernel_size = _of_both_axes("kernel_size", kernel_size)
        self.dilation = _of_both_axes("dilation", dilation or 1)
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        if bias if rel_pos_bias is None else rel_pos_bias:
            side = 2 * self.kernel_size - 1
            self.rpb = nn.Parameter(nn.init.trunc_normal_(self.qkv.weight.new_empty(num_heads, side, side), std=0.02))
        else:
            self.register_parameter("rpb", None)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        _, height, width, _ = x.shape
        side = self.kernel_size * self.dilation
        if min(height, width) < side:
            x = F.pad(x, (0, 0, 0, max(0, side - width), 0, max(0, side - height)))
        q, k, v = self.qkv(x).unflatten(3, (3, self.num_heads, self.head_dim)).unbind(3)
        if self.training and self.attn_drop.p > 0:
            scores = neighborhood_scores(q, k, self.kernel_size, self.dilation, self.rpb, self.scale)
            x = neighborhood_aggregate(self.attn_drop(scores.softmax(-1)), v, self.kernel_size, self.dilation)
        else:
            x = neighborhood_attention(q, k, v, self.kernel_size, self.dilation, self.rpb, self.scale)
        return self.proj_drop(self.proj(x[:, :height, :width].flatten(3)))


def install() -> None:
    """Make `import natten` and `natten.functional` this module, in this process, where NATTEN is not installed.

    Call it before importing what needs NATTEN. transformers then counts natten among what is there.

    Raises:
        InputError: NATTEN is installed, and stays what it is; or transformers' DiNAT was imported before.
    """
    this = sys.modules[__name__]
    if sys.modules.get("natten") is this:
        return
    if "natten" in sys.modules or importlib.util.find_spec("natten"):
        raise InputError(
            "NATTEN is installed here, and backbones.compat.natten does not take its place. Import the names from "
            "backbones.compat.natten itself, or uninstall NATTEN (pip uninstall natten)."
        )
    if "transformers.models.dinat.modeling_dinat" in sys.modules:
        raise InputError(
            "transformers' DiNAT was imported before backbones.compat.natten.install(), and has noted that there is no "
            "natten. Call install() first."
        )
    for name in ("natten", "natten.functional", "natten.natten2d", "natten.na2d"):
        sys.modules[name] = this
    if "transformers.utils.import_utils" in sys.modules:  # it remembers what it has looked for
        sys.modules["transformers.utils.import_utils"].is_natten_available.cache_clear()


def _heads_last(x: Tensor) -> Tensor:
    """A map (B, heads, H, W, d) as the kernels take it, (B, H, W, heads, d)."""
    if x.dim() != 5:
        raise ValueError(f"NATTEN's maps are (B, heads, H, W, head_dim), but got {tuple(x.shape)}.")
    return x.permute(0, 2, 3, 1, 4)


def _of_both_axes(name: str, value: int | Sequence[int]) -> int:
    height, width = to_2tuple(value)
    if height != width:
        raise ValueError(f"{name} is the same for rows and columns here, but got {value}.")
    return height
