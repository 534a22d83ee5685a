"""GC ViT: windows that ask with the queries of the whole image (Hatamizadeh et al., ICML 2023, arXiv:2206.09959).

Four levels of pre-norm blocks on NHWC maps. Even blocks of a level attend inside windows; odd blocks do so with global
queries, which a small convolutional network makes once per level from the level's input, for all windows of an image.
Between the levels stand residual convolution units and strided convolutions instead of patch merging.

The global queries are raw features, without norm or projection. The unit before a strided convolution adds to the
normed map, and no convolution but the first has a bias. Maps are filled up to whole windows with zeros after the norm,
unmasked, and queries are resized to the window where the pooled map is not of its size; the classification network is
defined only where neither happens. The third level's queries are pooled in dense backbones alone, and there unless the
window has 14 tokens a side. LayerNorm's eps is 1e-5; the release decays the position tables.
"""

import re
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.layers import DropPath, LayerScale, calculate_drop_path_rates, to_2tuple, to_4tuple
from torch import Tensor, fx, nn

from ..attention import GlobalQueryAttention, WindowAttention
from ..backbone import Backbone, Stage, in_pieces
from ..errors import InputError
from ..layers import Mlp, init_weights, resize_bicubic
from ..registry import register_family

DEEP, TINY, LARGE = (3, 4, 19, 5), (2, 4, 8, 16), (6, 12, 24, 48)
VARIANTS = {
    "gcvit_nano": dict(
        dim=20,
        depths=(2, 2, 2, 2),
        num_heads=(1, 2, 4, 8),
        mlp_ratio=2,
        window_size=(4, 4, 4, 2),
        stem_stride=1,
        img_size=32,
    ),
    "gcvit_xxt": dict(dim=64, depths=(2, 2, 6, 2), num_heads=TINY),
    "gcvit_xt": dict(dim=64, depths=(3, 4, 6, 5), num_heads=TINY),
    "gcvit_t": dict(dim=64, depths=DEEP, num_heads=TINY),
    "gcvit_t2": dict(dim=64, depths=(3, 4, 29, 5), num_heads=TINY),
    "gcvit_s": dict(dim=96, depths=DEEP, num_heads=(3, 6, 12, 24), mlp_ratio=2, layer_scale=1e-5),
    "gcvit_s2": dict(dim=96, depths=(3, 4, 23, 5), num_heads=(3, 6, 12, 24), layer_scale=1e-5),
    "gcvit_b": dict(dim=128, depths=DEEP, num_heads=(4, 8, 16, 32), mlp_ratio=2, layer_scale=1e-5),
    "gcvit_l": dict(dim=192, depths=DEEP, num_heads=LARGE, mlp_ratio=2, layer_scale=1e-5),
    "gcvit_l_384": dict(dim=192, depths=DEEP, num_heads=LARGE, mlp_ratio=2, layer_scale=1e-5, img_size=384),
    "gcvit_l_512": dict(dim=192, depths=DEEP, num_heads=LARGE, mlp_ratio=2, layer_scale=1e-5, img_size=512),
}

DENSE_WINDOW = 24
QUERY_UNITS = (3, 2, 1, 1)  # per level; those of the first two levels pool
NOMINAL_THIRD = 14  # side of the third level's map at 224 px, with which every release compares its window


class ResidualConv(nn.Module):
    """x + pointwise(squeeze-excitation(GELU(depthwise(x)))): (B, H, W, C) to the same shape."""

    def __init__(self, dim: int):
        super().__init__()
        self.depthwise = nn.Conv2d(dim, dim, 3, padding=1, groups=dim, bias=False)
        self.squeeze = nn.Linear(dim, dim // 4, bias=False)
        self.excite = nn.Linear(dim // 4, dim, bias=False)
        self.pointwise = nn.Conv2d(dim, dim, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.gelu(self.depthwise(x.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)
        gate = self.excite(F.gelu(self.squeeze(y.mean((1, 2))))).sigmoid()
        return x + F.linear(y * gate[:, None, None], self.pointwise.weight.flatten(1))


class Downsample(nn.Module):
    """Half the resolution, another width: (B, H, W, C) to (B, ceil(H / 2), ceil(W / 2), out_dim)."""

    def __init__(self, dim: int, out_dim: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.conv = ResidualConv(dim)
        self.reduction = nn.Conv2d(dim, out_dim, 3, stride=2, padding=1, bias=False)
        self.norm2 = nn.LayerNorm(out_dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(self.norm1(x)).permute(0, 3, 1, 2)
        return self.norm2(self.reduction(x).permute(0, 2, 3, 1))


class GCViTStem(nn.Module):
    """Overlapping patches to tokens: (B, in_chans, H, W) to (B, H / 2s, W / 2s, dim), rounded up, for stride s."""

    def __init__(self, in_chans: int, dim: int, stride: int):
        super().__init__()
        self.proj = nn.Conv2d(in_chans, dim, 3, stride, padding=1)
        self.downsample = Downsample(dim, dim)

    def forward(self, images: Tensor) -> Tensor:
        images = images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)  # so that the tokens need no copy
        return in_pieces(self.downsample, self.proj(images).permute(0, 2, 3, 1))


class QueryGenerator(nn.Module):
    """Global queries of a level from its input: (B, H, W, C) to (B, window_size, window_size, C)."""

    def __init__(self, dim: int, units: int, pool: bool, window_size: int):
        super().__init__()
        self.units = nn.ModuleList(ResidualConv(dim) for _ in range(units))
        self.pool, self.window_size = pool, window_size

    def forward(self, x: Tensor) -> Tensor:
        for unit in self.units:
            x = unit(x)
            if self.pool:
                x = F.max_pool2d(x.permute(0, 3, 1, 2), 3, 2, 1).permute(0, 2, 3, 1)
        return resize(x, self.window_size)


@fx.wrap
@torch.jit.ignore
def resize(x: Tensor, side: int) -> Tensor:
    """(B, H, W, C) to (B, side, side, C), bicubic, as products with a matrix for each axis.

    That is the same function as interpolating the map, without the permutations, and runs where interpolation of
    channels-last maps does not (onnxruntime).
    """
    height, width = x.shape[1], x.shape[2]
    # A symbol is many sizes; where it is `side`, the matrix is the identity.
    if isinstance(height, torch.SymInt) or height != side:
        x = (resizing_matrix(height, side, x) @ x.flatten(2)).unflatten(2, (width, -1))
    if isinstance(width, torch.SymInt) or width != side:
        x = resizing_matrix(width, side, x) @ x
    return x


def resizing_matrix(length: int, side: int, like: Tensor) -> Tensor:
    """Bicubic interpolation along an axis as a matrix (side, length): that of the unit vectors."""
    units = torch.eye(length, dtype=like.dtype, device=like.device)[None, None]
    return resize_bicubic(units, (side, length))[0, 0]


class GCViTBlock(nn.Module):
    """Window attention with own or global queries, then MLP, each with a residual: (B, H, W, C) to the same shape."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window_size: int,
        mlp_ratio: float,
        layer_scale: float | None,
        drop_path: float,
        is_global: bool,
    ):
        super().__init__()
        self.is_global = is_global
        self.norm1 = nn.LayerNorm(dim)
        self.attention = (GlobalQueryAttention if is_global else WindowAttention)(dim, num_heads, window_size)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.scale1, self.scale2 = (
            nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale) for _ in range(2)
        )
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, query: Tensor) -> Tensor:
        y = self.norm1(x)
        y = self.attention(y, query) if self.is_global else self.attention(y)
        x = x + self.drop_path(self.scale1(y))
        return x + self.drop_path(self.scale2(self.mlp(self.norm2(x))))


class Level(Stage):
    """A stage whose blocks share the queries made from its input."""

    def __init__(self, downsample: nn.Module, query_generator: QueryGenerator, blocks: list[nn.Module]):
        super().__init__(downsample, blocks)
        self.query_generator = query_generator

    def forward(self, x: Tensor) -> Tensor:
        return in_pieces(lambda piece: self.forward_blocks(self.downsample(piece)), x)

    def forward_blocks(self, x: Tensor) -> Tensor:
        return super().forward_blocks(x, self.query_generator(x))


@register_family(VARIANTS)
class GCViT(Backbone):
    """Four levels, the width doubling and the resolution halving from each to the next.

    Args:
        dim: width of the first level.
        depths, num_heads: blocks and attention heads per level.
        window_size: side of a window per level, in tokens. None: 24 in dense backbones; else those with which the
            classification network is defined at `img_size`, 7, 7, 14 and 7 at 224 px.
        stem_stride: stride of the first convolution, in pixels; a second halves what it leaves.
        img_size: nominal image size, in pixels.
        layer_scale: initial value of a learned factor per channel of each branch; None: no such factor.
        drop_path_rate: drop probability of the last block; rises linearly from 0 at the first.
    """

    def __init__(
        self,
        dim: int,
        depths: Sequence[int],
        num_heads: Sequence[int],
        window_size: int | Sequence[int] | None = None,
        stem_stride: int = 2,
        img_size: int | tuple[int, int] = 224,
        mlp_ratio: float = 3.0,
        layer_scale: float | None = None,
        drop_path_rate: float = 0.0,
        drop_rate: float = 0.0,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        dense: str | None = None,
    ):
        super().__init__(in_chans, num_classes, global_pool, drop_rate, dense)
        if not len(depths) == len(num_heads) == 4 or min(*depths, *num_heads, dim, stem_stride) < 1:
            raise InputError(
                f"GC ViT has four levels, each with a depth and a num_heads, and sizes of at least 1, but got "
                f"depths={depths}, num_heads={num_heads}, dim={dim}, stem_stride={stem_stride}."
            )
        dims, strides = [dim * 2**i for i in range(4)], [stem_stride * 2 ** (i + 1) for i in range(4)]
        self.strides, self.img_size, self.window_size = strides, img_size, window_size
        windows = self.level_windows()
        self.stem = GCViTStem(in_chans, dim, stem_stride)
        self.stages = nn.ModuleList()
        for i, rates in enumerate(calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)):
            downsample = Downsample(dims[i - 1], dims[i]) if i else nn.Identity()
            blocks = [
                GCViTBlock(dims[i], num_heads[i], windows[i], mlp_ratio, layer_scale, rate, is_global=j % 2 == 1)
                for j, rate in enumerate(rates)
            ]
            generator = QueryGenerator(dims[i], QUERY_UNITS[i], self.pools_queries(i, windows[i]), windows[i])
            self.stages.append(Level(downsample, generator, blocks))
        self.finish(dims, strides)
        if dense:  # the release leaves linear layers as PyTorch makes them, and expects tables from a checkpoint
            for name, parameter in self.named_parameters():
                if name.endswith("position_bias.table"):
                    nn.init.zeros_(parameter)
        else:
            self.apply(init_weights)

    def level_windows(self) -> tuple[int, ...]:
        """Side of the window in each level, in tokens."""
        if self.window_size is None and self.dense:
            return (DENSE_WINDOW,) * 4
        if self.window_size is None:
            side = min(to_2tuple(self.img_size))
            return tuple(-(-side // self.strides[i]) for i in (3, 3, 2, 3))
        windows = to_4tuple(self.window_size)
        if len(windows) != 4 or min(windows) < 1:
            raise InputError(
                "GC ViT takes one window_size per level, four in all and each at least 1 token, but got "
                f"window_size={self.window_size}."
            )
        return windows

    def pools_queries(self, level: int, window_size: int) -> bool:
        """Whether each unit of a level's query generator halves its map."""
        return level < 2 or (level == 2 and bool(self.dense) and window_size != NOMINAL_THIRD)

    def set_input_size(
        self, img_size: int | tuple[int, int] | None = None, window_size: int | Sequence[int] | None = None
    ) -> None:
        """Give the network the windows it would have been built with; position tables are resized.

        Args:
            img_size: nominal image size, in pixels; None keeps it.
            window_size: side of a window per level, in tokens; None keeps those that were given before, if any were.
        """
        before = self.img_size, self.window_size
        self.img_size = before[0] if img_size is None else img_size
        self.window_size = before[1] if window_size is None else window_size
        try:
            windows = self.level_windows()
        except InputError:
            self.img_size, self.window_size = before
            raise
        for i, (stage, window) in enumerate(zip(self.stages, windows)):
            stage.query_generator.pool, stage.query_generator.window_size = self.pools_queries(i, window), window
            for block in stage.blocks:
                block.attention.set_window_size(window)
        self.note_arguments(img_size=img_size, window_size=window_size)


def convert_checkpoint(official: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename an official state dict to this module's names; drop the index buffers, which are recomputed."""
    renamed = {}
    for name, value in official.items():
        if name.endswith("relative_position_index"):
            continue
        name = name.replace("patch_embed.proj.", "stem.proj.").replace("patch_embed.conv_down.", "stem.downsample.")
        name = re.sub(r"^head\.", "head.fc.", name)
        # The release keeps the strided convolution with the level it follows.
        name = re.sub(r"^levels\.(\d+)\.downsample", lambda m: f"stages.{int(m[1]) + 1}.downsample", name)
        name = re.sub(r"^levels\.", "stages.", name).replace(".q_global_gen.to_q_global.", ".query_generator.units.")
        for theirs, ours in (("0", "depthwise"), ("2.fc.0", "squeeze"), ("2.fc.2", "excite"), ("3", "pointwise")):
            name = name.replace(f".conv.{theirs}.", f".conv.{ours}." if "downsample" in name else f".{ours}.")
        # Odd blocks have global queries, and keys and values alone to project.
        name = re.sub(r"(\.blocks\.\d*[13579]\.attn)\.qkv", r"\1.kv", name)
        name = name.replace(".attn.relative_position_bias_table", ".attention.position_bias.table")
        name = name.replace(".attn.", ".attention.")
        renamed[re.sub(r"\.gamma([12])$", r".scale\1.gamma", name)] = value
    return renamed
