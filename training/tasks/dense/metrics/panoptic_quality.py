"""Panoptic quality: how well segments are found and outlined (Kirillov et al., arXiv:1801.00868).

Of a class with the matched pairs TP, the unmatched found segments FP and the unmatched true ones FN,

    PQ = sum of the IoUs of TP / (TP + FP / 2 + FN / 2) = SQ * RQ,

where SQ is the mean IoU of the matched pairs, and RQ the F1 score of finding segments. Segments match where they are
of one class and their IoU is above 0.5. What follows from void pixels and crowds is as in the official panopticapi.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ....annotation import Target
from . import Scores


@dataclass
class PanopticRecord:
    """Counts of one picture.

    Args:
        labels: (K,), classes that occur in truth or prediction.
        counts: (K, 4), of each class the sum of the IoUs of its matched pairs, and the numbers TP, FP and FN.
    """

    index: int
    labels: np.ndarray
    counts: np.ndarray


def segments_of(target: Target) -> Tensor:
    """A map (H, W) of the number of the mask that each pixel is in, or -1; no two masks (N, H, W) overlap."""
    masks = target["masks"]
    if not len(masks):
        return torch.full(masks.shape[1:], -1, device=masks.device)
    covered, number = masks.max(0)
    return torch.where(covered > 0, number, -1)


def record(index: int, prediction: dict[str, Tensor], target: Target) -> PanopticRecord:
    """Count the matches of one picture.

    Pixels in no true mask are void: they are in no union, and a found segment that lies there or in crowds of its
    class by more than half is no mistake. Crowds are neither matched nor missed.

    Args:
        prediction: `segments` (H, W), the number of the segment that a pixel is in, or -1; `labels` (S,) of segments.
        target: of the kind "segments".
    """
    found_labels, true_labels = prediction["labels"].cpu().numpy(), target["labels"].cpu().numpy()
    crowd = target["crowd"].cpu().numpy().astype(bool)
    # overlap[i, j]: pixels of the true segment i and the found segment j; the first row and column are of no segment
    shape = (len(true_labels) + 1, len(found_labels) + 1)
    both = (segments_of(target).to(prediction["segments"].device).long() + 1) * shape[1] + prediction["segments"] + 1
    overlap = torch.bincount(both.flatten(), minlength=shape[0] * shape[1]).reshape(shape).cpu().numpy()
    found_areas, true_areas = overlap.sum(0)[1:], overlap.sum(1)[1:]
    void, overlap = overlap[0, 1:], overlap[1:, 1:]

    same = true_labels[:, None] == found_labels
    union = true_areas[:, None] + found_areas - overlap - void
    iou = overlap / np.maximum(union, 1)
    matched = same & ~crowd[:, None] & (iou > 0.5)  # at most one of each row and column, as segments do not overlap
    excused = void + (overlap * (same & crowd[:, None])).sum(0)
    wrong = ~matched.any(0) & (found_areas > 0) & (excused <= 0.5 * found_areas)
    missed = ~matched.any(1) & (true_areas > 0) & ~crowd

    labels = np.union1d(true_labels, found_labels).astype(int)
    true_is, found_is = ((labels[:, None] == each).astype(int) for each in (true_labels, found_labels))
    sums = [true_is @ (iou * matched).sum(1), true_is @ matched.sum(1), found_is @ wrong, true_is @ missed]
    return PanopticRecord(index, labels, np.stack(sums, 1).astype(float).reshape(-1, 4))


def evaluate(records: list[PanopticRecord], classes: list[str], things: list[bool]) -> Scores:
    """`pq`, `sq` and `rq`, and `pq_things` and `pq_stuff`, each averaged over the classes that were found or missed.

    What would be an average over no class is left out, except for the first three, which are 0 then.

    Args:
        records: one of each picture.
        classes: names of the labels.
        things: whether the objects of a label are counted.
    """
    totals = np.zeros((len(classes), 4))
    for each in records:
        totals[each.labels] += each.counts
    iou, tp, fp, fn = totals.T
    weight = tp + fp / 2 + fn / 2
    sq, rq = iou / np.maximum(tp, 1), tp / np.maximum(weight, 0.5)
    pq, things = iou / np.maximum(weight, 0.5), np.array(things, bool)
    occurs = weight > 0
    metrics = {name: float(v[occurs].mean()) if occurs.any() else 0.0 for name, v in dict(pq=pq, sq=sq, rq=rq).items()}
    for name, chosen in {"pq_things": occurs & things, "pq_stuff": occurs & ~things}.items():
        if chosen.any():
            metrics[name] = float(pq[chosen].mean())
    per_class = [
        {
            "class": classes[i],
            "pq": float(pq[i]),
            "sq": float(sq[i]),
            "rq": float(rq[i]),
            "segments": int(tp[i] + fn[i]),
        }
        for i in np.flatnonzero(occurs)
    ]
    return Scores(metrics, per_class)
