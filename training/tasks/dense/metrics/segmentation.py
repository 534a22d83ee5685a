"""How well maps of classes agree: IoU of classes, and of what is near their borders.

The boundary IoU (Cheng et al., arXiv:2103.16562) compares, of each class, only the pixels that are near its border:
those that an erosion by 2 % of the picture's diagonal takes away. A border may also be the picture's.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ....annotation import IGNORED
from . import Scores

BOUNDARY = 0.02  # width of what is near a border, as a part of the diagonal


@dataclass
class MapRecord:
    """Counts of one picture's pixels, without those that are ignored.

    Args:
        pairs: (K, 2), the true and the predicted label of pixels.
        counts: (K,), how many such pixels there are.
        labels: (L,), classes that have borders in truth or prediction.
        boundary: (L, 2), of each the pixels near its borders in both, and in either.
    """

    index: int
    pairs: np.ndarray
    counts: np.ndarray
    labels: np.ndarray
    boundary: np.ndarray


def record(index: int, predicted: Tensor, target: Tensor, classes: int) -> MapRecord:
    """Count the pixels of one picture, on the device of `predicted`.

    Args:
        predicted: labels (H, W).
        target: the true ones (H, W), or IGNORED.
        classes: how many classes there are.
    """
    target = target.to(predicted.device).long()
    seen = target != IGNORED
    pairs, counts = _count(target[seen] * classes + predicted[seen], classes**2)

    # What is ignored ends both maps: otherwise the truth alone would have a border there.
    true, found = target, torch.where(seen, predicted.long(), IGNORED)
    near_true, near_found = near_borders(true) & seen, near_borders(found) & seen
    in_both = torch.bincount(true[near_true & near_found & (true == found)], minlength=classes)
    in_truth, in_found = (
        torch.bincount(labels[near], minlength=classes) for labels, near in ((true, near_true), (found, near_found))
    )
    boundary = torch.stack([in_both, in_truth + in_found - in_both], 1).cpu().numpy()
    labels = np.flatnonzero(boundary[:, 1])
    return MapRecord(index, np.stack(np.divmod(pairs, classes), 1), counts, labels, boundary[labels])


def near_borders(labels: Tensor) -> Tensor:
    """Which pixels of a map (H, W) an erosion of their class would take away, (H, W).

    As in the authors' code, the erosion by 3 x 3 pixels is repeated as often as the width has pixels, and a class ends
    at the picture's border. A pixel stays if all others of the square around it are of its class: if their highest and
    lowest label are its own, which is one pass for all the classes.
    """
    height, width = labels.shape
    reach = max(1, round(BOUNDARY * (height**2 + width**2) ** 0.5))
    labels = labels.float()[None, None]
    inside = F.pad(labels, [reach] * 4, value=torch.inf)  # what lies outside is no class
    highest, lowest = (
        sign * F.max_pool2d(F.max_pool2d(sign * inside, (2 * reach + 1, 1), 1), (1, 2 * reach + 1), 1)
        for sign in (1, -1)
    )
    return ((highest != labels) | (lowest != labels))[0, 0]


def evaluate(records: list[MapRecord], classes: list[str]) -> Scores:
    """`miou`, `mean_accuracy`, `pixel_accuracy` and `boundary_iou` of the pixels of all pictures together.

    The IoUs are averaged over the classes that are in truth or prediction, the accuracy over those in truth.

    Args:
        records: one of each picture.
        classes: names of the labels.
    """
    counts = confusion(records, classes).double().numpy()
    boundary = np.zeros((len(classes), 2))
    for each in records:
        boundary[each.labels] += each.boundary
    right, true, predicted = counts.diagonal(), counts.sum(1), counts.sum(0)
    union = true + predicted - right
    iou, accuracy = right / np.maximum(union, 1), right / np.maximum(true, 1)
    boundary_iou = boundary[:, 0] / np.maximum(boundary[:, 1], 1)
    metrics = {
        "miou": _mean(iou[union > 0]),
        "mean_accuracy": _mean(accuracy[true > 0]),
        "pixel_accuracy": float(right.sum() / max(true.sum(), 1)),
        "boundary_iou": _mean(boundary_iou[boundary[:, 1] > 0]),
    }
    per_class = [
        {
            "class": classes[i],
            "iou": float(iou[i]),
            "accuracy": float(accuracy[i]),
            "boundary_iou": float(boundary_iou[i]),
            "pixels": int(true[i]),
        }
        for i in np.flatnonzero(union)
    ]
    return Scores(metrics, per_class)


def confusion(records: list[MapRecord], classes: list[str]) -> Tensor:
    """Numbers of pixels (true, predicted), (C, C)."""
    counts = torch.zeros(len(classes), len(classes), dtype=torch.long)
    for each in records:
        counts[each.pairs[:, 0], each.pairs[:, 1]] += torch.from_numpy(each.counts)
    return counts


def _count(values: Tensor, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """The numbers below `limit` that occur, and how often."""
    counts = torch.bincount(values, minlength=limit)
    occurring = counts.nonzero()[:, 0]
    return occurring.cpu().numpy(), counts[occurring].cpu().numpy()


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else 0.0
