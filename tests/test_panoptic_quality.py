"""Panoptic quality, against its definition and torchmetrics."""

import pickle
import random

import numpy as np
import pytest
import torch
from torchmetrics.detection import PanopticQuality

from training.tasks.dense.metrics import panoptic_quality

from .conftest import partition

CLASSES = ["circle", "square", "dog", "tree"]


def panoptic_scene(void: float, crowds: float):
    """A target of things (classes 0 and 1) and stuff (2 and 3), and a prediction that is like it."""
    height, width, count = random.randint(20, 60), random.randint(20, 60), random.randint(2, 12)
    true = partition(height, width, count, void)
    labels = torch.randint(0, 4, (count,))
    shift = random.randint(0, 5)
    found = true.roll((shift, shift), (0, 1))
    other = partition(height, width, count, void)
    found = torch.where(other > 0.6 * count, other, found)
    found_labels = torch.where(torch.rand(count) < 0.8, labels, torch.randint(0, 4, (count,)))
    for i in range(count):  # stuff is one segment
        for ids, names in ((true, labels), (found, found_labels)):
            if names[i] >= 2:
                ids[ids == i] = int((names == names[i]).nonzero()[0])
    target = {
        "masks": (true == torch.arange(count)[:, None, None]).to(torch.uint8),
        "labels": labels,
        "crowd": torch.rand(count) < crowds,
    }
    return {"segments": found, "labels": found_labels}, target


def panoptic_counts(prediction, target) -> np.ndarray:
    """Sum of IoUs, TP, FP, FN per class, segment by segment as the official code has it."""
    counts = np.zeros((4, 4))
    found = [prediction["segments"] == i for i in range(len(prediction["labels"]))]
    true = list(target["masks"].bool())
    void = ~target["masks"].bool().any(0)
    matched = set()
    for i, mask in enumerate(true):
        label, hit = target["labels"][i], False
        for j, other in enumerate(found):
            if label == prediction["labels"][j] and not target["crowd"][i]:
                iou = (mask & other).sum() / ((mask | other) & ~(other & void)).sum().clamp(min=1)
                if iou > 0.5:
                    counts[label] += [iou, 1, 0, 0]
                    matched.add(j)
                    hit = True
        if not hit and mask.any() and not target["crowd"][i]:
            counts[label, 3] += 1
    for j, other in enumerate(found):
        left_out = void.clone()
        for i, mask in enumerate(true):
            if target["crowd"][i] and target["labels"][i] == prediction["labels"][j]:
                left_out |= mask
        if j not in matched and other.any() and (other & left_out).sum() / other.sum() <= 0.5:
            counts[prediction["labels"][j], 2] += 1
    return counts


@pytest.mark.parametrize("seed", range(4))
def test_panoptic_quality_equals_its_definition(seed):
    random.seed(seed)
    torch.manual_seed(seed)
    scenes = [panoptic_scene(void=0.3, crowds=0.3) for _ in range(15)]
    records = [panoptic_quality.record(i, *each) for i, each in enumerate(scenes)]
    counts = sum(panoptic_counts(*each) for each in scenes)
    iou, tp, fp, fn = counts.T
    assert (counts.sum(0) > 4).all()
    things = [True, True, False, False]
    scores = panoptic_quality.evaluate(pickle.loads(pickle.dumps(records)), CLASSES, things)
    pq = iou / (tp + fp / 2 + fn / 2)
    expected = {"pq": pq.mean(), "sq": (iou / tp).mean(), "rq": (tp / (tp + fp / 2 + fn / 2)).mean()}
    expected |= {"pq_things": pq[:2].mean(), "pq_stuff": pq[2:].mean()}
    assert scores.metrics == pytest.approx(expected, abs=1e-6)
    assert [row["pq"] for row in scores.per_class] == pytest.approx(pq.tolist(), abs=1e-6)
    assert [row["segments"] for row in scores.per_class] == (tp + fn).tolist()


@pytest.mark.parametrize("seed", range(3))
def test_panoptic_quality_equals_torchmetrics(seed):
    random.seed(seed)
    torch.manual_seed(seed)
    reference = PanopticQuality(things={0, 1}, stuffs={2, 3}, return_sq_and_rq=True)
    records = []
    for index in range(10):
        prediction, target = panoptic_scene(void=0.0, crowds=0.0)
        maps = []
        true = {"segments": panoptic_quality.segments_of(target), "labels": target["labels"]}
        for each in (prediction, true):
            category = each["labels"][each["segments"]]
            maps.append(torch.stack([category, each["segments"]], -1)[None])
        reference.update(*maps)
        records.append(panoptic_quality.record(index, prediction, target))
    scores = panoptic_quality.evaluate(records, CLASSES, [True, True, False, False])
    expected = dict(zip(("pq", "sq", "rq"), reference.compute().tolist()))
    assert {name: scores.metrics[name] for name in expected} == pytest.approx(expected, abs=1e-6)


def test_panoptic_quality_of_nothing():
    empty = {"masks": torch.zeros(0, 5, 4, dtype=torch.uint8), "labels": torch.zeros(0), "crowd": torch.zeros(0)}
    nothing = {"segments": torch.full((5, 4), -1), "labels": torch.zeros(0, dtype=torch.long)}
    scores = panoptic_quality.evaluate([panoptic_quality.record(0, nothing, empty)], CLASSES, [True] * 4)
    assert scores.metrics == {"pq": 0.0, "sq": 0.0, "rq": 0.0} and scores.per_class == []
    target = empty | {"masks": torch.ones(1, 5, 4, dtype=torch.uint8), "labels": torch.tensor([2])}
    target["crowd"] = torch.tensor([False])
    scores = panoptic_quality.evaluate([panoptic_quality.record(0, nothing, target)], CLASSES, [True] * 4)
    assert scores.metrics["pq"] == scores.metrics["pq_things"] == 0.0 and len(scores.per_class) == 1
    right = {"segments": torch.zeros(5, 4, dtype=torch.long), "labels": torch.tensor([2])}
    scores = panoptic_quality.evaluate([panoptic_quality.record(0, right, target)], CLASSES, [False] * 4)
    assert scores.metrics == {"pq": 1.0, "sq": 1.0, "rq": 1.0, "pq_stuff": 1.0}
