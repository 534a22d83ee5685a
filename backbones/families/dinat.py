"""NAT, DiNAT and DiNAT_s: attention to a window around each token, in DiNAT with growing steps.

NAT: Hassani et al., CVPR 2023, arXiv:2204.07143. DiNAT and DiNAT_s: Hassani and Shi, 2022, arXiv:2209.15001.

Four stages of pre-norm blocks on NHWC maps. NAT and DiNAT down-sample with overlapping 3 x 3 convolutions (two without
anything between them in the stem; LayerNorm after each step), DiNAT_s has Swin's patches and merging instead. Where a
family is dilated, every second block is: in the classifiers by as much as the window still fits into the map, in the
dense backbones by what the release chose for the task, with the same weights. NAT is not dilated in either.

Only nat_s, nat_b and dinat_b scale their layers. The release decays the position tables. Windows at borders, padding
of small maps and the sign of the position table are told in `attention/neighborhood.py` and its kernel.
"""

import re
from collections.abc import Mapping, Sequence
from itertools import cycle, islice

import torch
from timm.layers import DropPath, LayerScale, calculate_drop_path_rates, to_2tuple
from torch import Tensor, nn

from ..attention import NeighborhoodAttention
from ..backbone import Backbone, Stage
from ..errors import InputError
from ..layers import Mlp, PatchMerging, PatchStem, init_weights
from ..registry import register_family

# Dilations of the released dense backbones, per stage; a row repeats over the blocks of its stage.
COCO = ((1, 28), (1, 7, 1, 14), (1, 3, 1, 5, 1, 7), (1, 3))
COCO_S = ((1, 28), (1, 14), (1, 3, 1, 5, 1, 7), (1, 3))
ADE_512 = ((1, 16), (1, 4, 1, 8), (1, 2, 1, 3, 1, 4), (1, 2))
ADE_512_S = ((1, 16), (1, 8), (1, 2, 1, 3, 1, 4), (1, 2))
ADE_640 = ((1, 20), (1, 5, 1, 10), (1, 2, 1, 3, 1, 4, 1, 5) * 2 + (1, 5), (1, 2))
ADE_640_S = ((1, 20), (1, 10), (1, 2, 1, 3, 1, 4, 1, 5) * 2 + (1, 5), (1, 2))
MASK2FORMER = ((1, 14), (1, 4, 1, 7), (1, 2, 1, 3) * 4 + (1, 3), (1,))

MINI = dict(dim=64, depths=(3, 4, 6, 5), num_heads=(2, 4, 8, 16), mlp_ratio=3)
TINY = dict(dim=64, depths=(3, 4, 18, 5), num_heads=(2, 4, 8, 16), mlp_ratio=3)
SMALL = dict(dim=96, depths=(3, 4, 18, 5), num_heads=(3, 6, 12, 24), mlp_ratio=2)
BASE = dict(dim=128, depths=(3, 4, 18, 5), num_heads=(4, 8, 16, 32), mlp_ratio=2)
LARGE = dict(dim=192, depths=(3, 4, 18, 5), num_heads=(6, 12, 24, 48), mlp_ratio=2)
DENSE = dict(detection=COCO, segmentation=ADE_512)
DENSE_L = dict(detection=COCO, segmentation=ADE_640)
DENSE_11 = dict(detection=MASK2FORMER, segmentation=MASK2FORMER)
S = dict(overlap=False, mlp_ratio=4, dense_dilations=dict(detection=COCO_S, segmentation=ADE_512_S))
S_L = dict(overlap=False, mlp_ratio=4, dense_dilations=dict(detection=COCO_S, segmentation=ADE_640_S))

VARIANTS = {
    "nat_m": MINI | dict(dilations=1),
    "nat_t": TINY | dict(dilations=1),
    "nat_s": SMALL | dict(dilations=1, layer_scale=1e-5),
    "nat_b": BASE | dict(dilations=1, layer_scale=1e-5),
    "dinat_nano": dict(
        dim=24, depths=(2, 2, 2, 1), num_heads=(1, 2, 4, 8), kernel_size=3, mlp_ratio=2, patch_size=2, img_size=32
    ),
    "dinat_m": MINI | dict(dense_dilations=DENSE),
    "dinat_t": TINY | dict(dense_dilations=DENSE),
    "dinat_s": SMALL | dict(dense_dilations=DENSE),
    "dinat_b": BASE | dict(dense_dilations=DENSE, layer_scale=1e-5),
    "dinat_l": LARGE | dict(dense_dilations=DENSE_L),
    "dinat_l_384": LARGE | dict(dense_dilations=DENSE_L, img_size=384),
    "dinat_l_384_k11": LARGE | dict(dense_dilations=DENSE_11, img_size=384, kernel_size=11),
    "dinats_t": S | dict(dim=96, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24)),
    "dinats_s": S | dict(dim=96, depths=(2, 2, 18, 2), num_heads=(3, 6, 12, 24)),
    "dinats_b": S | dict(dim=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32)),
    "dinats_l": S_L | dict(dim=192, depths=(2, 2, 18, 2), num_heads=(6, 12, 24, 48)),
    "dinats_l_384": S_L | dict(dim=192, depths=(2, 2, 18, 2), num_heads=(6, 12, 24, 48), img_size=384),
}


class OverlapStem(nn.Module):
    """Two 3 x 3 convolutions, then LayerNorm: (B, in_chans, H, W) to (B, ceil(H / s), ceil(W / s), dim).

    Args:
        stride: s; 2 or 4.
    """

    def __init__(self, in_chans: int, dim: int, stride: int):
        super().__init__()
        self.proj = nn.Conv2d(in_chans, dim // 2, 3, 2, 1)
        self.refine = nn.Conv2d(dim // 2, dim, 3, stride // 2, 1)
        self.norm = nn.LayerNorm(dim)

    def forward(self, images: Tensor) -> Tensor:
        return self.norm(self.refine(self.proj(images)).permute(0, 2, 3, 1))


class OverlapMerging(nn.Module):
    """A 3 x 3 convolution, then LayerNorm: (B, H, W, C) to (B, ceil(H / 2), ceil(W / 2), out_dim)."""

    def __init__(self, dim: int, out_dim: int):
        super().__init__()
        self.reduction = nn.Conv2d(dim, out_dim, 3, 2, 1, bias=False)
        self.norm = nn.LayerNorm(out_dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.reduction(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


class DiNATBlock(nn.Module):
    """Neighbourhood attention, then MLP, each with a residual: (B, H, W, C) to the same shape."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        kernel_size: int,
        dilation: int,
        mlp_ratio: float,
        layer_scale: float | None,
        drop_path: float,
    ):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attention = NeighborhoodAttention(dim, num_heads, kernel_size, dilation)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.scale1 = nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale)
        self.scale2 = nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.scale1(self.attention(self.norm1(x))))
        return x + self.drop_path(self.scale2(self.mlp(self.norm2(x))))


@register_family(VARIANTS)
class DiNAT(Backbone):
    """Four stages, the width doubling and the resolution halving from each to the next.

    Args:
        dim: width of the first stage.
        depths, num_heads: blocks and attention heads per stage.
        kernel_size: side of the window around each token, in tokens.
        dilations: step of the window per stage and block, in tokens, or one number for all. None: 1, in every second
            block the largest with which the window fits into the stage's map at `img_size`; dense: `dense_dilations`.
        dense_dilations: for "detection" and "segmentation", a row of dilations per stage that repeats over its blocks;
            None: as in the classifier.
        overlap: down-sample with 3 x 3 convolutions (NAT, DiNAT); else with patches and their merging (DiNAT_s).
        layer_scale: initial scale of the branches of each block; None for no such scale.
        patch_size: stride of the stem, in pixels.
        img_size: nominal image size, in pixels.
        drop_path_rate: drop probability of the last block; rises linearly from 0 at the first.
    """

    def __init__(
        self,
        dim: int,
        depths: Sequence[int],
        num_heads: Sequence[int],
        kernel_size: int = 7,
        dilations: int | Sequence[Sequence[int]] | None = None,
        dense_dilations: Mapping[str, Sequence[Sequence[int]]] | None = None,
        overlap: bool = True,
        mlp_ratio: float = 3.0,
        layer_scale: float | None = None,
        patch_size: int = 4,
        img_size: int | tuple[int, int] = 224,
        drop_path_rate: float = 0.0,
        drop_rate: float = 0.0,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        dense: str | None = None,
    ):
        super().__init__(in_chans, num_classes, global_pool, drop_rate, dense)
        self.check_stages(depths, num_heads, dim=dim, patch_size=patch_size)
        if overlap and patch_size not in (2, 4):
            raise InputError(f"The two convolutions of the stem have a stride of 2 or 4, but patch_size={patch_size}.")
        strides = [patch_size * 2**i for i in range(len(depths))]
        if dilations is None and self.dense and dense_dilations:
            if dense not in dense_dilations:
                raise InputError(
                    f"dense_dilations has no entry for dense={dense!r}, only for {', '.join(dense_dilations)}."
                )
            dilations = [list(islice(cycle(row), depth)) for row, depth in zip(dense_dilations[dense], depths)]
        elif dilations is None:
            reach = [max(1, min(to_2tuple(img_size)) // (stride * kernel_size)) for stride in strides]
            dilations = [list(islice(cycle((1, most)), depth)) for most, depth in zip(reach, depths)]
        elif isinstance(dilations, int):
            dilations = [[dilations] * depth for depth in depths]
        if not isinstance(dilations, Sequence) or [len(row) for row in dilations] != list(depths):
            raise InputError(
                f"dilations are one number, or a row per stage with a number per block, which are {tuple(depths)}, but "
                f"got {dilations}."
            )

        dims = [dim * 2**i for i in range(len(depths))]
        self.stem = (OverlapStem if overlap else PatchStem)(in_chans, dim, patch_size)
        merging = OverlapMerging if overlap else PatchMerging
        self.stages = nn.ModuleList()
        for i, rates in enumerate(calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)):
            blocks = [
                DiNATBlock(dims[i], num_heads[i], kernel_size, dilation, mlp_ratio, layer_scale, rate)
                for dilation, rate in zip(dilations[i], rates)
            ]
            self.stages.append(Stage(merging(dims[i - 1], dims[i]) if i else nn.Identity(), blocks))
        self.finish(dims, strides)
        if not dense:  # the release's dense backbones keep PyTorch's initial weights
            self.apply(init_weights)

    def least_sizes(self) -> list[int]:
        """As in `Backbone`: where every dilated window fits into its map."""
        pairs = zip(self.feature_info, self.stages)
        windows = [(info, block.attention) for info, stage in pairs for block in stage.blocks]
        return [info["reduction"] * window.kernel_size * window.dilation for info, window in windows]


def convert_checkpoint(official: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename an official state dict, the release's or transformers' classifier's, to this module's names."""
    if any(".encoder.levels." in name for name in official):
        official = from_transformers(official)
    renamed = {}
    for name, value in official.items():
        name = name.replace("patch_embed.proj.0.", "stem.proj.").replace("patch_embed.proj.1.", "stem.refine.")
        name = name.replace("patch_embed.", "stem.").replace(".attn.rpb", ".attention.table")
        name = name.replace(".attn.", ".attention.")
        name = re.sub(r"\.gamma(\d)$", r".scale\1.gamma", name)
        name = re.sub(r"^head\.", "head.fc.", name)
        # The release keeps the down-sampling with the stage before it.
        name = re.sub(r"^(?:levels|layers)\.(\d+)\.downsample", lambda m: f"stages.{int(m[1]) + 1}.downsample", name)
        renamed[re.sub(r"^(?:levels|layers)\.", "stages.", name)] = value
    return renamed


TRANSFORMERS = {
    "embeddings.patch_embeddings.projection.": "patch_embed.proj.",
    "embeddings.norm.": "patch_embed.norm.",
    "encoder.levels.": "levels.",
    ".layers.": ".blocks.",
    ".layernorm_before.": ".norm1.",
    ".layernorm_after.": ".norm2.",
    ".attention.self.": ".attn.",
    ".attention.output.dense.": ".attn.proj.",
    ".intermediate.dense.": ".mlp.fc1.",
    ".output.dense.": ".mlp.fc2.",
    "layernorm.": "norm.",
    "classifier.": "head.",
}


def from_transformers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of transformers' Dinat- or NatForImageClassification, by the release's names."""
    official = {}
    for name, value in state.items():
        name = name.removeprefix("dinat.").removeprefix("nat.")
        for theirs, released in TRANSFORMERS.items():
            name = name.replace(theirs, released)
        if name.endswith(".layer_scale_parameters"):
            block = name.removesuffix("layer_scale_parameters")
            official[f"{block}gamma1"], official[f"{block}gamma2"] = value
        else:
            official[name] = value
    for name in [name for name in official if ".attn.query." in name]:
        parts = [official.pop(name.replace(".query.", f".{part}.")) for part in ("query", "key", "value")]
        official[name.replace(".query.", ".qkv.")] = torch.cat(parts)
    return official
