"""LITv2: no attention in early stages, HiLo attention later (Pan et al., NeurIPS 2022, arXiv:2205.13213).

Four stages on NHWC maps with deformable token merging (LIT, AAAI 2022, arXiv:2105.14217) between them. There is no
position embedding: the depthwise convolution in each MLP sees the border.

What the released models do: alpha is 0.9, not the 0.5 of the classes' default, and the share of heads is truncated, so
12 heads are 10 Lo-Fi and 2 Hi-Fi; with a window of 1, the last stage, all are Lo-Fi. Odd maps lose their last row or
column in merging, where Swin pads. The detection backbone returns its first map without a norm, the segmentation
backbone norms all four. The classification network is defined for square maps that divide evenly, and there equals the
dense one, whose rules hold for all sizes here. The recipe trains the weights of the offsets, all that is named
`downsample.offset.weight`, at a hundredth of the rate of the others.
"""

import re
from collections.abc import Sequence

from timm.layers import DropPath, calculate_drop_path_rates
from torch import Tensor, nn

from ..attention import HiLoAttention
from ..backbone import Backbone, Stage
from ..errors import InputError
from ..layers import DeformableMerging, DepthwiseMlp, PatchStem, init_weights
from ..registry import register_family

SMALL = dict(dim=96, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24))

VARIANTS = {
    "litv2_nano": dict(dim=24, depths=(1, 2, 2, 1), num_heads=(1, 2, 4, 8), mlp_ratio=3.0, patch_size=2, img_size=32),
    "litv2_s": SMALL,
    "litv2_m": dict(dim=96, depths=(2, 2, 18, 2), num_heads=(3, 6, 12, 24)),
    "litv2_b": dict(dim=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32)),
    "litv2_b_384": dict(dim=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32), img_size=384),
    # The paper's figure 4: trained for the comparison, 0, 2, 4, 6, 8 and 12 of 12 heads Lo-Fi in the third stage.
    "litv2_s_alpha00": SMALL | dict(alpha=0.0),
    "litv2_s_alpha02": SMALL | dict(alpha=0.2),
    "litv2_s_alpha04": SMALL | dict(alpha=0.4),
    "litv2_s_alpha05": SMALL | dict(alpha=0.5),
    "litv2_s_alpha07": SMALL | dict(alpha=0.7),
    "litv2_s_alpha10": SMALL | dict(alpha=1.0),
}


class ConvFFNBlock(nn.Module):
    """The MLP alone, with a residual: (B, H, W, C) to the same shape."""

    def __init__(self, dim: int, mlp_ratio: float, drop_path: float):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.mlp = DepthwiseMlp(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop_path(self.mlp(self.norm(x)))


class HiLoBlock(nn.Module):
    """HiLo attention, then MLP, each with a residual: (B, H, W, C) to the same shape."""

    def __init__(self, dim: int, num_heads: int, window_size: int, alpha: float, mlp_ratio: float, drop_path: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attention = HiLoAttention(dim, num_heads, window_size, alpha)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = DepthwiseMlp(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attention(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


@register_family(VARIANTS)
class LITv2(Backbone):
    """Four stages, the width doubling and the resolution halving from each to the next.

    Args:
        dim: width of the first stage.
        depths, num_heads: blocks and attention heads per stage.
        window_size: side of a HiLo window per stage, in tokens; 1 is global attention, 0 a stage without attention.
        alpha: share of the heads that attend to the means of all windows; the others attend inside their window.
        patch_size: side of the patch that becomes a token, in pixels.
        img_size: nominal image size, in pixels; the network is the same for all.
        drop_path_rate: drop probability of the last block; rises linearly from 0 at the first.
    """

    def __init__(
        self,
        dim: int,
        depths: Sequence[int],
        num_heads: Sequence[int],
        window_size: Sequence[int] = (0, 0, 2, 1),
        alpha: float = 0.9,
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
        if isinstance(window_size, int) or not len(depths) == len(num_heads) == len(window_size):
            raise InputError(
                "LITv2 needs a depth, a num_heads and a window_size per stage, but got "
                f"depths={depths}, num_heads={num_heads}, window_size={window_size}."
            )
        if min(*depths, *num_heads, dim, patch_size) < 1 or min(window_size) < 0:
            raise InputError(
                "LITv2 needs depths, num_heads, dim and patch_size of at least 1, and windows of at least 0 (no "
                f"attention), but got depths={depths}, num_heads={num_heads}, dim={dim}, patch_size={patch_size}, "
                f"window_size={window_size}."
            )
        dims = [dim * 2**i for i in range(len(depths))]
        self.stem = PatchStem(in_chans, dim, patch_size)
        self.stages = nn.ModuleList()
        for i, rates in enumerate(calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)):
            downsample = DeformableMerging(dims[i - 1], dims[i]) if i else nn.Identity()
            if window_size[i] == 0:
                blocks = [ConvFFNBlock(dims[i], mlp_ratio, rate) for rate in rates]
            else:
                blocks = [HiLoBlock(dims[i], num_heads[i], window_size[i], alpha, mlp_ratio, rate) for rate in rates]
            self.stages.append(Stage(downsample, blocks))
        self.finish(dims, [patch_size * 2**i for i in range(len(depths))])
        if dense == "detection":
            self.norm0 = nn.Identity()
        self.apply(init_weights)


OFFICIAL = {
    "patch_embed": "stem",
    "h_qkv": "high_qkv",
    "h_proj": "high_proj",
    "l_q": "low_q",
    "l_kv": "low_kv",
    "l_proj": "low_proj",
    "attn": "attention",
    "dwconv.dwconv": "conv",
    "dconv.conv_offset": "offset",
    "dconv": "proj",
    "norm_layer": "norm",
}


def convert_checkpoint(official: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename an official state dict to this module's names."""
    with_attention = {name.partition(".norm1.")[0] for name in official if ".norm1." in name}
    renamed = {}
    for name, value in official.items():
        for old, new in OFFICIAL.items():
            name = re.sub(rf"\b{old}\b", new, name)
        name = re.sub(r"^head\.", "head.fc.", name)
        block = name.partition(".norm2.")[0]
        if block not in with_attention:  # the only norm of a block without attention is named norm2, too
            name = re.sub(r"(blocks\.\d+)\.norm2\.", r"\1.norm.", name)
        # The release keeps the merging with the stage it follows.
        name = re.sub(r"^layers\.(\d+)\.downsample", lambda m: f"stages.{int(m[1]) + 1}.downsample", name)
        renamed[re.sub(r"^layers\.", "stages.", name)] = value
    return renamed
