"""OverLoCK: overview first, then look closely (Lou and Yu, CVPR 2025, arXiv:2502.20087).

A base net (stages 1 and 2) feeds a light overview net, whose last map, projected, is the context. The focus net (stages
3 and 4) starts again from the overview net's first map with the context as extra channels, and mixes by dynamic kernels
made from it. The four feature maps are the base net's two and the focus net's two.

Layout inside: (B, C, H, W) with channels last in memory, so norms and projections over channels work on views.

As released: layer scale multiplies the shortcut, has a bias, and is absent in the base net. A number of heads counts
one half of the channels, so there are twice as many. The first focus block takes the context as it comes. BatchNorm's
eps is 1e-5, LayerNorm's 1e-6. In the dense backbones the overview net continues from the *normed* map of stage 2. The
projection before the classifier is this model's `norm`, so `forward_features` returns `head_width` channels.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple, Self

import torch
import torch.nn.functional as F
from timm.layers import ClassifierHead, DropPath, LayerNorm2d, calculate_drop_path_rates
from torch import Tensor, fx, nn

from ..attention import ContextMixing
from ..backbone import Backbone, Stage, check_images
from ..errors import InputError
from ..layers import (
    ChannelScale,
    ConvNorm,
    ConvStem,
    DilatedDepthwiseConv,
    LargeKernelBlock,
    ResidualDepthwiseConv,
    ResponseNormMlp,
    SplitConvNorm,
    init_conv_weights,
)
from ..registry import register_family

fx.wrap("check_images")  # its arithmetic on sizes is not for symbolic tracing

NANO = dict(kernel_sizes=(7, 7, 5, 5), head_width=256, stem_stride=2, img_size=32, aux_head=False)
VARIANTS = {
    "overlock_nano": dict(dims=(16, 32, 48, 64), depths=(1, 1, 1, 1), sub_depths=(2, 1), num_heads=(2, 2), **NANO),
    "overlock_xt": dict(dims=(56, 112, 256, 336), depths=(2, 2, 3, 2), sub_depths=(6, 2), num_heads=(4, 6)),
    "overlock_t": dict(dims=(64, 128, 256, 512), depths=(4, 4, 6, 2), sub_depths=(12, 2), num_heads=(4, 8)),
    "overlock_s": dict(dims=(64, 128, 320, 512), depths=(6, 6, 8, 3), sub_depths=(16, 3), num_heads=(8, 16)),
    "overlock_b": dict(dims=(80, 160, 384, 576), depths=(8, 8, 10, 4), sub_depths=(20, 4), num_heads=(6, 9)),
}


class FocusBlock(nn.Module):
    """Block of the focus net: context mixing and an MLP, (B, dim + context_dim, H, W) to the same shape.

    The overview's context, (B, context_dim, H, W), joins that of the map again, except in the `first` block.
    """

    def __init__(self, mixing: ContextMixing, mlp_ratio: float, first: bool, drop_path: float):
        super().__init__()
        self.dims, self.first = (mixing.dim, mixing.context_dim), first
        dim = sum(self.dims)
        if not first:
            self.x_scale, self.h_scale = ChannelScale(mixing.context_dim), ChannelScale(mixing.context_dim)
        self.dwconv1 = ResidualDepthwiseConv(dim)
        self.norm1, self.mixing, self.ls1 = LayerNorm2d(dim, eps=1e-6), mixing, ChannelScale(dim)
        self.dwconv2 = ResidualDepthwiseConv(dim)
        self.norm2, self.ls2 = LayerNorm2d(dim, eps=1e-6), ChannelScale(dim)
        self.mlp = ResponseNormMlp(dim, int(mlp_ratio * mixing.dim))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, overview: Tensor) -> Tensor:
        if not self.first:
            x, context = x.split(self.dims, 1)
            x = torch.cat([x, self.x_scale(context) + self.h_scale(overview)], 1)
        x = self.dwconv1(x)
        y = self.mixing(self.norm1(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        x = self.ls1(x) + self.drop_path(y)
        x = self.dwconv2(x)
        return self.ls2(x) + self.drop_path(self.mlp(self.norm2(x)))


class WithAuxiliary(NamedTuple):
    """What a training forward returns if the auxiliary head is to be trained."""

    logits: Tensor
    aux_logits: Tensor


@register_family(VARIANTS)
class OverLoCK(Backbone):
    """Stages 1 and 2 are the base net, 3 and 4 the focus net; the overview net is between them.

    Args:
        dims: width of each level; a quarter of the last one is the width of the context.
        depths: blocks of the base net's two stages, then of the overview net's two.
        sub_depths, num_heads: of the focus net's two stages, blocks and attention heads per half of the channels.
        kernel_sizes: side of the large kernels of each level, in tokens.
        small_kernel_size: side of the small dynamic kernels, in tokens.
        mlp_ratio, sub_mlp_ratio: hidden width by width, in base and overview nets, and in the focus net.
        head_width: channels of the projection before the classifier.
        stem_stride: stride of the first stage, 4 or 2 pixels.
        reparameterized: build the merged form, in which a large convolution is one kernel. For inference.
        aux_head: the overview net's classifier. True: a training forward returns `WithAuxiliary`. False: there is none.
            None: it is there, as in the released files, and its gradient is zero.
        img_size: nominal image size, in pixels; nothing in the network depends on it.
        drop_path_rate: drop probability of the last block; rises linearly from 0 through base, overview and focus net.
    """

    optional = ("aux_head.",)
    output_layers = ("norm", "overview_out")

    def __init__(
        self,
        dims: Sequence[int],
        depths: Sequence[int],
        sub_depths: Sequence[int],
        num_heads: Sequence[int],
        kernel_sizes: Sequence[int] = (17, 15, 13, 7),
        small_kernel_size: int = 5,
        mlp_ratio: float = 4.0,
        sub_mlp_ratio: float = 3.0,
        head_width: int = 1024,
        stem_stride: int = 4,
        reparameterized: bool = False,
        aux_head: bool | None = None,
        img_size: int | tuple[int, int] = 224,
        drop_path_rate: float = 0.0,
        drop_rate: float = 0.0,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        dense: str | None = None,
    ):
        super().__init__(in_chans, num_classes, global_pool, drop_rate, dense)
        lengths = [len(values) for values in (dims, depths, kernel_sizes, sub_depths, num_heads)]
        if lengths != [4, 4, 4, 2, 2] or min(*depths, *sub_depths, *num_heads) < 1 or min(dims) < 4:
            raise InputError(
                "OverLoCK needs four dims (of at least 4), depths and kernel_sizes, and two sub_depths and num_heads, "
                f"but got dims={dims}, depths={depths}, kernel_sizes={kernel_sizes}, sub_depths={sub_depths}, "
                f"num_heads={num_heads}."
            )
        if stem_stride not in (2, 4):
            raise InputError(f"The stem of OverLoCK has a stride of 2 or 4 pixels, but stem_stride is {stem_stride}.")
        self.auxiliary, self.head_width = aux_head, head_width
        context_dim = dims[3] // 4
        rates = calculate_drop_path_rates(drop_path_rate, [*depths, *sub_depths], stagewise=True)

        def base_stage(i: int) -> Stage:
            sizes = (dims[i], kernel_sizes[i], mlp_ratio, i > 1, reparameterized)
            blocks = [LargeKernelBlock(*sizes, rate) for rate in rates[i]]
            return Stage(ConvNorm(dims[i - 1], dims[i]) if i else nn.Identity(), blocks)

        def focus_stage(i: int, downsample: nn.Module) -> Stage:
            sizes = (dims[i], context_dim, 2 * num_heads[i - 2], kernel_sizes[i], small_kernel_size, reparameterized)
            blocks = [
                FocusBlock(ContextMixing(*sizes), sub_mlp_ratio, i == 2 and j == 0, rate)
                for j, rate in enumerate(rates[i + 2])
            ]
            return Stage(downsample, blocks)

        self.stem = ConvStem(in_chans, dims[0], stem_stride)
        self.overview = nn.ModuleList([base_stage(2), base_stage(3)])
        self.context_proj = nn.Conv2d(dims[3], context_dim, 1)
        focus_downsample = SplitConvNorm(dims[2], dims[3], context_dim)
        self.stages = nn.ModuleList(
            [base_stage(0), base_stage(1), focus_stage(2, nn.Identity()), focus_stage(3, focus_downsample)]
        )
        self.finish([*dims[:2], dims[2] + context_dim, dims[3] + context_dim], [stem_stride * 2**i for i in range(4)])
        self.apply(init_conv_weights)

    def finish(self, dims: list[int], strides: list[int]) -> None:
        super().finish(dims, strides)
        self.aux_head, self.overview_out = self.make_aux_head(), None
        if not self.dense:
            proj = nn.Conv2d(dims[-1], self.head_width, 1, bias=False)
            self.norm = nn.Sequential(proj, nn.BatchNorm2d(self.head_width), nn.SiLU())
            self.num_features = self.head_hidden_size = self.head_width
            self.head = self.make_head()
            return
        for i, dim in enumerate(dims):
            self.add_module(f"norm{i}", LayerNorm2d(dim, eps=1e-6))
        if self.dense == "detection":
            dim = self.context_proj.in_channels
            proj = nn.Conv2d(dim, dims[-1], 1)
            self.overview_out = nn.Sequential(LayerNorm2d(dim, eps=1e-6), proj, ChannelScale(dims[-1], 1e-5))

    def make_aux_head(self) -> nn.Module | None:
        """The classifier on the overview net's last map, or None where there is none."""
        if self.num_classes == 0 or self.auxiliary is False or not self.overview:
            return None
        dim = self.context_proj.in_channels
        return nn.Sequential(nn.BatchNorm2d(dim), ClassifierHead(dim, self.num_classes))

    def forward_nets(self, images: Tensor, last: int) -> tuple[list[Tensor], Tensor | None]:
        """The maps of stages 0 to `last`, and the overview net's last one if the focus net takes part."""
        maps = [self.stages[0](self.stem(images))]
        if last > 0:
            x = self.stages[1](maps[0])
            maps.append(self.norm1(x) if self.dense else x)
        if last < 2:
            return maps, None
        x = self.overview[0](maps[1])
        overview = self.overview[1](x)
        context = self.context_proj(overview)
        enlarged = F.interpolate(context, x.shape[2:], mode="bilinear", align_corners=False)
        maps.append(self.stages[2](torch.cat([x, enlarged], 1), enlarged))
        if last > 2:
            x = self.stages[3](maps[2], context)
            x = self.norm3(x) if self.dense else x
            maps.append(x if self.overview_out is None else x + self.overview_out(overview))
        return maps, overview

    def forward_stages(self, images: Tensor, last: int) -> list[Tensor]:
        return self.forward_nets(images, last)[0]

    def forward(self, x: Tensor) -> Tensor | WithAuxiliary:
        if not self.training or self.aux_head is None:
            return super().forward(x)
        check_images(x, self.in_chans, self.min_size)
        maps, overview = self.forward_nets(x, 3)
        logits, aux_logits = self.forward_head(self.norm(maps[3])), self.aux_head(overview)
        # Left out, its parameters would have no gradient, which data-parallel training takes for a mistake.
        return WithAuxiliary(logits, aux_logits) if self.auxiliary else logits + 0 * aux_logits

    def dense_output(self, stage: int, x: Tensor) -> Tensor:
        return x if stage in (1, 3) else super().dense_output(stage, x)  # 1 and 3 leave `forward_nets` normed

    def to_nchw(self, x: Tensor) -> Tensor:
        return x

    def least_sizes(self) -> list[int]:
        """As in `Backbone`: where the large kernels of the focus net fit into its maps."""
        pairs = list(zip(self.feature_info, self.stages))[2:]
        return [info["reduction"] * stage.blocks[0].mixing.kernel_size for info, stage in pairs]

    def reparameterize(self) -> Self:
        """Merge each large convolution with its branches, in place: fewer parameters, the same in evaluation."""
        for module in self.modules():
            if isinstance(module, DilatedDepthwiseConv):
                module.reparameterize()
        self.note_arguments(reparameterized=True)
        return self

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        super().reset_classifier(num_classes, global_pool)
        self.aux_head = self.make_aux_head()
        if self.aux_head is not None:
            like = next(self.parameters())
            self.aux_head.to(like.device, like.dtype).train(self.training)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        norm1 = getattr(self, "norm1", None)
        taken = super().prune_intermediate_layers(indices, prune_norm, prune_head)
        if max(taken) < 2:
            self.overview, self.context_proj = nn.ModuleList(), nn.Identity()
        elif self.dense:
            self.norm1 = norm1  # the overview net needs it
        if max(taken) < 3:
            self.overview_out = None
        return taken

    def group_matcher(self, coarse: bool = False) -> dict:
        """Layer groups in the order in which images pass the three nets."""
        nets = dict(base=r"^stages\.([01])", overview=r"^overview\.(\d+)", focus=r"^stages\.([23])")
        if coarse:
            return dict(stem=r"^stem") | nets
        groups = {net: [(f"{s}\\.downsample", (0,)), (rf"{s}\.blocks\.(\d+)", None)] for net, s in nets.items()}
        groups["overview"].append((r"^(?:context_proj|aux_head|overview_out)", (99999,)))
        return dict(stem=r"^stem") | groups


MIXING = "fusion|gate|lepe|weight_|dyconv_proj|se_layer|proj|rpb"
RENAMED = [
    (r"^patch_embed1\.0\.", "stem.proj."),
    (r"^patch_embed1\.1\.", "stem.norm."),
    (r"^patch_embed1\.(\d+)", lambda m: f"stem.convs.{int(m[1]) // 3 - 1}.{('proj', 'norm')[int(m[1]) % 3]}"),
    (r"^patch_embed2", "stages.1.downsample"),
    (r"^patch_embed(\d)", lambda m: f"overview.{int(m[1]) - 3}.downsample"),
    (r"^patch_embedx", "stages.3.downsample"),
    (r"\.downsample(\.\w_proj)?\.([01])\.", lambda m: f".downsample{m[1] or ''}.{('proj', 'norm')[int(m[2])]}."),
    (r"^high_level_proj", "context_proj"),
    # blocks
    (r"^blocks([12])", lambda m: f"stages.{int(m[1]) - 1}.blocks"),
    (r"^blocks([34])", lambda m: f"overview.{int(m[1]) - 3}.blocks"),
    (rf"^sub_blocks(\d)\.(\d+)\.({MIXING})", r"sub_blocks\1.\2.mixing.\3"),
    (r"^sub_blocks([34])", lambda m: f"stages.{int(m[1]) - 1}.blocks"),
    (r"(\.blocks\.\d+)\.proj\.0", r"\1.norm"),
    (r"(\.blocks\.\d+)\.proj\.([12])", lambda m: f"{m[1]}.large.{int(m[2]) - 1}"),
    (r"\.(?:proj\.3|se_layer)\.proj\.([13])", lambda m: f".se.fc{1 + int(m[1]) // 3}"),
    (r"(?<!mixing)\.(?:proj\.4|mlp\.0)\.", ".mlp.fc1."),
    (r"(?<!mixing)\.(?:proj\.6|mlp\.2)\.", ".mlp.dwconv."),
    (r"(?<!mixing)\.(?:proj\.7|mlp\.3)\.", ".mlp.norm."),
    (r"(?<!mixing)\.(?:proj\.8|mlp\.4)\.", ".mlp.fc2."),
    (r"\.weight_query", ".query"),
    (r"\.weight_key\.(\d)", lambda m: f".key.{int(m[1]) - 1}"),
    (r"\.weight_proj", ".kernels"),
    (r"\.dyconv_proj", ".out"),
    (r"\.rpb([12])", lambda m: (".small_bias", ".large_bias")[int(m[1]) - 1]),
    (r"\.lk_origin", ".conv"),
    (r"\.origin_bn", ".norm"),
    (r"\.dil_conv_(\w+)", r".branches.\1.0"),
    (r"\.dil_bn_(\w+)", r".branches.\1.1"),
    # heads and output layers
    (r"^aux_head\.2", "aux_head.1.fc"),
    (r"^head\.([01])", r"norm.\1"),
    (r"^head\.4", "head.fc"),
    (r"^extra_norm\.4", "overview_out.0"),
    (r"^extra_norm\.", "norm"),
    (r"^h_proj\.([01])", lambda m: f"overview_out.{int(m[1]) + 1}"),
]
LINEAR = ("mlp.fc1.weight", "mlp.fc2.weight", "kernels.weight", "fc.weight")


def convert_checkpoint(official: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename an official state dict to this module's names; 1 x 1 convolutions become linear layers."""
    renamed = {}
    for name, value in official.items():
        for pattern, replacement in RENAMED:
            name = re.sub(pattern, replacement, name)
        renamed[name] = value.flatten(1) if name.endswith(LINEAR) else value
    return renamed
