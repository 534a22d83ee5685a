"""Object detection and instance segmentation: boxes, with masks or without."""

from pathlib import Path
from typing import Any, Self

from PIL import Image
from torch import Tensor, nn

from backbones.errors import InputError

from ...annotation import Target
from ..pictures import confusion_picture
from .detectors import HEADS, MASK_HEADS, DetectorSettings, build_detector
from .mask2former import QuerySegmenter, QuerySettings
from .metrics import average_precision
from .neck import fitting_neck
from .overlays import draw_detections
from .pictures import precision_recall_picture, write_class_table
from .settings import settings_of
from .task import DenseTask

CONFIDENT = 0.5  # least score of a detection that is drawn, or counted where classes are confused


class Detection(DenseTask):
    """Boxes with labels and scores, measured by COCO's average precision."""

    target, metric, dense = "boxes", "box_ap", "detection"
    heads = tuple(name for name in HEADS if name not in MASK_HEADS)
    kinds = ("boxes",)  # of what is measured

    @classmethod
    def build(cls, backbone: nn.Module, classes: list[str], things, data, head: str = "faster_rcnn", **options) -> Self:
        """The task around a backbone that returns maps.

        Args:
            data: its mean, std, img_size and max_size are how pictures are prepared.
            options: as `DetectorSettings`.
        """
        if head not in cls.heads:
            raise InputError(f"task.head is {head!r}, but must be one of {', '.join(cls.heads)}.")
        settings = settings_of(DetectorSettings, options, head=head)
        neck = fitting_neck(backbone, settings.neck, settings.width, settings.finest_stride)
        return cls(build_detector(backbone, neck, len(classes), settings, data), classes)

    def record(self, index: int, prediction: dict[str, Tensor], target: Target):
        return average_precision.record(index, prediction, target)

    def measure(self, records: list) -> dict[str, float]:
        self._outcome = records
        self._scores = {kind: average_precision.evaluate(records, self.classes, kind) for kind in self.kinds}
        return {name: value for scores in self._scores.values() for name, value in scores.metrics.items()}

    def describe(self, metrics: dict[str, float]) -> str:
        """The metrics in words."""
        return ", ".join(
            f"{name} AP {metrics[f'{name}_ap']:.2%} (AP50 {metrics[f'{name}_ap50']:.2%})"
            for name in ("box", "mask")
            if f"{name}_ap" in metrics
        )

    def write_pictures(self, folder: Path, source) -> dict[str, Path]:
        """The precision over the recall, which classes are taken for which, and a table of all classes."""
        kind = self.kinds[-1]
        scores = self._scores[kind]
        write_class_table(folder / "classes.csv", scores.per_class)
        confusion = average_precision.confusion(self._outcome, self.classes, kind, CONFIDENT)
        return {
            "precision_recall": precision_recall_picture(folder / "precision_recall.png", scores.curves, kind),
            "confusion": confusion_picture(folder / "confusion.png", confusion, [*self.classes, "nothing"]),
        }

    def drawn(self, image: Tensor, found: dict[str, Tensor]) -> Image.Image:
        return draw_detections(image, found, self.classes, CONFIDENT)

    def listed(self, prediction: dict[str, Tensor]) -> list[dict[str, Any]]:
        """label, score and box (left, top, right, bottom, in pixels) of each detection, the surest first."""
        order = prediction["scores"].argsort(descending=True).tolist()
        return [
            {
                "label": self.classes[prediction["labels"][i]],
                "score": round(float(prediction["scores"][i]), 4),
                "box": [round(value, 2) for value in prediction["boxes"][i].tolist()],
            }
            for i in order
        ]


class InstanceSegmentation(Detection):
    """Detection with a mask for each object."""

    target, metric = "masks", "mask_ap"
    heads = (*MASK_HEADS, "mask2former")
    kinds = ("boxes", "masks")

    @classmethod
    def build(cls, backbone: nn.Module, classes: list[str], things, data, head: str = "mask_rcnn", **options) -> Self:
        """The task around a backbone that returns maps; options as `DetectorSettings` or `QuerySettings`."""
        if head != "mask2former":
            return super().build(backbone, classes, things, data, head, **options)
        settings = settings_of(QuerySettings, options)
        neck = fitting_neck(backbone, settings.neck, settings.width)
        return cls(QuerySegmenter(backbone, neck, len(classes), None, settings, data), classes)

    def listed(self, prediction: dict[str, Tensor]) -> list[dict[str, Any]]:
        """As detections, with the mask's run-length encoding."""
        order = prediction["scores"].argsort(descending=True)
        masks = average_precision.encoded(prediction["masks"][order])
        masks = [mask | {"counts": mask["counts"].decode()} for mask in masks]
        return [entry | {"mask": mask} for entry, mask in zip(super().listed(prediction), masks)]
