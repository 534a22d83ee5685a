"""Mask2Former (Cheng et al., arXiv:2112.01527) of transformers around a backbone: pictures to segments or objects."""

import logging
from dataclasses import dataclass
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import masks_to_boxes

from backbones.errors import InputError

from ...annotation import Target
from .model import BackboneLayers
from .preparation import Preparation

BEYOND = torch.tensor([0.0, 0.0, 1.0, 1.0])  # the right and bottom of a box are those of its last pixels


@dataclass
class QuerySettings:
    """What can be set about Mask2Former; the defaults are the paper's.

    Args:
        neck: as of other heads.
        queries: most objects or segments in a picture.
        width: channels of the pixel decoder, the queries and the mask features; a multiple of 8, the heads.
        encoder_layers: of the pixel decoder, with deformable attention; decoder_layers: of the queries.
        points: of each mask at which the loss is computed.
        score_threshold: least probability of a segment; overlap_threshold: the pixels of which it must be the
            likeliest query, as a share of its own mask. Of panoptic maps.
    """

    neck: str = "auto"
    queries: int = 100
    width: int = 256
    encoder_layers: int = 6
    decoder_layers: int = 9
    points: int = 12544
    score_threshold: float = 0.8
    overlap_threshold: float = 0.8

    def __post_init__(self):
        if min(self.queries, self.encoder_layers, self.points) < 1 or self.decoder_layers < 2:
            raise InputError("task.queries, encoder_layers and points must be at least 1, and decoder_layers 2.")
        if self.width < 32 or self.width % 32:
            raise InputError(f"task.width is {self.width}, but Mask2Former needs a multiple of 32 (normalised groups).")


class Maps(nn.Module):
    """A backbone and its neck as transformers knows backbones."""

    def __init__(self, backbone: nn.Module, neck: nn.Module):
        super().__init__()
        self.backbone, self.neck, self.channels = backbone, neck, neck.channels

    def forward(self, images: Tensor) -> SimpleNamespace:
        return SimpleNamespace(feature_maps=self.neck(self.backbone(images)))


class QuerySegmenter(BackboneLayers):
    """Pictures, uint8 (channels, H, W) each, to losses in training, and else to segments or objects in each.

    Args:
        things: whether the objects of a label are counted, for panoptic maps; None for objects that may overlap.
        data: as `Preparation` reads it.
    """

    def __init__(
        self,
        backbone: nn.Module,
        neck: nn.Module,
        num_classes: int,
        things: list[bool] | None,
        settings: QuerySettings,
        data,
    ):
        super().__init__()
        self.network = _mask2former(backbone, neck, num_classes, settings)
        self.settings, self.things, self.num_classes = settings, things, num_classes
        self.preparation = Preparation(data)

    def forward(self, images: list[Tensor], targets: list[Target] | None = None):
        """Losses by name in training.

        Else for each picture, with `things`, `segments` (H, W), the number of each pixel's segment or -1, and `labels`
        by that number; without, `labels`, `scores`, `masks` (N, H, W) and the masks' `boxes`, of the 100 surest.
        """
        if not self.training:
            return [self._predict(image) for image in images]
        batch = self.preparation(images)
        masks, labels = [], []
        for target in targets:
            kept = ~target["crowd"]
            mask = target["masks"][kept].float()
            masks.append(F.pad(mask, (0, batch.shape[3] - mask.shape[2], 0, batch.shape[2] - mask.shape[1])))
            labels.append(target["labels"][kept])
        return {"loss": self.network(batch, mask_labels=masks, class_labels=labels).loss.squeeze()}

    def _predict(self, image: Tensor) -> dict[str, Tensor]:
        size = image.shape[1:]
        scaled = self.preparation.resized(image)
        batch = self.preparation([scaled])
        output = self.network(batch)
        probabilities = output.class_queries_logits[0].float().softmax(-1)
        masks = F.interpolate(output.masks_queries_logits.float(), batch.shape[2:], mode="bilinear")
        masks = F.interpolate(masks[:, :, : scaled.shape[1], : scaled.shape[2]], size, mode="bilinear")[0].sigmoid()
        return self._objects(probabilities, masks) if self.things is None else self._segments(probabilities, masks)

    def _objects(self, probabilities: Tensor, masks: Tensor) -> dict[str, Tensor]:
        """The surest pairs of a query (Q, classes + 1) and a class, each with the query's mask (Q, H, W)."""
        scores, pairs = probabilities[:, :-1].flatten().topk(min(100, len(masks) * self.num_classes))
        queries, labels = pairs // self.num_classes, pairs % self.num_classes
        masks = masks[queries]
        inside = masks > 0.5
        certainty = (masks * inside).sum((1, 2)) / inside.sum((1, 2)).clamp(min=1)
        kept = inside.any(2).any(1)
        scores, labels, inside = (scores * certainty)[kept], labels[kept], inside[kept]
        boxes = masks_to_boxes(inside) + BEYOND.to(inside.device)
        return {"labels": labels, "scores": scores, "masks": inside, "boxes": boxes}

    def _segments(self, probabilities: Tensor, masks: Tensor) -> dict[str, Tensor]:
        """Each pixel goes to the query whose probability times its mask's is greatest (Q, classes + 1), (Q, H, W)."""
        scores, labels = probabilities.max(-1)
        kept = (labels < self.num_classes) & (scores > self.settings.score_threshold)
        scores, labels, masks = scores[kept], labels[kept], masks[kept]
        segments = torch.full(masks.shape[1:], -1, device=masks.device)
        numbers, found = {}, []
        owner = (scores[:, None, None] * masks).argmax(0) if len(masks) else segments
        for query, label in enumerate(labels.tolist()):
            inside = masks[query] >= 0.5
            won = owner == query
            own = inside & won
            # As the authors count it, what is won outside of the mask makes up for what is lost inside.
            if not own.any() or won.sum() < self.settings.overlap_threshold * inside.sum():
                continue
            number = len(found) if self.things[label] else numbers.setdefault(label, len(found))
            segments[own] = number
            if number == len(found):
                found.append(label)
        return {"segments": segments, "labels": torch.tensor(found, dtype=torch.long, device=masks.device)}


def _mask2former(backbone: nn.Module, neck: nn.Module, num_classes: int, settings: QuerySettings) -> nn.Module:
    try:
        from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, ResNetConfig
    except ImportError as error:
        raise InputError("Mask2Former needs transformers: pip install 'backbones[mask2former]'.") from error
    # It is built around a small backbone with maps of the same widths, in whose place ours is put.
    stand_in = ResNetConfig(
        embedding_size=8,
        hidden_sizes=neck.channels,
        depths=[1] * 4,
        layer_type="basic",
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    width = settings.width
    said = logging.getLogger("transformers")
    level = said.level
    said.setLevel(logging.ERROR)  # that the stand-in is none of the backbones it was made for
    config = Mask2FormerConfig(
        backbone_config=stand_in,
        num_labels=num_classes,
        num_queries=settings.queries,
        feature_size=width,
        mask_feature_size=width,
        hidden_dim=width,
        encoder_feedforward_dim=4 * width,
        dim_feedforward=8 * width,
        encoder_layers=settings.encoder_layers,
        # It counts the prediction before the first layer as one.
        decoder_layers=settings.decoder_layers + 1,
        feature_strides=neck.strides,
        common_stride=neck.strides[0],
        train_num_points=settings.points,
        no_object_weight=0.1,
    )
    said.setLevel(level)
    network = Mask2FormerForUniversalSegmentation(config)
    network.model.pixel_level_module.encoder = Maps(backbone, neck)
    return network
