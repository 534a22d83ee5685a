"""VOLO: outlook attention on fine tokens, then global attention (Yuan et al., TPAMI 2022, arXiv:2106.13112).

One stage of outlookers on tokens of 8 x 8 pixels, three stages of ordinary transformer blocks on tokens twice as coarse
(of one width and resolution; three for convenience), and two class blocks that read the map into a class token. NHWC
between stem and exit.

As in the release: the position table is added after the outlookers, where tokens become coarser. The logits of the
classifier are head(class token) + 1/2 max over tokens of a second head on every token, per class; both heads stem from
training with labels for each token. Outlookers and class blocks have no drop path, but the outlookers count in the rule
for the others. Windows of outlook attention overlap and their outputs add up. A last odd row or column of the fine map
is seen by the outlookers and dropped by the down-sampling. LayerNorm's eps is 1e-5.

There is no official dense backbone: here it is the same network with an output norm for each map.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

import torch
from timm.layers import DropPath, calculate_drop_path_rates, to_2tuple
from torch import Tensor, nn

from ..attention import ClassAttention, OutlookAttention, SelfAttention
from ..backbone import Backbone, Stage, check_images
from ..errors import InputError
from ..layers import GridPosition, Mlp, init_weights, random_box, take_from_reversed
from ..registry import register_family

VARIANTS = {
    "volo_nano": dict(
        dims=(48, 96, 96, 96), depths=(2, 1, 2, 1), num_heads=(3, 3, 3, 3), stem_dim=16, patch_size=4, img_size=32
    ),
    "volo_d1": dict(dims=(192, 384, 384, 384), depths=(4, 4, 8, 2), num_heads=(6, 12, 12, 12)),
    "volo_d2": dict(dims=(256, 512, 512, 512), depths=(6, 4, 10, 4), num_heads=(8, 16, 16, 16)),
    "volo_d3": dict(dims=(256, 512, 512, 512), depths=(8, 8, 16, 4), num_heads=(8, 16, 16, 16)),
    "volo_d4": dict(dims=(384, 768, 768, 768), depths=(8, 8, 16, 4), num_heads=(12, 16, 16, 16)),
    "volo_d5": dict(
        dims=(384, 768, 768, 768), depths=(12, 12, 20, 4), num_heads=(12, 16, 16, 16), mlp_ratio=4.0, stem_dim=128
    ),
}


class TokenLogits(NamedTuple):
    """What a network with `token_labelling` gives in training.

    logits: (B, num_classes), of the class token; token_logits: (B, N, num_classes), of the coarse tokens row by row;
    box: (4,), the coarse rows and columns r1, c1, r2, c2 whose tokens came from the batch in reversed order.
    """

    logits: Tensor
    token_logits: Tensor
    box: Tensor


class VoloStem(nn.Module):
    """Images (B, in_chans, H, W) to fine tokens (B, H / p, W / p, dim): convolutions, then patches of p pixels."""

    def __init__(self, in_chans: int, hidden: int, dim: int, patch_size: int):
        super().__init__()
        self.proj = nn.Conv2d(in_chans, hidden, 7, stride=2, padding=3, bias=False)
        self.convs = nn.Sequential(nn.BatchNorm2d(hidden), nn.ReLU(inplace=True))
        for _ in range(2):
            self.convs.append(nn.Conv2d(hidden, hidden, 3, padding=1, bias=False))
            self.convs.extend([nn.BatchNorm2d(hidden), nn.ReLU(inplace=True)])
        self.patches = nn.Conv2d(hidden, dim, patch_size // 2, stride=patch_size // 2)

    def forward(self, images: Tensor) -> Tensor:
        # Channels last from the start, so that the tokens come out contiguous.
        x = self.proj(images.contiguous(memory_format=torch.channels_last))
        return self.patches(self.convs(x)).permute(0, 2, 3, 1)


class VoloDownsample(nn.Module):
    """Fine tokens (B, H, W, C) to coarse ones (B, H // 2, W // 2, out_dim), which learn where they are."""

    def __init__(self, dim: int, out_dim: int, grid: tuple[int, int]):
        super().__init__()
        self.proj = nn.Conv2d(dim, out_dim, 2, stride=2)
        self.position = GridPosition(grid, out_dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.position(self.proj(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


class VoloBlock(nn.Module):
    """Attention, then MLP, each with a residual: (B, H, W, C) to the same shape."""

    def __init__(self, dim: int, attention: nn.Module, mlp_ratio: float, drop_path: float = 0.0):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attention = attention
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attention(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class ClassBlock(nn.Module):
    """The class token (B, C) reads the map (B, H, W, C), then MLP, each with a residual; the map stays as it is."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, qkv_bias: bool):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attention = ClassAttention(dim, num_heads, qkv_bias)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def forward(self, token: Tensor, x: Tensor) -> Tensor:
        token = token + self.attention(self.norm1(token), self.norm1(x))
        return token + self.mlp(self.norm2(token))


class VoloHead(nn.Module):
    """Class token, class blocks, norm, and a classifier each for the class token (`fc`) and all others (`aux`).

    With `global_pool` "avg" or "max" the mean or maximum over all tokens, the class token included, takes the place of
    the class token.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float,
        qkv_bias: bool,
        num_classes: int,
        global_pool: str,
        drop_rate: float,
    ):
        super().__init__()
        self.global_pool = global_pool
        self.cls_token = nn.Parameter(torch.empty(1, 1, dim))
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        self.blocks = nn.ModuleList([ClassBlock(dim, num_heads, mlp_ratio, qkv_bias) for _ in range(2)])
        self.norm = nn.LayerNorm(dim)
        self.drop = nn.Dropout(drop_rate)
        self.aux = nn.Linear(dim, num_classes) if num_classes else None
        self.fc = nn.Linear(dim, num_classes) if num_classes else nn.Identity()
        self.apply(init_weights)

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        pooled, tokens = self.pool(x)
        if pre_logits or self.aux is None:
            return pooled
        return self.fc(pooled) + 0.5 * self.aux(tokens).max(1).values

    def pool(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The last map (B, C, H, W) to what the two classifiers take, (B, C) and (B, N, C)."""
        x = x.permute(0, 2, 3, 1)
        # Not `expand`: torch's counter of operations takes no view of a parameter.
        token = self.cls_token[0].repeat(x.shape[0], 1)
        for block in self.blocks:
            token = block(token, x)
        token, tokens = self.norm(token), self.norm(x).flatten(1, 2)
        if self.global_pool == "avg":
            token = torch.cat([token[:, None], tokens], 1).mean(1)
        elif self.global_pool == "max":
            token = torch.maximum(token, tokens.amax(1))
        return self.drop(token), self.drop(tokens)


@register_family(VARIANTS)
class Volo(Backbone):
    """A stage of outlookers, stages of transformer blocks at half their resolution, and class attention as the pooling.

    The last map leaves un-normed, as the class blocks read it; their norm is in the head.

    Args:
        dims, depths, num_heads: width, blocks and attention heads per stage; widths of all stages but the first agree.
        stem_dim: channels of the stem's convolutions.
        patch_size: side of a fine token, in pixels; even, as the stem's first convolution halves the image.
        img_size: size of the images that the position table is made for, in pixels.
        qkv_bias: whether the projections to queries, keys and values have biases.
        drop_path_rate: drop probability of the last block; rises linearly over all blocks, outlookers take no part.
        global_pool: "token", the class token; "avg" or "max" over all tokens; "" (needs num_classes=0), the last map.
        token_labelling: in training, mix the fine tokens of two images in a random box and return `TokenLogits`.
    """

    classifiers = ("head.fc", "head.aux")

    def __init__(
        self,
        dims: Sequence[int],
        depths: Sequence[int],
        num_heads: Sequence[int],
        mlp_ratio: float = 3.0,
        stem_dim: int = 64,
        patch_size: int = 8,
        img_size: int | tuple[int, int] = 224,
        qkv_bias: bool = False,
        drop_path_rate: float = 0.0,
        drop_rate: float = 0.0,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "token",
        token_labelling: bool = False,
        dense: str | None = None,
    ):
        super().__init__(in_chans, num_classes, global_pool, drop_rate, dense)
        if not 2 <= len(dims) == len(depths) == len(num_heads) or len(set(dims[1:])) > 1:
            raise InputError(
                "VOLO needs a width, a depth and num_heads for each of two or more stages, all stages but the first of "
                f"one width, but got dims={dims}, depths={depths}, num_heads={num_heads}."
            )
        if min(*dims, *depths, *num_heads, stem_dim) < 1 or patch_size < 2 or patch_size % 2:
            raise InputError(
                f"VOLO needs sizes of at least 1 and an even patch_size, but got dims={dims}, depths={depths}, "
                f"num_heads={num_heads}, stem_dim={stem_dim}, patch_size={patch_size}."
            )
        if token_labelling and not self.num_classes:
            raise InputError("token_labelling trains two classifiers; give num_classes, and leave dense out.")
        self.patch_size, self.token_labelling = patch_size, token_labelling
        self.head_arguments = dict(num_heads=num_heads[-1], mlp_ratio=mlp_ratio, qkv_bias=qkv_bias)
        self.stem = VoloStem(in_chans, stem_dim, dims[0], patch_size)
        self.stages = nn.ModuleList()
        rates = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)
        for i, (dim, heads) in enumerate(zip(dims, num_heads)):
            downsample = VoloDownsample(dims[0], dim, self.token_grid(img_size)) if i == 1 else nn.Identity()
            if i == 0:
                blocks = [VoloBlock(dim, OutlookAttention(dim, heads, qkv_bias=qkv_bias), mlp_ratio) for _ in rates[0]]
            else:
                blocks = [VoloBlock(dim, SelfAttention(dim, heads, qkv_bias), mlp_ratio, rate) for rate in rates[i]]
            self.stages.append(Stage(downsample, blocks))
        self.finish(list(dims), [patch_size] + [2 * patch_size] * (len(dims) - 1))
        self.norm = nn.Identity()
        self.apply(init_weights)

    def token_grid(self, img_size: int | tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of the position table for this image size."""
        rows, columns = (side // self.patch_size // 2 for side in to_2tuple(img_size))
        if min(rows, columns) < 1:
            raise InputError(
                f"An img_size of {img_size} leaves no token of {2 * self.patch_size} x {2 * self.patch_size} pixels; "
                f"give at least {2 * self.patch_size}."
            )
        return rows, columns

    def make_head(self) -> nn.Module:
        if not self.global_pool and not self.num_classes:
            return super().make_head()
        if self.global_pool not in ("token", "avg", "max"):
            raise InputError(
                "VOLO's global_pool is 'token', 'avg' or 'max', or '' together with num_classes=0, but is "
                f"{self.global_pool!r} with num_classes={self.num_classes}."
            )
        return VoloHead(
            self.num_features,
            num_classes=self.num_classes,
            global_pool=self.global_pool,
            drop_rate=self.drop_rate,
            **self.head_arguments,
        )

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """As in the base class; the class blocks stay, unless pooling "" has removed them."""
        old = self.head
        super().reset_classifier(num_classes, global_pool)
        if isinstance(old, VoloHead) and isinstance(self.head, VoloHead):
            self.head.cls_token, self.head.blocks, self.head.norm = old.cls_token, old.blocks, old.norm

    def set_input_size(self, img_size: int | tuple[int, int]) -> None:
        """Resize the position table to the one for images of this size, in pixels."""
        self.stages[1].downsample.position.set_grid(self.token_grid(img_size))
        self.note_arguments(img_size=img_size)

    def no_weight_decay(self) -> set[str]:
        return {name for name, _ in self.named_parameters() if name.endswith(("position.table", "cls_token"))}

    def forward(self, x: Tensor) -> Tensor | TokenLogits:
        if self.token_labelling and self.training:
            return self.forward_token_labelling(x)
        return super().forward(x)

    def forward_token_labelling(self, images: Tensor) -> TokenLogits:
        """Images to the logits of both classifiers, with the fine tokens of image pairs mixed in one box."""
        check_images(images, self.in_chans, self.min_size)
        x = self.stem(images)
        rows, columns = x.shape[1] // 2, x.shape[2] // 2
        box = random_box(rows, columns, x.device)
        x = take_from_reversed(x, 2 * box)
        for stage in self.stages:
            x = stage(x)
        pooled, tokens = self.head.pool(self.to_nchw(x))
        token_logits = self.head.aux(tokens).unflatten(1, (rows, columns))
        return TokenLogits(self.head.fc(pooled), take_from_reversed(token_logits, box).flatten(1, 2), box)


def convert_checkpoint(official: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename an official state dict to this module's names."""
    renamed = {}
    for name, value in official.items():
        name = name.replace(".attn.attn.", ".attention.logits.").replace(".attn.", ".attention.")
        name = name.replace("patch_embed.proj.", "stem.patches.").replace("patch_embed.conv.0.", "stem.proj.")
        name = re.sub(r"^patch_embed\.conv\.(\d+)", lambda m: f"stem.convs.{int(m[1]) - 1}", name)
        name = re.sub(r"^(head|aux_head|norm|cls_token|post_network)\b", lambda m: HEAD_NAMES[m[1]], name)
        # The release counts the down-sampling among the stages: it is network.1.
        name = name.replace("pos_embed", "stages.1.downsample.position.table")
        name = name.replace("network.1.proj.", "stages.1.downsample.proj.").replace("network.0.", "stages.0.blocks.")
        renamed[re.sub(r"^network\.(\d+)\.", lambda m: f"stages.{int(m[1]) - 1}.blocks.", name)] = value
    return renamed


HEAD_NAMES = {
    "head": "head.fc",
    "aux_head": "head.aux",
    "norm": "head.norm",
    "cls_token": "head.cls_token",
    "post_network": "head.blocks",
}
