"""BiFormer: attention to the regions that suit a region best (Zhu et al., CVPR 2023, arXiv:2303.08810).

Four stages on NHWC maps, with convolutions and batch norms between them. Blocks begin with a convolution for position
in every stage. The last stage has full attention in place of the paper's routing to all regions.

Where the release surprises: there are always `num_regions` regions per side, so that their size follows the image, and
that number is 7 for classification, 16 for detection and 8 for segmentation. Logits are scaled by the whole width in
routing attention and by the width of a head in full attention, whose projection has no bias, whose heads are 8 in all
sizes, and whose LePE is of the input. LayerNorm's eps is 1e-6, BatchNorm's 1e-5, and the final norm is a BatchNorm
before pooling. The classification network is defined where 7 regions divide the first three maps evenly; the dense
backbones fill any map up with zeros before the projection, which is the same there. Detection keeps the running
statistics of all batch norms as they are; segmentation was trained with batch norms synchronised between processes.

Two more checkpoints put the attention into Swin's layout: patches, merging after a batch norm, and no convolution for
position. One of them, `biformer_stl_nchw`, uses the release's second operator, whose regions are ragged and whose LePE
in full attention is of the values.
"""

import re
from collections import OrderedDict
from collections.abc import Sequence

from timm.layers import DropPath, calculate_drop_path_rates
from torch import Tensor, nn

from ..attention import BiLevelRoutingAttention, LePEAttention
from ..backbone import Backbone, Stage
from ..errors import InputError
from ..layers import ConditionalPosition, Mlp, init_weights
from ..registry import register_family

STL = dict(dim=96, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 8), mlp_ratio=4.0, swin_layout=True)

VARIANTS = {
    "biformer_nano": dict(
        dim=24,
        depths=(1, 2, 2, 1),
        num_heads=(1, 2, 4, 8),
        mlp_ratio=2.0,
        num_regions=4,
        top_k=(1, 2, 4),
        patch_size=2,
        img_size=32,
    ),
    "biformer_t": dict(dim=64, depths=(2, 2, 8, 2), num_heads=(2, 4, 8, 8)),
    "biformer_s": dict(dim=64, depths=(4, 4, 18, 4), num_heads=(2, 4, 8, 8)),
    "biformer_b": dict(dim=96, depths=(4, 4, 18, 4), num_heads=(3, 6, 12, 8)),
    "biformer_stl": STL,
    "biformer_stl_nchw": STL | dict(ragged=True),
}

NUM_REGIONS = {None: 7, "detection": 16, "segmentation": 8}

WRAPPER = "model"  # of checkpoints that also hold averaged weights, the release evaluates these


class MapSequential(nn.Sequential):
    """Modules for (B, C, H, W) in a row, on a (B, H, W, C) map, which they take as a channels-last view."""

    def __init__(self, **modules: nn.Module):
        super().__init__(OrderedDict(modules))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class Stem(MapSequential):
    """Images (B, in_chans, H, W) to a map (B, H', W', C)."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.permute(0, 2, 3, 1).contiguous())


def conv_stem(in_chans: int, dim: int, patch_size: int) -> Stem:
    """Two overlapping convolutions: tokens at a stride of `patch_size`, even, rounded up."""
    return Stem(
        proj=nn.Conv2d(in_chans, dim // 2, 3, 2, 1),
        norm1=nn.BatchNorm2d(dim // 2),
        activation=nn.GELU(),
        conv=nn.Conv2d(dim // 2, dim, 3, patch_size // 2, 1),
        norm2=nn.BatchNorm2d(dim),
    )


def patch_stem(in_chans: int, dim: int, patch_size: int) -> Stem:
    """Patches that do not overlap: tokens at a stride of `patch_size`, rounded down."""
    return Stem(proj=nn.Conv2d(in_chans, dim, patch_size, patch_size), norm=nn.BatchNorm2d(dim))


def conv_reduction(dim: int, out_dim: int) -> MapSequential:
    """Half the resolution, rounded up, by overlapping convolution."""
    return MapSequential(conv=nn.Conv2d(dim, out_dim, 3, 2, 1), norm=nn.BatchNorm2d(out_dim))


def patch_reduction(dim: int, out_dim: int) -> MapSequential:
    """Half the resolution, rounded down, by merging cells of 2 x 2."""
    return MapSequential(norm=nn.BatchNorm2d(dim), conv=nn.Conv2d(dim, out_dim, 2, 2))


class BiFormerBlock(nn.Module):
    """Convolution for position, attention, then MLP, each with a residual: (B, H, W, C) to the same shape."""

    def __init__(self, dim: int, attention: nn.Module, position: nn.Module, mlp_ratio: float, drop_path: float):
        super().__init__()
        self.position = position
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attention = attention
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = self.position(x)
        x = x + self.drop_path(self.attention(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


@register_family(VARIANTS)
class BiFormer(Backbone):
    """Stages with routing attention and a last one with full attention, the width doubling from each to the next.

    Args:
        dim: width of the first stage.
        depths, num_heads: blocks and attention heads per stage.
        top_k: regions that a region attends to, per stage but the last.
        num_regions: regions per side; None is 7, and 16 and 8 in the detection and the segmentation backbone.
        patch_size: stride of the stem, in pixels; even, except in Swin's layout.
        swin_layout: patches, merging by a batch norm and a convolution, and no convolution for position.
        ragged: the release's second operator: see `BiLevelRoutingAttention`; LePE of the values in the last stage.
        img_size: nominal image size, in pixels; nothing in the network depends on it.
        drop_path_rate: drop probability of the last block; rises linearly from 0 at the first.
    """

    def __init__(
        self,
        dim: int,
        depths: Sequence[int],
        num_heads: Sequence[int],
        top_k: Sequence[int] = (1, 4, 16),
        num_regions: int | None = None,
        patch_size: int = 4,
        swin_layout: bool = False,
        ragged: bool = False,
        img_size: int | tuple[int, int] = 224,
        mlp_ratio: float = 3.0,
        drop_path_rate: float = 0.0,
        drop_rate: float = 0.0,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        dense: str | None = None,
    ):
        super().__init__(in_chans, num_classes, global_pool, drop_rate, dense)
        if not len(depths) == len(num_heads) == len(top_k) + 1 or min(*depths, *num_heads, dim) < 1:
            raise InputError(
                "BiFormer needs a depth and a num_heads per stage and a top_k for each but the last, and sizes of at "
                f"least 1, but got depths={depths}, num_heads={num_heads}, top_k={top_k}, dim={dim}."
            )
        if patch_size < 1 or (patch_size % 2 and not swin_layout):
            raise InputError(
                f"BiFormer's stem halves the image first, so that its stride must be even, but patch_size={patch_size}."
            )
        regions = NUM_REGIONS[dense] if num_regions is None else num_regions
        dims = [dim * 2**i for i in range(len(depths))]
        reduction = patch_reduction if swin_layout else conv_reduction
        self.stem = (patch_stem if swin_layout else conv_stem)(in_chans, dim, patch_size)
        self.stages = nn.ModuleList()
        for i, rates in enumerate(calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)):
            blocks = []
            for rate in rates:
                if i < len(top_k):
                    attention = BiLevelRoutingAttention(dims[i], num_heads[i], regions, top_k[i], ragged)
                else:
                    attention = LePEAttention(dims[i], num_heads[i], lepe_of_input=not ragged)
                position = nn.Identity() if swin_layout else ConditionalPosition(dims[i])
                blocks.append(BiFormerBlock(dims[i], attention, position, mlp_ratio, rate))
            self.stages.append(Stage(reduction(dims[i - 1], dims[i]) if i else nn.Identity(), blocks))
        self.finish(dims, [patch_size * 2**i for i in range(len(depths))])
        if dense:
            for i, width in enumerate(dims):
                self.add_module(f"norm{i}", nn.LayerNorm(width, eps=1e-6))
        else:
            self.norm = MapSequential(norm=nn.BatchNorm2d(dims[-1]))
        self.apply(init_weights)
        self.train()

    def export_sizes(self) -> tuple[int, int]:
        if self.stages[0].blocks[0].attention.ragged:
            raise InputError(
                "This BiFormer has ragged regions, whose number changes with the size of the image, so that no one "
                "graph can take many sizes. Export it for one size at a time."
            )
        return super().export_sizes()

    def least_sizes(self) -> list[int]:
        """As in `Backbone`: where a region has more than one token a side."""
        routed = list(zip(self.feature_info, self.stages))[:-1]
        return [info["reduction"] * (stage.blocks[0].attention.num_regions + 1) for info, stage in routed]

    def train(self, mode: bool = True) -> "BiFormer":
        """As everywhere, but the detection backbone keeps the running statistics of its batch norms."""
        super().train(mode)
        if self.dense == "detection":
            for module in self.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self


OFFICIAL = {
    r"^norm\.": "norm.norm.",
    r"^head\.": "head.fc.",
    r"^extra_norms\.": "norm",
    r"^(stages\.\d+)\.(\d+)\.": r"\1.blocks.\2.",
    r"\.pos_embed\.": ".position.",
    r"\.attn\.(qkv\.qkv|qkv_linear)\.": ".attention.qkv.",
    r"\.attn\.(wo|output_linear)\.": ".attention.proj.",
    r"\.attn\.": ".attention.",
    r"\.mlp\.0\.": ".mlp.fc1.",
    r"\.mlp\.[23]\.": ".mlp.fc2.",
}


def convert_checkpoint(official: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename an official state dict to this module's names; the second operator's 1 x 1 convolutions become linear."""
    if "downsample_layers.0.3.weight" in official:
        stem, reduction = ["proj", "norm1", "activation", "conv", "norm2"], ["conv", "norm"]
    else:
        stem, reduction = ["proj", "norm"], ["norm", "conv"]

    def downsample(match: re.Match) -> str:
        stage, layer = int(match[1]), int(match[2])
        return f"stages.{stage}.downsample.{reduction[layer]}." if stage else f"stem.{stem[layer]}."

    renamed = {}
    for name, value in official.items():
        if re.search(r"\.(attn\.(qkv|qkv_linear|proj|output_linear)|mlp\.\d)\.weight$", name):
            value = value.flatten(1)
        name = re.sub(r"^downsample_layers\.(\d)\.(\d)\.", downsample, name)
        for pattern, ours in OFFICIAL.items():
            name = re.sub(pattern, ours, name)
        renamed[name] = value
    return renamed
