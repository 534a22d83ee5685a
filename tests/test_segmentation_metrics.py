"""IoU, accuracy and boundary IoU, against scikit-learn and loops."""

import pickle
import random

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix, jaccard_score

from training.annotation import IGNORED
from training.tasks.dense.metrics import segmentation

from .conftest import partition

CLASSES = ["circle", "square", "dog", "tree"]


def maps(count: int, labels: int = 3):
    """(predicted, true) maps of random sizes with the labels below `labels`, with pixels to be ignored."""
    for _ in range(count):
        height, width = random.randint(1, 70), random.randint(1, 70)
        true = torch.randint(0, labels, (10,))[partition(height, width, 10, void=0.0)]
        other = torch.randint(0, labels, (10,))[partition(height, width, 10, void=0.0)]
        predicted = torch.where(torch.rand(height, width) < random.random(), true, other)
        predicted = true.roll(2, 0) if random.random() < 0.5 else predicted
        true = true.to(torch.int16)
        true[partition(height, width, 10, void=0.2) < 0] = IGNORED
        yield predicted, true


@pytest.mark.parametrize("seed", range(4))
def test_iou_and_accuracy_equal_scikit_learns(seed):
    random.seed(seed)
    torch.manual_seed(seed)
    pairs = list(maps(8))
    records = [segmentation.record(i, *pair, classes=len(CLASSES)) for i, pair in enumerate(pairs)]
    scores = segmentation.evaluate(pickle.loads(pickle.dumps(records)), CLASSES)
    true = torch.cat([t[t != IGNORED] for _, t in pairs])
    predicted = torch.cat([p[t != IGNORED] for p, t in pairs])
    counts = confusion_matrix(true, predicted, labels=range(4))
    assert np.array_equal(segmentation.confusion(records, CLASSES), counts)
    iou = jaccard_score(true, predicted, labels=range(3), average=None)
    assert [row["iou"] for row in scores.per_class] == pytest.approx(iou.tolist(), abs=1e-6)  # no trees: no row
    assert scores.metrics["miou"] == pytest.approx(iou.mean(), abs=1e-6)
    accuracy = counts.diagonal()[:3] / counts.sum(1)[:3]
    assert scores.metrics["mean_accuracy"] == pytest.approx(accuracy.mean(), abs=1e-6)
    assert scores.metrics["pixel_accuracy"] == pytest.approx(counts.trace() / counts.sum(), abs=1e-6)


def eroded_away(mask: np.ndarray) -> np.ndarray:
    """The pixels of a mask (H, W) that 3 x 3 erosions take away, done one after the other."""
    height, width = mask.shape
    left = mask
    for _ in range(max(1, round(0.02 * np.hypot(height, width)))):
        around = np.pad(left, 1)
        left = np.ones_like(mask)
        for y in range(3):
            for x in range(3):
                left &= around[y : y + height, x : x + width]
    return mask & ~left


@pytest.mark.parametrize("seed", range(4))
def test_boundary_iou_equals_its_definition(seed):
    random.seed(seed)
    torch.manual_seed(seed)
    sizes = [(3, 400), (130, 90)] if seed == 0 else []
    pairs = list(maps(8)) + [(torch.randint(0, 2, size), torch.zeros(size, dtype=torch.long)) for size in sizes]
    records = [segmentation.record(i, *pair, classes=len(CLASSES)) for i, pair in enumerate(pairs)]
    intersection, union = np.zeros(4), np.zeros(4)
    for predicted, true in pairs:
        seen = (true != IGNORED).numpy()
        for label in range(4):
            near_true, near_found = (eroded_away((m == label).numpy() & seen) for m in (true, predicted))
            intersection[label] += (near_true & near_found).sum()
            union[label] += (near_true | near_found).sum()
    scores = segmentation.evaluate(records, CLASSES)
    expected = intersection[:3] / union[:3]
    assert [row["boundary_iou"] for row in scores.per_class] == pytest.approx(expected.tolist(), abs=1e-6)
    assert scores.metrics["boundary_iou"] == pytest.approx(expected.mean(), abs=1e-6)
    assert 0 < scores.metrics["boundary_iou"] < 1


def test_classes_that_are_nowhere_are_left_out():
    true, predicted = torch.zeros(6, 8, dtype=torch.int16), torch.zeros(6, 8, dtype=torch.long)
    true[:, 4:] = 1
    predicted[0, 0] = 2
    scores = segmentation.evaluate([segmentation.record(0, predicted, true, classes=4)], CLASSES)
    assert [row["class"] for row in scores.per_class] == CLASSES[:3]
    assert scores.metrics["miou"] == pytest.approx(23 / 48 / 3)  # what is predicted wrongly counts as a class
    assert scores.metrics["mean_accuracy"] == pytest.approx(23 / 24 / 2)  # but has no accuracy
    nothing = segmentation.record(0, predicted, torch.full((6, 8), IGNORED), classes=4)
    scores = segmentation.evaluate([nothing], CLASSES)
    assert set(scores.metrics.values()) == {0.0} and scores.per_class == []
