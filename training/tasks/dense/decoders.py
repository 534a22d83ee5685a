"""From a backbone's maps to logits of every place: decoders, heads, and the network of all parts.

UPerNet (Xiao et al., arXiv:1807.10221), the semantic FPN (Kirillov et al., arXiv:1901.02446) and SegFormer's decoder
(Xie et al., arXiv:2105.15203) are those of segmentation_models_pytorch; VWFormer's is in `vwformer.py`.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones.errors import InputError, suggest

from .model import BackboneLayers
from .neck import PassThrough, SimplePyramid, fitting_neck
from .vwformer import VWFormerDecoder

WIDTHS = {"upernet": 512, "fpn": 128, "segformer": 256, "vwformer": 256}  # usual ones, as in papers and their recipes
DECODERS = (*WIDTHS, "linear")
AUXILIARY = 2  # the map that an auxiliary head reads: at stride 16, where the first is at 4


class LibraryDecoder(nn.Module):
    """A decoder of segmentation_models_pytorch fed with our maps.

    It expects each map to be exactly twice as large as the next one. Maps for which a backbone rounded up or down get
    zeros at their right and bottom, where the backbone, too, pads or drops; what comes out for them is cut off.

    Args:
        name: upernet, fpn or segformer.
        channels: of the maps at strides 4, 8, 16 and 32.
        width: of what comes out; fpn: a multiple of 32, and its pyramid is twice as wide, as in the paper.
    """

    def __init__(self, name: str, channels: list[int], width: int):
        super().__init__()
        self.out_channels = width
        # Two more maps, of the picture and of stride 2, belong to the list; all three decoders skip empty ones.
        self.decoder = _library_decoder(name, [0, 0, *channels], width)
        self.name = name

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Four maps (B, C, H, W), finest first, to (B, width, H, W) of the first one's size."""
        if self.training and self.name == "upernet" and len(maps[0]) == 1 and not self._synchronised():
            raise InputError(
                "UPerNet pools a map to one value, which batch norm cannot normalise in a batch of one picture. Train "
                "with trainer.batch_size=2 or more (and trainer.accumulation_steps), or with another task.decoder."
            )
        height, width = maps[0].shape[2:]
        units = [max(-(-x.shape[dim] // 2 ** (3 - i)) for i, x in enumerate(maps)) for dim in (2, 3)]
        padded = []
        for i, x in enumerate(maps):
            bottom, right = (unit * 2 ** (3 - i) - side for unit, side in zip(units, x.shape[2:]))
            padded.append(F.pad(x, (0, right, 0, bottom)) if bottom or right else x)
        # Segformer's asks the picture for its size, and nobody for its pixels.
        picture = maps[0].new_empty(0, 0, *(4 * side for side in padded[0].shape[2:]))
        return self.decoder([picture, picture, *padded])[:, :, :height, :width]

    def _synchronised(self) -> bool:
        return any(isinstance(module, nn.SyncBatchNorm) for module in self.decoder.modules())


def _library_decoder(name: str, channels: list[int], width: int) -> nn.Module:
    from segmentation_models_pytorch.base.initialization import initialize_decoder  # takes a second to import
    from segmentation_models_pytorch.decoders.fpn.decoder import FPNDecoder
    from segmentation_models_pytorch.decoders.segformer.decoder import SegformerDecoder
    from segmentation_models_pytorch.decoders.upernet.decoder import UPerNetDecoder

    if name == "fpn" and width % 32:
        raise InputError(f"The decoder fpn normalises 32 groups of channels, so task.width={width} must be divisible.")
    if name == "upernet":
        decoder = UPerNetDecoder(channels, decoder_channels=width)
    elif name == "fpn":
        # The head drops channels already.
        decoder = FPNDecoder(channels, pyramid_channels=2 * width, segmentation_channels=width, dropout=0.0)
    else:
        decoder = SegformerDecoder(channels, segmentation_channels=width)
    initialize_decoder(decoder)
    return decoder


class LinearDecoder(nn.Module):
    """All maps side by side at the size of the finest, after batch norm: with the head's 1 x 1 convolution, a probe.

    As in the linear evaluation of DINOv2 (Oquab et al., arXiv:2304.07193, section 7.4). Maps may be of any strides.
    """

    def __init__(self, channels: list[int]):
        super().__init__()
        self.out_channels = sum(channels)
        self.norm = nn.BatchNorm2d(self.out_channels)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Maps (B, C, H, W), finest first, to (B, sum of C, H, W) of the first one's size."""
        size = maps[0].shape[2:]
        resized = [x if x.shape[2:] == size else F.interpolate(x, size, mode="bilinear") for x in maps]
        return self.norm(torch.cat(resized, 1))


def known_width(name: str, width: int | None) -> int | None:
    """The width given for a decoder, or its usual one; None for `linear`, which keeps all channels.

    Raises:
        InputError: another name, or a width that no decoder of this name has.
    """
    if name not in DECODERS:
        raise InputError(
            f"task.decoder is {name!r}, but must be one of {', '.join(DECODERS)}.{suggest(name, list(DECODERS))}"
        )
    if name == "linear" and width is not None:
        raise InputError(f"A linear decoder keeps the channels of all maps; remove task.width={width}.")
    if width is not None and width < 1:
        raise InputError(f"task.width is {width}, but the decoder needs at least 1 channel.")
    return WIDTHS.get(name) if width is None else width


def build_decoder(name: str, channels: list[int], width: int | None = None) -> nn.Module:
    """A decoder: maps (B, C, H, W), finest first, to (B, out_channels, H, W) of the first one's size.

    Args:
        name: one of DECODERS.
        channels: of the maps, at strides 4, 8, 16 and 32; for `linear` of any strides.
        width: `out_channels`; None: as usual for this decoder (see `known_width`, which raises for others).
    """
    width = known_width(name, width)
    if width is None:
        return LinearDecoder(channels)
    return VWFormerDecoder(channels, width) if name == "vwformer" else LibraryDecoder(name, channels, width)


class SegmentationHead(nn.Sequential):
    """(B, in_channels, H, W) to logits (B, classes, H, W): whole channels are dropped, then a 1 x 1 convolution."""

    def __init__(self, in_channels: int, classes: int, dropout: float = 0.1):
        super().__init__(nn.Dropout2d(dropout), nn.Conv2d(in_channels, classes, 1))
        nn.init.normal_(self[1].weight, std=0.01)
        nn.init.zeros_(self[1].bias)


class FCNHead(nn.Sequential):
    """The auxiliary head of UPerNet's recipes: a 3 x 3 convolution with norm and ReLU, then `SegmentationHead`."""

    def __init__(self, in_channels: int, classes: int, channels: int = 256, dropout: float = 0.1):
        conv = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        head = SegmentationHead(channels, classes, dropout)
        super().__init__(conv, nn.BatchNorm2d(channels), nn.ReLU(inplace=True), head)


class WithAuxiliary(NamedTuple):
    """Logits (B, classes, H, W) in training, of the first map's size; an auxiliary head's are of the third's."""

    logits: Tensor
    aux_logits: Tensor


class SegmentationModel(BackboneLayers):
    """Normalised pictures (B, channels, H, W) to logits (B, classes, H / 4, W / 4); in training also auxiliary ones.

    Rows and columns are those of the finest map that the decoder reads; the caller enlarges them to the picture's.

    Args:
        backbone: pictures to a list of maps.
        neck: that list to the decoder's; has `channels` and `strides`.
        decoder, head: as `build_decoder` and `SegmentationHead`.
        aux_head: of the neck's third map, or None.
    """

    def __init__(
        self,
        backbone: nn.Module,
        neck: PassThrough | SimplePyramid,
        decoder: nn.Module,
        head: nn.Module,
        aux_head: nn.Module | None = None,
    ):
        super().__init__()
        self.backbone, self.neck, self.decoder, self.head, self.aux_head = backbone, neck, decoder, head, aux_head

    def forward(self, images: Tensor) -> Tensor | WithAuxiliary:
        maps = self.neck(self.backbone(images))
        logits = self.head(self.decoder(maps))
        if self.training and self.aux_head is not None:
            return WithAuxiliary(logits, self.aux_head(maps[AUXILIARY]))
        return logits


def build_segmentation_model(
    backbone: nn.Module,
    classes: int,
    decoder: str,
    neck: str = "auto",
    width: int | None = None,
    auxiliary: bool = False,
    dropout: float = 0.1,
) -> SegmentationModel:
    """The network of a features-only backbone, which may lose output norms that nothing reads, and named parts.

    Args:
        decoder: one of DECODERS; `linear` reads the backbone's own maps, so that nothing but a linear map is learned.
        neck: auto, none or simple_pyramid, as wide as the decoder.
        width: of the decoder, or None for its usual one.
        auxiliary: whether there is an `FCNHead` on the third map.

    Raises:
        InputError: parts that do not fit together.
    """
    width = known_width(decoder, width)
    if width is None:
        if auxiliary or neck == "simple_pyramid":
            raise InputError(
                "A linear decoder reads the backbone's own maps and nothing else learns beside it; leave out "
                "task.neck=simple_pyramid and the auxiliary head, or choose another task.decoder."
            )
        info = backbone.feature_info
        bridge = PassThrough(info.channels(), info.reduction())
    else:
        bridge = fitting_neck(backbone, neck, width)
    parts = build_decoder(decoder, bridge.channels, width)
    head = SegmentationHead(parts.out_channels, classes, dropout)
    aux_head = FCNHead(bridge.channels[AUXILIARY], classes, dropout=dropout) if auxiliary else None
    return SegmentationModel(backbone, bridge, parts, head, aux_head)
