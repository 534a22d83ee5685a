"""Panoptic segmentation: every pixel in one segment, of things that are counted or of stuff that is not."""

from pathlib import Path
from typing import Any, Self

import torch
from PIL import Image
from torch import Tensor, nn

from backbones.errors import InputError

from ...annotation import Target
from .mask2former import QuerySegmenter, QuerySettings
from .metrics import panoptic_quality
from .neck import fitting_neck
from .overlays import draw_segments
from .pictures import class_bars, write_class_table
from .settings import settings_of
from .task import DenseTask


class PanopticSegmentation(DenseTask):
    """Segments with labels, measured by panoptic quality."""

    target, metric, dense = "segments", "pq", "segmentation"

    @classmethod
    def build(cls, backbone: nn.Module, classes: list[str], things, data, head: str = "mask2former", **options) -> Self:
        """The task around a backbone that returns maps.

        Args:
            things: whether the objects of each label are counted.
            data: its mean, std, img_size and max_size are how pictures are prepared.
            options: as `QuerySettings`.
        """
        if head != "mask2former":
            raise InputError(f"task.head is {head!r}, but panoptic segmentation has mask2former alone.")
        settings = settings_of(QuerySettings, options)
        neck = fitting_neck(backbone, settings.neck, settings.width)
        return cls(QuerySegmenter(backbone, neck, len(classes), things, settings, data), classes, things)

    def record(self, index: int, prediction: dict[str, Tensor], target: Target):
        return panoptic_quality.record(index, prediction, target)

    def measure(self, records: list) -> dict[str, float]:
        self._scores = panoptic_quality.evaluate(records, self.classes, self.things)
        return self._scores.metrics

    def describe(self, metrics: dict[str, float]) -> str:
        """The metrics in words."""
        return f"PQ {metrics['pq']:.2%} (SQ {metrics['sq']:.2%}, RQ {metrics['rq']:.2%})"

    def write_pictures(self, folder: Path, source) -> dict[str, Path]:
        """The quality of each class, and a table of them."""
        write_class_table(folder / "classes.csv", self._scores.per_class)
        rows = self._scores.per_class
        return {"classes": class_bars(folder / "classes.png", rows, "pq", "Panoptic quality")}

    def drawn(self, image: Tensor, found: dict[str, Tensor]) -> Image.Image:
        return draw_segments(image, found, self.classes, self.things)

    def map_of(self, prediction: dict[str, Tensor]) -> Tensor:
        """The numbers of the segments, counted from 1 as they are listed; 0 is none."""
        return (prediction["segments"] + 1).to(torch.uint8)

    def listed(self, prediction: dict[str, Tensor]) -> list[dict[str, Any]]:
        """label, whether it is a thing, and the pixels of each segment, in the order of their numbers."""
        labels = prediction["labels"].tolist()
        areas = (prediction["segments"] + 1).flatten().bincount(minlength=len(labels) + 1)[1:].tolist()
        return [
            {"label": self.classes[label], "thing": self.things[label], "pixels": area}
            for label, area in zip(labels, areas)
        ]
