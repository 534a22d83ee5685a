"""From a backbone's maps to those that heads read: each half the size of the one before."""

from collections.abc import Sequence
from itertools import pairwise
from math import log2

from timm.layers import LayerNorm2d
from torch import Tensor, nn

from backbones.errors import InputError

STRIDES = (4, 8, 16, 32)  # of a simple pyramid's maps, in pixels
KINDS = ("auto", "none", "simple_pyramid")


def needs_neck(strides: list[int]) -> bool:
    """Whether maps of these strides are not those that heads read: each half the size of the one before."""
    return any(coarse != 2 * fine for fine, coarse in pairwise(strides))


def sources(strides: list[int], wanted: Sequence[int]) -> list[int]:
    """For each stride of a pyramid, the place of the map it is made from: of the nearest stride, the deepest.

    Of two strides equally near it is the finer one, from which nothing has to be made up.
    """
    nearest = [min(strides, key=lambda stride: (abs(log2(stride / level)), stride)) for level in wanted]
    return [max(i for i, stride in enumerate(strides) if stride == found) for found in nearest]


class PassThrough(nn.Identity):
    """A list of maps (B, C, H, W) as it is, finest first.

    Attributes:
        channels, strides: of each map.
    """

    def __init__(self, channels: list[int], strides: list[int]):
        super().__init__()
        self.channels, self.strides = list(channels), list(strides)


class SimplePyramid(nn.Module):
    """Maps at strides 4, 8, 16 and 32 from maps at others, after ViTDet (Li et al., arXiv:2203.16527, section 3).

    Each is made by itself from one of the backbone's maps (see `sources`), by transposed convolutions or max-pooling of
    2 x 2 until it has the stride, then convolutions of 1 x 1 and 3 x 3, all with layer norm over channels. A last odd
    row or column stays: pooling rounds up. Where ViTDet has only the last map of a plain transformer to make all
    levels from, here a level has the backbone's own map wherever there is one.

    Args:
        in_channels, in_strides: of the backbone's maps.
        out_channels: of every map that comes out.
        wanted: the strides of the maps that come out.

    Attributes:
        channels, strides: of the maps that come out.

    Raises:
        InputError: a stride is not a power of two.
    """

    def __init__(
        self, in_channels: list[int], in_strides: list[int], out_channels: int, wanted: Sequence[int] = STRIDES
    ):
        super().__init__()
        if not all(log2(stride).is_integer() for stride in in_strides):
            raise InputError(
                f"A pyramid at strides {_words(wanted)} is made by doubling and halving, so the backbone's strides "
                f"must be powers of two, but are {_words(in_strides)}. Choose another patch_size."
            )
        self.channels, self.strides = [out_channels] * len(wanted), list(wanted)
        self.sources = sources(in_strides, wanted)
        self.levels = nn.ModuleList(
            _level(in_channels[i], out_channels, int(log2(in_strides[i] / stride)))
            for i, stride in zip(self.sources, wanted)
        )

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """The backbone's maps to those at strides 4, 8, 16 and 32, (B, out_channels, H / stride, W / stride) each."""
        return [level(maps[i]) for level, i in zip(self.levels, self.sources)]


def _level(in_channels: int, out_channels: int, doublings: int) -> nn.Sequential:
    """From a map to one of 2**doublings times as many rows and columns."""
    layers: list[nn.Module] = []
    for i in range(doublings):
        layers += [LayerNorm2d(out_channels), nn.GELU()] if i else []
        layers.append(nn.ConvTranspose2d(out_channels if i else in_channels, out_channels, 2, 2))
    layers += [nn.MaxPool2d(2, ceil_mode=True) for _ in range(-doublings)]
    layers += [nn.Conv2d(out_channels if doublings > 0 else in_channels, out_channels, 1, bias=False)]
    layers += [LayerNorm2d(out_channels), nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)]
    return nn.Sequential(*layers, LayerNorm2d(out_channels))


def fitting_neck(backbone: nn.Module, kind: str, width: int, finest: int = 0) -> PassThrough | SimplePyramid:
    """What gives a head its maps; of the backbone's own ones, only those that are read are kept.

    The others' output norms are removed, as they would never have a gradient, which data-parallel training takes for a
    mistake. `out_indices` and `feature_info` follow.

    Args:
        backbone: from `create_model(..., features_only=True)`.
        kind: simple_pyramid; none, for maps that are each half the size of the one before; auto, the pyramid only for
            others.
        width: channels of the pyramid's maps.
        finest: least stride of a map that the head reads.

    Raises:
        InputError: none, where a neck is needed, or another word; or all maps are finer.
    """
    if kind not in KINDS:
        raise InputError(f"task.neck is {kind!r}, but must be one of {', '.join(KINDS)}.")
    strides = backbone.feature_info.reduction()
    if kind == "none" and needs_neck(strides):
        raise InputError(
            f"The head needs maps each half the size of the one before, at strides of {_words(STRIDES)} pixels, say, "
            f"but those of the backbone are at {_words(strides)}; add task.neck=simple_pyramid, which makes the former "
            "from the latter."
        )
    pyramid = kind == "simple_pyramid" or needs_neck(strides)
    wanted = [stride for stride in (STRIDES if pyramid else strides) if stride >= finest]
    if not wanted:
        raise InputError(f"task.finest_stride is {finest}, but there are maps at strides of {_words(strides)} pixels.")
    read = sorted({*sources(strides, wanted)}) if pyramid else range(len(strides) - len(wanted), len(strides))
    kept = [backbone.out_indices[i] for i in read]
    backbone.out_indices = backbone.model.prune_intermediate_layers(kept, prune_norm=True)
    backbone.feature_info = backbone.feature_info.from_other(tuple(backbone.out_indices))
    channels, strides = backbone.feature_info.channels(), backbone.feature_info.reduction()
    return SimplePyramid(channels, strides, width, wanted) if pyramid else PassThrough(channels, strides)


def _words(numbers: Sequence[int]) -> str:
    *first, last = map(str, numbers)
    return f"{', '.join(first)} and {last}" if first else last
