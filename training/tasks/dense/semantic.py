"""Semantic segmentation: a label for every pixel."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from PIL import Image
from torch import Tensor, nn

from backbones.errors import InputError

from ...annotation import Target
from .decoders import build_segmentation_model
from .metrics import segmentation
from .overlays import draw_map
from .pictures import class_bars, pixel_confusion_picture, write_class_table
from .segmenter import InferenceSettings, Segmenter
from .settings import settings_of
from .task import DenseTask


@dataclass
class SemanticSettings:
    """What can be set about semantic segmentation.

    Args:
        decoder: upernet, fpn, segformer, vwformer, or linear: the backbone's maps side by side.
        neck: simple_pyramid makes maps of strides 4 to 32 of others; none; auto takes what the backbone needs.
        width: channels of the decoder; None is its usual number.
        aux_weight: of the loss of an auxiliary head on the third map; 0 has none.
        dropout: of channels before the last layer.
        class_weights: how much a pixel of each class counts in the loss, in the order of the classes: more where a
            class is rare, so that it is learned sooner; predictions are corrected for it. None: all the same.
        inference: how a picture is looked at in evaluation.
    """

    decoder: str = "upernet"
    neck: str = "auto"
    width: int | None = None
    aux_weight: float = 0.4
    dropout: float = 0.1
    class_weights: list[float] | None = None
    inference: dict[str, Any] = field(default_factory=dict)


class SemanticSegmentation(DenseTask):
    """Label maps, measured by the mean IoU of the classes."""

    target, metric, dense = "map", "miou", "segmentation"

    @classmethod
    def build(cls, backbone: nn.Module, classes: list[str], things, data, **options) -> Self:
        """The task around a backbone that returns maps.

        Args:
            data: its mean, std, img_size and max_size are how pictures are prepared.
            options: as `SemanticSettings`.
        """
        settings = settings_of(SemanticSettings, options)
        network = build_segmentation_model(
            backbone,
            len(classes),
            settings.decoder,
            settings.neck,
            settings.width,
            auxiliary=settings.aux_weight > 0,
            dropout=settings.dropout,
        )
        inference = settings_of(InferenceSettings, settings.inference, "task.inference")
        weights = _weights(settings.class_weights or [1.0] * len(classes), classes)
        return cls(Segmenter(network, data, inference, settings.aux_weight, weights), classes)

    def record(self, index: int, prediction: dict[str, Tensor], target: Target):
        return segmentation.record(index, prediction["map"], target["map"], len(self.classes))

    def measure(self, records: list) -> dict[str, float]:
        self._outcome, self._scores = records, segmentation.evaluate(records, self.classes)
        return self._scores.metrics

    def describe(self, metrics: dict[str, float]) -> str:
        """The metrics in words."""
        return f"mIoU {metrics['miou']:.2%}, mean accuracy {metrics['mean_accuracy']:.2%}"

    def write_pictures(self, folder: Path, source) -> dict[str, Path]:
        """Which classes are taken for which, the IoU of each, and a table of them."""
        write_class_table(folder / "classes.csv", self._scores.per_class)
        confusion = segmentation.confusion(self._outcome, self.classes)
        return {
            "confusion": pixel_confusion_picture(folder / "confusion.png", confusion, self.classes),
            "classes": class_bars(folder / "classes.png", self._scores.per_class, "iou", "IoU"),
        }

    def drawn(self, image: Tensor, found: dict[str, Tensor]) -> Image.Image:
        return draw_map(image, found["map"], self.classes)

    def map_of(self, prediction: dict[str, Tensor]) -> Tensor:
        """The labels."""
        return prediction["map"].to(torch.uint8 if len(self.classes) <= 256 else torch.uint16)

    def listed(self, prediction: dict[str, Tensor]) -> list[dict[str, Any]]:
        """label and share of the pixels of each class that was found, the largest first."""
        counts = prediction["map"].flatten().bincount(minlength=len(self.classes))
        order = counts.argsort(descending=True, stable=True)
        return [
            {"label": self.classes[label], "share": round(float(counts[label] / counts.sum()), 4)}
            for label in order.tolist()
            if counts[label]
        ]


def _weights(weights: list[float], classes: list[str]) -> Tensor:
    if len(weights) != len(classes) or min(weights) <= 0:
        raise InputError(
            f"task.class_weights must be null or a positive number for each of the {len(classes)} classes "
            f"({', '.join(classes[:3])}, …), but is {weights}."
        )
    return torch.tensor(weights, dtype=torch.float32)
