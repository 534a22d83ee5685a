"""torchvision's detectors around a backbone: pictures of any sizes to boxes, labels, scores and masks."""

from collections import OrderedDict
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from torchvision.models.detection import FCOS, FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.fcos import FCOSHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from backbones.errors import InputError

from ...annotation import Target
from .cascade import CascadeHeads, stage_of
from .model import BackboneLayers
from .neck import PassThrough, SimplePyramid

BOX_LAYERS = (RPNHead, FastRCNNPredictor, RetinaNetHead, FCOSHead)  # from whose outputs boxes are computed
MANY = 10**6  # pixels: a long side without a limit


@dataclass
class DetectorSettings:
    """What can be set about a detector.

    Args:
        head: faster_rcnn, retinanet or fcos; with masks: mask_rcnn or cascade_mask_rcnn. (Cascade R-CNN without masks
            is cascade_rcnn.)
        neck: simple_pyramid makes maps of strides 4 to 32 of others; none; auto takes what the backbone needs.
        finest_stride: that of the finest map that is read, in pixels; null: 4, and 8 for retinanet and fcos.
        width: channels of the pyramid's maps and of the convolutions on them.
        hidden: width of the two layers on each region, of heads that have regions.
        anchor_scale: side of the anchors, in strides of their map.
        candidates: regions per picture, and per map before overlapping ones are left out, that the first of two stages
            proposes in training; in evaluation half as many.
        proposals: regions per picture that the second stage learns from; positives: the share of them, at most, that
            have an object.
        score_threshold: least score of a detection.
    """

    head: str
    neck: str = "auto"
    finest_stride: int | None = None
    width: int = 256
    hidden: int = 1024
    anchor_scale: int = 8
    candidates: int = 2000
    proposals: int = 512
    positives: float = 0.25
    score_threshold: float = 0.05

    def __post_init__(self):
        if self.head not in HEADS:
            raise InputError(f"There is no head {self.head!r} here; task.head must be one of {', '.join(HEADS)}.")
        counts = (self.hidden, self.anchor_scale, self.candidates, self.proposals)
        if min(counts) < 1 or self.width < 32 or self.width % 32:
            raise InputError(
                "task.hidden, anchor_scale, candidates and proposals must be at least 1, and task.width a multiple of "
                f"32 for the groups of norms, but they are {counts} and {self.width}."
            )
        if not (0 <= self.score_threshold < 1 and 0 < self.positives < 1):
            raise InputError(
                "task.score_threshold must be from 0 to below 1, and task.positives between 0 and 1, but they are "
                f"{self.score_threshold} and {self.positives}."
            )
        if self.finest_stride is None:
            self.finest_stride = 8 if self.one_stage else 4

    @property
    def one_stage(self) -> bool:
        """Whether every place of the maps is a region, rather than what a first stage proposes."""
        return self.head in ("retinanet", "fcos")


class Pyramid(nn.Module):
    """What torchvision's detectors take for a backbone: pictures to maps of equal width, the finest first.

    Args:
        backbone: pictures to a list of maps.
        neck: such a list to another.
        extra: makes coarser maps yet.
    """

    def __init__(self, backbone: nn.Module, neck: PassThrough | SimplePyramid, width: int, extra: nn.Module):
        super().__init__()
        self.backbone, self.neck = backbone, neck
        self.fpn = FeaturePyramidNetwork(neck.channels, width, extra_blocks=extra)
        self.out_channels = width

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        maps = self.neck(self.backbone(images.contiguous(memory_format=torch.channels_last)))
        return self.fpn(OrderedDict((str(i), x) for i, x in enumerate(maps)))


class Detector(BackboneLayers):
    """Pictures, uint8 (channels, H, W) each, to losses in training, and else to what is seen in each.

    Args:
        detector: torchvision's, around a `Pyramid`.
        first_label: that the detector gives to the first class: 1 where 0 is the background.
    """

    def __init__(self, detector: nn.Module, first_label: int):
        super().__init__()
        self.detector, self.first_label = detector, first_label

    def forward(self, images: list[Tensor], targets: list[Target] | None = None):
        """Losses by name in training. Else for each picture boxes (N, 4) in its pixels, labels, scores, and perhaps
        masks (N, H, W), bool."""
        images = [image.float() for image in images]
        if self.training:
            return self.detector(images, [self._countable(target) for target in targets])
        predictions = self.detector(images)
        for each in predictions:
            each["labels"] = each["labels"] - self.first_label
            if "masks" in each:
                each["masks"] = each["masks"][:, 0] >= 0.5
        return predictions

    def _countable(self, target: Target) -> Target:
        """A target without crowds, from which nothing is learned, as the detector counts labels."""
        kept = {name: value[~target["crowd"]] for name, value in target.items()}
        return kept | {"labels": kept["labels"] + self.first_label}


def build_detector(
    backbone: nn.Module, neck: PassThrough | SimplePyramid, num_classes: int, settings: DetectorSettings, data
) -> Detector:
    """The detector that the settings name.

    Args:
        backbone, neck: pictures to maps, and those to maps each half the size of the one before.
        data: `mean` and `std` of each channel, for pixels in [0, 1]; `img_size` and `max_size`, the short side at
            evaluation and the limit of the long one, in pixels.
    """
    width, one_stage = settings.width, settings.one_stage
    levels = len(neck.strides) + (2 if one_stage else 1)  # of the pyramid, with the extra ones
    extra = LastLevelP6P7(width, width) if one_stage else LastLevelMaxPool()
    detector = HEADS[settings.head](
        Pyramid(backbone, neck, width, extra),
        [neck.strides[0] * 2**level for level in range(levels)],
        num_classes,
        settings,
        image_mean=[255 * value for value in data.mean],
        image_std=[255 * value for value in data.std],
        min_size=data.img_size,
        max_size=data.max_size or MANY,
        _skip_resize=True,  # of training pictures, which come in the size that they are to have
    )
    for module in detector.modules():
        if isinstance(module, BOX_LAYERS):
            module.register_forward_hook(_in_full_precision)
    return Detector(detector, first_label=0 if one_stage else 1)


def _in_full_precision(module: nn.Module, inputs, outputs):
    """torchvision's boxes have the precision of these outputs: bf16's nearest numbers to 600 are 4 pixels apart."""
    return tree_map(Tensor.float, outputs)


def _faster_rcnn(
    pyramid: Pyramid, strides: list[int], num_classes: int, settings: DetectorSettings, kind=FasterRCNN, **more
) -> FasterRCNN:
    sizes = tuple((settings.anchor_scale * stride,) for stride in strides)
    return kind(
        pyramid,
        rpn_pre_nms_top_n_train=settings.candidates,
        rpn_post_nms_top_n_train=settings.candidates,
        rpn_pre_nms_top_n_test=-(-settings.candidates // 2),
        rpn_post_nms_top_n_test=-(-settings.candidates // 2),
        rpn_anchor_generator=AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes)),
        box_roi_pool=MultiScaleRoIAlign(["0", "1", "2", "3"], output_size=7, sampling_ratio=2),  # of those there are
        box_head=TwoMLPHead(settings.width * 7**2, settings.hidden),
        box_predictor=FastRCNNPredictor(settings.hidden, num_classes + 1),
        box_batch_size_per_image=settings.proposals,
        box_positive_fraction=settings.positives,
        box_score_thresh=settings.score_threshold,
        **more,
    )


def _mask_rcnn(pyramid: Pyramid, strides: list[int], num_classes: int, settings: DetectorSettings, **more) -> MaskRCNN:
    return _faster_rcnn(
        pyramid,
        strides,
        num_classes,
        settings,
        kind=MaskRCNN,
        mask_head=MaskRCNNHeads(settings.width, (settings.width,) * 4, dilation=1),
        mask_predictor=MaskRCNNPredictor(settings.width, settings.width, num_classes + 1),
        **more,
    )


def _cascade(
    pyramid: Pyramid, strides: list[int], num_classes: int, settings: DetectorSettings, build, **more
) -> FasterRCNN:
    detector = build(pyramid, strides, num_classes, settings, **more)
    earlier = [stage_of(_faster_rcnn(pyramid, strides, num_classes, settings, **more).roi_heads, i) for i in range(2)]
    detector.roi_heads = CascadeHeads(earlier, stage_of(detector.roi_heads, 2))
    return detector


def _retinanet(pyramid: Pyramid, strides: list[int], num_classes: int, settings: DetectorSettings, **more) -> RetinaNet:
    sizes = tuple(tuple(settings.anchor_scale / 2 * stride * 2 ** (i / 3) for i in range(3)) for stride in strides)
    anchors = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes))
    norm = partial(nn.GroupNorm, 32)
    return RetinaNet(
        pyramid,
        num_classes,
        anchor_generator=anchors,
        head=RetinaNetHead(settings.width, anchors.num_anchors_per_location()[0], num_classes, norm),
        score_thresh=settings.score_threshold,
        detections_per_img=100,
        **more,
    )


def _fcos(pyramid: Pyramid, strides: list[int], num_classes: int, settings: DetectorSettings, **more) -> FCOS:
    sizes = tuple((stride,) for stride in strides)  # one point for each place: the side of its cell
    return FCOS(
        pyramid,
        num_classes,
        anchor_generator=AnchorGenerator(sizes, ((1.0,),) * len(sizes)),
        head=FCOSHead(settings.width, 1, num_classes),
        score_thresh=settings.score_threshold,
        **more,
    )


HEADS = {
    "faster_rcnn": _faster_rcnn,
    "cascade_rcnn": partial(_cascade, build=_faster_rcnn),
    "retinanet": _retinanet,
    "fcos": _fcos,
    "mask_rcnn": _mask_rcnn,
    "cascade_mask_rcnn": partial(_cascade, build=_mask_rcnn),
}
MASK_HEADS = ("mask_rcnn", "cascade_mask_rcnn")
