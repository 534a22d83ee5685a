"""Average precision of detections, as COCO counts it (Lin et al., arXiv:1405.0312; https://cocodataset.org).

A class's precision is averaged over 101 recalls, then over classes with truth and over the IoUs 0.5, 0.55, ..., 0.95.
Truth that is a crowd is never missed, and what is found in it is no mistake. The arithmetic is faster_coco_eval's.
"""

from dataclasses import dataclass

import numpy as np
import torch
from faster_coco_eval import COCO, COCOeval_faster
from faster_coco_eval.core import mask as rle
from torch import Tensor

from ....annotation import Target
from . import Scores

MOST_DETECTIONS = 100  # of a picture that count, the surest, as in COCO's rules
SIZES = ("small", "medium", "large")  # areas below 32², below 96² and from there on, in pixels
KINDS = {"boxes": ("box", "bbox"), "masks": ("mask", "segm")}  # to the prefix of names, and COCO's word


@dataclass
class Objects:
    """The objects in a picture, found or true. What is true has no `scores`; what is found has no `crowd` nor `area`.

    Args:
        labels: (N,).
        boxes: (N, 4), left, top, width and height in pixels.
        masks: N run-length encodings; None where there are none.
        scores: (N,), from the highest on.
        crowd: (N,), true for a region of many objects that nobody counted.
        area: (N,), in pixels, which decides what is small or large.
    """

    labels: np.ndarray
    boxes: np.ndarray
    masks: list[dict] | None = None
    scores: np.ndarray | None = None
    crowd: np.ndarray | None = None
    area: np.ndarray | None = None

    def regions(self, kind: str) -> list:
        """The boxes or the masks, in the form of faster_coco_eval."""
        return self.boxes.tolist() if kind == "boxes" else self.masks


@dataclass
class DetectionRecord:
    """What was found in a picture, and what is there."""

    index: int
    found: Objects
    true: Objects


@dataclass
class DetectionScores(Scores):
    """Metrics, and for each row of `per_class` the precisions (101,) at IoU 0.5 for recalls 0, 0.01, ..., 1."""

    curves: dict[str, np.ndarray]


def record(index: int, prediction: dict[str, Tensor], target: Target) -> DetectionRecord:
    """Keep of one picture its MOST_DETECTIONS surest detections, and its truth.

    Args:
        prediction: `boxes` (N, 4), left, top, right and bottom in pixels of the picture; `scores` (N,); `labels` (N,);
            `masks` (N, H, W), bool or uint8, where masks were predicted.
        target: of the kind "boxes" or "masks".
    """
    best = prediction["scores"].float().argsort(descending=True, stable=True)[:MOST_DETECTIONS]
    prediction = {name: prediction[name][best] for name in ("boxes", "labels", "scores", "masks") if name in prediction}
    found = _objects(prediction, scores=_array(prediction["scores"], torch.double))
    true = _objects(target, crowd=_array(target["crowd"], torch.bool), area=_array(target["area"], torch.double))
    return DetectionRecord(index, found, true)


def evaluate(records: list[DetectionRecord], classes: list[str], kind: str) -> DetectionScores:
    """The average precision of boxes or of masks.

    The metrics are `box_ap`, `box_ap50` and `box_ap75` (at one IoU), `box_ar100` (the recall) and `box_ap_small`,
    `box_ap_medium` and `box_ap_large`, the last three only where there is truth of that size; for masks, `mask_ap`
    and so on. Without any truth they are 0.

    Args:
        records: one of each picture.
        classes: names of the labels.
        kind: "boxes" or "masks".
    """
    prefix, word = KINDS[kind]
    truth = COCO(_truth(records, classes, kind))
    evaluation = COCOeval_faster(truth, truth.loadRes(_detections(records, kind)), word, print_function=_silent)
    evaluation.evaluate()
    # (IoUs, recalls, classes, sizes); the last axis is the number of detections, of which we want 100.
    precision, recall = evaluation.eval["precision"][..., -1], evaluation.eval["recall"][..., -1]
    everything = precision[..., 0]
    metrics = {
        f"{prefix}_ap": _mean(everything),
        f"{prefix}_ap50": _mean(everything[0]),
        f"{prefix}_ap75": _mean(everything[5]),
        f"{prefix}_ar100": _mean(recall[..., 0]),
    }
    metrics |= {
        f"{prefix}_ap_{size}": _mean(precision[..., i]) for i, size in enumerate(SIZES, 1) if _known(precision[..., i])
    }
    counts = np.zeros(len(classes), int)
    for each in records:
        np.add.at(counts, each.true.labels[~each.true.crowd], 1)
    occurring = [label for label in range(len(classes)) if _known(everything[..., label])]
    per_class = [
        {
            "class": classes[label],
            f"{prefix}_ap": _mean(everything[..., label]),
            f"{prefix}_ap50": _mean(everything[0, :, label]),
            "objects": int(counts[label]),
        }
        for label in occurring
    ]
    return DetectionScores(metrics, per_class, {classes[label]: everything[0, :, label] for label in occurring})


def confusion(records: list[DetectionRecord], classes: list[str], kind: str, threshold: float) -> Tensor:
    """Counts (true, found) of classes, (C + 1, C + 1); the last row and column stand for nothing.

    Detections of at least the score `threshold`, the surest first, each take the object, of whatever class, that they
    cover best and that is not taken yet, if their IoU is 0.5 or more. One that takes none was found where nothing is,
    unless half of it is in a crowd of its class.
    """
    nothing = len(classes)
    counts = torch.zeros(nothing + 1, nothing + 1, dtype=torch.long)
    for each in records:
        true, found = each.true, each.found
        free = ~true.crowd
        ious = np.zeros((len(found.labels), len(true.labels)))
        if ious.size:
            ious[:] = rle.iou(found.regions(kind), true.regions(kind), true.crowd.astype(int).tolist())
        for label, overlap in zip(found.labels[found.scores >= threshold], ious):
            covered = np.where(free, overlap, 0)
            if covered.max(initial=0) >= 0.5:
                best = covered.argmax()
                free[best] = False
                counts[true.labels[best], label] += 1
            elif not (overlap[true.crowd & (true.labels == label)] >= 0.5).any():
                counts[nothing, label] += 1
        for label in true.labels[free]:
            counts[label, nothing] += 1
    return counts


def _truth(records: list[DetectionRecord], classes: list[str], kind: str) -> dict:
    """COCO's form of what is there."""
    name = "bbox" if kind == "boxes" else "segmentation"
    rows = []
    for each in records:
        true = each.true
        for label, region, crowd, area in zip(true.labels, true.regions(kind), true.crowd, true.area):
            row = {"image_id": each.index, "category_id": int(label), "iscrowd": int(crowd), "area": float(area)}
            rows.append(row | {"id": len(rows) + 1, name: region})  # 0 would mean that it was not found
    # Regions are encoded already, so that nobody needs the sizes of the pictures, which there must be all the same.
    images = [{"id": each.index, "height": 0, "width": 0} for each in records]
    categories = [{"id": label, "name": name} for label, name in enumerate(classes)]
    return {"images": images, "annotations": rows, "categories": categories}


def _detections(records: list[DetectionRecord], kind: str) -> list[dict]:
    """COCO's form of what was found."""
    name = "bbox" if kind == "boxes" else "segmentation"
    return [
        {"image_id": each.index, "category_id": int(label), "score": float(score), name: region}
        for each in records
        for label, region, score in zip(each.found.labels, each.found.regions(kind), each.found.scores)
    ]


def _objects(values: dict[str, Tensor], **others: np.ndarray) -> Objects:
    corners = _array(values["boxes"], torch.double).reshape(-1, 4)
    boxes = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], 1)
    masks = encoded(values["masks"]) if "masks" in values else None
    return Objects(_array(values["labels"], torch.long), boxes, masks, **others)


def encoded(masks: Tensor) -> list[dict]:
    """Run-length encodings of masks (N, H, W)."""
    if not len(masks):
        return []
    columns = masks.to(torch.uint8).transpose(1, 2).contiguous().cpu().numpy()  # they run down, column by column
    return rle.encode(columns.transpose(2, 1, 0))


def _array(values: Tensor, kind: torch.dtype) -> np.ndarray:
    return values.detach().cpu().to(kind).numpy()


def _known(values: np.ndarray) -> bool:
    """Whether there was truth to measure by; COCO puts -1 where there was none."""
    return bool((values > -1).any())


def _mean(values: np.ndarray) -> float:
    return float(values[values > -1].mean()) if _known(values) else 0.0


def _silent(*_) -> None:
    """What COCO's evaluation would print, nobody reads."""
