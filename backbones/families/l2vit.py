"""L2ViT: windows and enhanced linear attention in turn (Zheng, arXiv:2501.16182).

Four stages on NHWC maps. Blocks of a stage alternate: attention inside unshifted windows without position bias, then
linear attention over the whole map, which two large depth-wise convolutions concentrate. Position enters through small
depth-wise convolutions.

Where the release surprises: the alternation starts anew in each stage. A local block has two convolutions for position,
a global one has one, and their sums with the input are outside drop path. The denominator of linear attention is at
least 100. Windows pad after the norm and unmasked, so a padded token is the projection's bias. The stem norms after its
convolutions; down-sampling norms before its own, and pads after the norm. LayerNorm's eps is 1e-5. Nothing depends on
the image size. The dense backbones are the same network with a norm for each map, and always have windows of 7.
"""

import re
from collections.abc import Sequence

import torch.nn.functional as F
from timm.layers import DropPath, calculate_drop_path_rates
from torch import Tensor, fx, nn

from ..attention import LinearAttention, LocalConcentration, WindowAttention
from ..backbone import Backbone, Stage
from ..errors import InputError
from ..layers import ConditionalPosition, ConvReduction, Mlp, PositionedBlock, init_conv_weights, pad_to_multiple
from ..registry import register_family

fx.wrap("pad_to_multiple")  # its arithmetic on sizes is not for symbolic tracing

BASE = dict(dim=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32))

VARIANTS = {
    "l2vit_nano": dict(dim=16, depths=(2, 2, 2, 2), num_heads=(1, 2, 4, 8), window_size=4, patch_size=2, img_size=32),
    "l2vit_t": dict(dim=96, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24)),
    "l2vit_s": dict(dim=96, depths=(2, 2, 18, 2), num_heads=(3, 6, 12, 24)),
    "l2vit_b": BASE,
    "l2vit_b_384": BASE | dict(window_size=12, img_size=384),
}

DENSE_WINDOW = 7

WRAPPER = "model"  # of checkpoints that also hold averaged weights, the release evaluates these


class Stem(nn.Module):
    """Two convolutions with batch norms, then LayerNorm: images (B, in_chans, H, W) to (B, H', W', dim).

    Images are filled up with zeros on the right and bottom to whole patches; the first convolution halves them, the
    second does the rest of `patch_size`, 2 or 4.
    """

    def __init__(self, in_chans: int, dim: int, patch_size: int):
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(in_chans, dim // 2, 3, 2, 1)
        self.norm1 = nn.BatchNorm2d(dim // 2)
        self.conv = nn.Conv2d(dim // 2, dim, 3, patch_size // 2, 1)
        self.norm2 = nn.BatchNorm2d(dim)
        self.norm = nn.LayerNorm(dim)

    def forward(self, images: Tensor) -> Tensor:
        x = pad_to_multiple(images.permute(0, 2, 3, 1).contiguous(), self.patch_size).permute(0, 3, 1, 2)
        x = F.relu(self.norm1(self.proj(x)))
        return self.norm(self.norm2(self.conv(x)).permute(0, 2, 3, 1))


class GlobalBlock(nn.Module):
    """Linear attention and its concentration, then MLP, after a convolution for position: (B, H, W, C) to the same."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, drop_path: float):
        super().__init__()
        self.position1 = ConditionalPosition(dim)
        self.norm1 = nn.LayerNorm(dim)
        self.attention = LinearAttention(dim, num_heads)
        self.norm3 = nn.LayerNorm(dim)
        self.concentration = LocalConcentration(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = self.position1(x)
        x = x + self.drop_path(self.attention(self.norm1(x)))
        x = x + self.drop_path(self.concentration(self.norm3(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


@register_family(VARIANTS)
class L2ViT(Backbone):
    """Four stages, the width doubling and the resolution halving from each to the next.

    Args:
        dim: width of the first stage, even.
        depths, num_heads: blocks and attention heads per stage.
        window_size: side of a window of the local blocks, in tokens; the dense backbones' is 7.
        patch_size: stride of the stem, in pixels; 2 or 4.
        img_size: nominal image size, in pixels; nothing in the network depends on it.
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
        self.check_stages(depths, num_heads, dim=dim, window_size=window_size)
        if dim % 2 or patch_size not in (2, 4):
            raise InputError(
                f"L2ViT's stem of two convolutions needs an even dim and a patch_size of 2 or 4, but got dim={dim} and "
                f"patch_size={patch_size}."
            )
        dims = [dim * 2**i for i in range(len(depths))]
        window_size = DENSE_WINDOW if dense else window_size
        self.stem = Stem(in_chans, dim, patch_size)
        self.stages = nn.ModuleList()
        for i, rates in enumerate(calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)):
            blocks = []
            for j, rate in enumerate(rates):
                if j % 2:
                    blocks.append(GlobalBlock(dims[i], num_heads[i], mlp_ratio, rate))
                else:
                    window = WindowAttention(dims[i], num_heads[i], window_size, position_bias=False)
                    blocks.append(PositionedBlock(dims[i], window, mlp_ratio, rate))
            downsample = ConvReduction(dims[i - 1], dims[i]) if i else nn.Identity()
            self.stages.append(Stage(downsample, blocks))
        self.finish(dims, [patch_size * 2**i for i in range(len(depths))])
        self.apply(init_conv_weights)
        if dense:
            self.apply(init_dense_convolution)


def init_dense_convolution(module: nn.Module) -> None:
    """Convolutions of the dense backbones are drawn as in a convolutional network: their outputs keep the variance."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


OFFICIAL = {
    r"^downsample_layers\.0\.proj\.proj\.0\.": "stem.proj.",
    r"^downsample_layers\.0\.proj\.proj\.1\.": "stem.norm1.",
    r"^downsample_layers\.0\.proj\.proj\.3\.": "stem.conv.",
    r"^downsample_layers\.0\.proj\.proj\.4\.": "stem.norm2.",
    r"^downsample_layers\.0\.norm\.": "stem.norm.",
    r"^downsample_layers\.(\d+)\.": r"stages.\1.downsample.",
    r"^(stages\.\d+)\.(\d+)\.": r"\1.blocks.\2.",
    r"\.cpe\.0\.proj\.": ".position1.",
    r"\.cpe\.1\.proj\.": ".position2.",
    r"\.attn\.": ".attention.",
    r"\.local_mp\.bn\.": ".concentration.norm.",
    r"\.local_mp\.": ".concentration.",
    r"^head\.": "head.fc.",
}


def convert_checkpoint(official: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename an official state dict to this module's names."""
    renamed = {}
    for name, value in official.items():
        for pattern, ours in OFFICIAL.items():
            name = re.sub(pattern, ours, name)
        renamed[name] = value
    return renamed
