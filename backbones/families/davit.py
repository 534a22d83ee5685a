"""DaViT: attention between tokens, then between channels (Ding et al., ECCV 2022, arXiv:2204.03645).

Four stages on NHWC maps. A layer is two pre-norm blocks: attention inside unshifted windows without position bias, then
attention between the channels of each head, over the whole map. Position enters through two depth-wise convolutions in
each block.

Where the release surprises: a layer counts as two blocks for drop path. Windows pad after the norm and unmasked, so a
padded token is the projection's bias. The stem norms after its convolution; down-sampling norms before it, and pads
after the norm. The head pools first and norms then. LayerNorm's eps is 1e-5. Nothing depends on the image size; the
dense backbones are the same network with a norm for each map.
"""

import re
from collections.abc import Sequence
from functools import partial

from timm.layers import LayerNorm2d, NormMlpClassifierHead, calculate_drop_path_rates
from torch import Tensor, nn

from ..attention import ChannelAttention, WindowAttention
from ..backbone import Backbone, Stage
from ..layers import ConvReduction, PatchStem, PositionedBlock, init_weights
from ..registry import register_family

VARIANTS = {
    "davit_nano": dict(dim=16, depths=(1, 1, 3, 1), num_heads=(1, 2, 4, 8), window_size=4, patch_size=2, img_size=32),
    "davit_t": dict(dim=96, depths=(1, 1, 3, 1), num_heads=(3, 6, 12, 24)),
    "davit_s": dict(dim=96, depths=(1, 1, 9, 1), num_heads=(3, 6, 12, 24)),
    "davit_b": dict(dim=128, depths=(1, 1, 9, 1), num_heads=(4, 8, 16, 32)),
    "davit_l": dict(dim=192, depths=(1, 1, 9, 1), num_heads=(6, 12, 24, 48)),
    "davit_l_384": dict(dim=192, depths=(1, 1, 9, 1), num_heads=(6, 12, 24, 48), window_size=12, img_size=384),
    "davit_h": dict(dim=256, depths=(1, 1, 9, 1), num_heads=(8, 16, 32, 64)),
    "davit_g": dict(dim=384, depths=(1, 1, 12, 3), num_heads=(12, 24, 48, 96)),
}


@register_family(VARIANTS)
class DaViT(Backbone):
    """Four stages, the width doubling and the resolution halving from each to the next.

    Args:
        dim: width of the first stage.
        depths: layers per stage, of a window block and a channel block each.
        num_heads: attention heads per stage, of both kinds of block.
        window_size: side of a window, in tokens.
        patch_size: stride of the stem, in pixels.
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
        self.check_stages(depths, num_heads, dim=dim, window_size=window_size, patch_size=patch_size)
        dims = [dim * 2**i for i in range(len(depths))]
        self.stem = PatchStem(in_chans, dim, patch_size, overlap=True)
        self.stages = nn.ModuleList()
        rates = calculate_drop_path_rates(drop_path_rate, [2 * depth for depth in depths], stagewise=True)
        for i, heads in enumerate(num_heads):
            blocks = []
            for spatial_rate, channel_rate in zip(rates[i][::2], rates[i][1::2]):
                window = WindowAttention(dims[i], heads, window_size, position_bias=False)
                blocks.append(PositionedBlock(dims[i], window, mlp_ratio, spatial_rate))
                channels = ChannelAttention(dims[i], heads)
                blocks.append(PositionedBlock(dims[i], channels, mlp_ratio, channel_rate))
            downsample = ConvReduction(dims[i - 1], dims[i]) if i else nn.Identity()
            self.stages.append(Stage(downsample, blocks))
        self.finish(dims, [patch_size * 2**i for i in range(len(depths))])
        self.norm = nn.Identity()  # the head's comes after pooling
        self.apply(init_weights)

    def make_head(self) -> nn.Module:
        norm = partial(LayerNorm2d, eps=1e-5)
        return NormMlpClassifierHead(
            self.num_features, self.num_classes, pool_type=self.global_pool, drop_rate=self.drop_rate, norm_layer=norm
        )

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new classifier and pooling, as in `Backbone`; the norm between them stays."""
        norm = self.head.norm
        super().reset_classifier(num_classes, global_pool)
        self.head.norm = norm

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove what the maps of these stages do not need, as in `Backbone`; the norm goes with the classifier."""
        head = self.head
        taken = super().prune_intermediate_layers(indices, prune_norm, prune_head)
        if self.head is not head:
            self.head.norm = nn.Identity()
        return taken


def convert_checkpoint(official: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename an official state dict to this module's names."""
    renamed = {}
    for name, value in official.items():
        name = re.sub(r"^norms\.", "head.norm.", re.sub(r"^head\.", "head.fc.", name))
        name = name.replace("patch_embeds.0.", "stem.").replace(".attn.", ".attention.")
        name = re.sub(r"^patch_embeds\.(\d+)", r"stages.\1.downsample", name)
        name = re.sub(r"\.cpe\.(\d)\.proj", lambda m: f".position{int(m[1]) + 1}", name)
        # The release groups the two blocks of a layer.
        name = re.sub(
            r"^main_blocks\.(\d+)\.(\d+)\.(\d)",
            lambda m: f"stages.{m[1]}.blocks.{2 * int(m[2]) + int(m[3])}",
            name,
        )
        renamed[name] = value
    return renamed
