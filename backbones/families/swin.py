"""Swin Transformer: windows that shift from block to block (Liu et al., ICCV 2021, arXiv:2103.14030).

Four stages of pre-norm blocks on NHWC maps; every second block shifts its windows by half their side.

Two sets of rules for border and small maps exist in the releases. The classification network is defined only where
every map tiles into its windows and merges evenly; there a map no larger than a window is one unshifted window of its
own size. The dense backbones take any size: zeros fill the normed map up to whole windows, unmasked, and no window
shrinks and no shift is dropped. A classifier here keeps the first rules where they are defined and takes the second
elsewhere. LayerNorm's eps is 1e-5, the mask -100, and patch merging counts rows fastest.
"""

import re
from collections.abc import Sequence

import torch
from timm.data import ImageNetInfo
from timm.layers import DropPath, calculate_drop_path_rates, to_2tuple
from torch import Tensor, fx, nn

from ..attention import WindowAttention
from ..backbone import Backbone, Stage
from ..layers import Mlp, PatchMerging, PatchStem, init_weights
from ..registry import register_family

VARIANTS = {
    "swin_nano": dict(dim=24, depths=(1, 2, 1, 1), num_heads=(1, 2, 4, 8), window_size=4, patch_size=2, img_size=32),
    "swin_t": dict(dim=96, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24)),
    "swin_s": dict(dim=96, depths=(2, 2, 18, 2), num_heads=(3, 6, 12, 24)),
    "swin_b": dict(dim=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32)),
    "swin_l": dict(dim=192, depths=(2, 2, 18, 2), num_heads=(6, 12, 24, 48)),
    "swin_b_384": dict(dim=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32), window_size=12, img_size=384),
    "swin_l_384": dict(dim=192, depths=(2, 2, 18, 2), num_heads=(6, 12, 24, 48), window_size=12, img_size=384),
}


class SwinBlock(nn.Module):
    """Window attention, then MLP, each with a residual: (B, H, W, C) to the same shape."""

    def __init__(self, dim: int, num_heads: int, window_size: int, shifted: bool, mlp_ratio: float, drop_path: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attention = WindowAttention(dim, num_heads, window_size, shifted)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, shrink: bool) -> Tensor:
        x = x + self.drop_path(self.attention(self.norm1(x), shrink))
        return x + self.drop_path(self.mlp(self.norm2(x)))


@register_family(VARIANTS)
class Swin(Backbone):
    """Four stages, the width doubling and the resolution halving from each to the next.

    Args:
        dim: width of the first stage.
        depths, num_heads: blocks and attention heads per stage.
        window_size: side of a window, in tokens.
        patch_size: side of the patch that becomes a token, in pixels.
        img_size: nominal image size, in pixels; a stage whose map is smaller than a window gets a table of its size.
        drop_path_rate: drop probability of the last block; rises linearly from 0 at the first.
    """

    def __init__(
        self,
        dim: int,
        depths: Sequence[int],
        num_heads: Sequence[int],
        window_size: int = 7,
        patch_size: int = 4,
        img_size: int | tuple[int, int] = 224,
        mlp_ratio: float = 4.0,
        drop_path_rate: float = 0.0,
        drop_rate: float = 0.0,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        dense: str | None = None,
    ):
        super().__init__(in_chans, num_classes, global_pool, drop_rate, dense)
        self.check_stages(depths, num_heads, dim=dim, window_size=window_size, patch_size=patch_size)
        self.patch_size, self.window_size = patch_size, window_size
        dims = [dim * 2**i for i in range(len(depths))]
        windows = self.stage_windows(img_size, len(depths))
        self.stem = PatchStem(in_chans, dim, patch_size)
        self.stages = nn.ModuleList()
        for i, rates in enumerate(calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)):
            downsample = PatchMerging(dims[i - 1], dims[i]) if i else nn.Identity()
            blocks = [
                SwinBlock(dims[i], num_heads[i], windows[i], j % 2 == 1, mlp_ratio, rate)
                for j, rate in enumerate(rates)
            ]
            self.stages.append(Stage(downsample, blocks))
        self.finish(dims, [patch_size * 2**i for i in range(len(depths))])
        self.apply(init_weights)

    def stage_windows(self, img_size: int | tuple[int, int], stages: int) -> list[int]:
        """Side of the window in each stage of a network for this image size, in tokens."""
        windows = [self.window_size] * stages
        height, width = to_2tuple(img_size)
        if self.dense or not tiles(height, width, self.patch_size, windows):
            return windows
        return [min(self.window_size, min(height, width) // (self.patch_size * 2**i)) for i in range(stages)]

    def stage_arguments(self, images: Tensor) -> tuple[bool]:
        """Whether windows shrink to small maps, which is a rule of the classification network."""
        windows = [stage.blocks[0].attention.window_size for stage in self.stages]
        return (not self.dense and tiles(images.shape[2], images.shape[3], self.patch_size, windows),)

    def least_sizes(self) -> list[int]:
        """As in `Backbone`: where every map is larger than its window."""
        windows = [stage.blocks[0].attention.window_size for stage in self.stages]
        return [info["reduction"] * (window + 1) for info, window in zip(self.feature_info, windows)]

    def set_input_size(self, img_size: int | tuple[int, int] | None = None, window_size: int | None = None) -> None:
        """Give the network the windows it would have been built with; position tables are resized.

        Args:
            img_size: nominal image size, in pixels; None leaves it open, every stage then has a full window.
            window_size: side of a window, in tokens; None keeps it.
        """
        self.window_size = window_size or self.window_size
        stages = len(self.stages)
        windows = self.stage_windows(img_size, stages) if img_size else [self.window_size] * stages
        for stage, window in zip(self.stages, windows):
            for block in stage.blocks:
                block.attention.set_window_size(window)
        self.note_arguments(img_size=img_size, window_size=window_size)

    def no_weight_decay(self) -> set[str]:
        return {name for name, _ in self.named_parameters() if name.endswith("position_bias.table")}


@fx.wrap
@torch.jit.ignore
def tiles(height: int, width: int, patch_size: int, windows: list[int]) -> bool:
    """Whether the classification network is defined for a size: every map tiles into windows and merges evenly.

    False where no map is as small as its window: there both sets of rules are the same.
    """
    if all(side > patch_size * 2**i * window for i, window in enumerate(windows) for side in (height, width)):
        return False
    if height % patch_size or width % patch_size:
        return False
    height, width = height // patch_size, width // patch_size
    for i, window in enumerate(windows):
        if i:
            if height % 2 or width % 2:
                return False
            height, width = height // 2, width // 2
        window = min(window, height, width)
        if window == 0 or height % window or width % window:
            return False
    return True


def convert_checkpoint(official: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename an official state dict to this module's names; drop the index and mask buffers, which are recomputed."""
    renamed = {}
    for name, value in official.items():
        if name.endswith(("relative_position_index", "attn_mask")):
            continue
        name = name.replace(".attn.relative_position_bias_table", ".attention.position_bias.table")
        name = name.replace(".attn.", ".attention.").replace("patch_embed.", "stem.")
        name = re.sub(r"^head\.", "head.fc.", name)
        # The release keeps the merging with the stage it follows.
        name = re.sub(r"^layers\.(\d+)\.downsample", lambda m: f"stages.{int(m[1]) + 1}.downsample", name)
        renamed[re.sub(r"^layers\.", "stages.", name)] = value
    return renamed


def class_rows(old: int, new: int) -> list[int | None] | None:
    """Rows of an ImageNet-22k head (21841 classes) for the 1000 classes of ImageNet-1k; None: no such rule.

    The class n04399382 (teddy) has no row: ImageNet-22k does not have its synset.
    """
    if (old, new) != (21841, 1000):
        return None
    row = {synset: i for i, synset in enumerate(ImageNetInfo("imagenet-22k").label_names())}
    return [row.get(synset) for synset in ImageNetInfo("imagenet-1k").label_names()]
