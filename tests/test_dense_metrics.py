"""Average precision, panoptic quality and IoU, against other implementations and loops."""

import contextlib
import io
import pickle
import random

import numpy as np
import pytest
import torch
from pycocotools import mask as official_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from sklearn.metrics import confusion_matrix, jaccard_score
from torchmetrics.detection import PanopticQuality

from training.annotation import IGNORED
from training.tasks.dense.metrics import average_precision, first_of_each, panoptic_quality, segmentation

CLASSES = ["circle", "square", "dog", "tree"]

# Detections


def rectangles(count: int, height: int, width: int, smallest: int = 3) -> torch.Tensor:
    """Boxes with whole numbers inside a picture (N, 4)."""
    boxes = []
    for _ in range(count):
        left, top = random.randrange(width - smallest), random.randrange(height - smallest)
        boxes.append([left, top, random.randint(left + smallest, width), random.randint(top + smallest, height)])
    return torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)


def ellipses(boxes: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Masks (N, H, W), uint8."""
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    left, top, right, bottom = boxes.T[..., None, None]
    inside = ((2 * x - left - right) / (right - left)) ** 2 + ((2 * y - top - bottom) / (bottom - top)) ** 2 <= 1
    return inside.to(torch.uint8)


def scene(objects: int, missed: float = 0.2, false: int = 3, crowds: float = 0.1):
    """A target with masks, and a prediction that has found most of it more or less well."""
    height, width = random.randint(40, 220), random.randint(40, 220)
    boxes = rectangles(objects, height, width)
    masks = ellipses(boxes, height, width)
    target = {
        "boxes": boxes,
        "labels": torch.tensor([random.randrange(3) for _ in boxes], dtype=torch.long),  # never a tree
        "crowd": torch.tensor([random.random() < crowds for _ in boxes], dtype=torch.bool),
        "area": masks.sum((1, 2)) * random.choice([1.0, 0.3]),  # the one that is told decides on sizes
        "masks": masks,
    }
    found = [i for i in range(objects) if random.random() > missed for _ in range(random.choice([1, 1, 2]))]
    moved = boxes[found] + (torch.randn(len(found), 4) * random.choice([0.5, 2, 5])).round()
    moved[:, 2:] = torch.maximum(moved[:, 2:], moved[:, :2] + 2)
    moved = torch.cat([moved, rectangles(false, height, width)])
    labels = torch.cat([target["labels"][found], torch.randint(0, 4, (false,))])
    labels = torch.where(torch.rand(len(labels)) < 0.1, torch.randint(0, 4, labels.shape), labels)
    scores = (torch.rand(len(labels)) * 20).round() / 20  # many are equal
    prediction = {"boxes": moved, "labels": labels, "scores": scores, "masks": ellipses(moved, height, width)}
    return prediction, target


def official(scenes, kind: str):
    """pycocotools' evaluation of (index, prediction, target), each with all its classes."""
    name = "bbox" if kind == "boxes" else "segmentation"

    def region(values, i):
        if kind == "masks":
            return official_mask.encode(np.asfortranarray(values["masks"][i].numpy()))
        left, top, right, bottom = values["boxes"][i].tolist()
        return [left, top, right - left, bottom - top]

    images, annotations, detections = [], [], []
    for index, prediction, target in scenes:
        height, width = target["masks"].shape[1:]
        images.append({"id": index, "height": height, "width": width})
        for i in range(len(target["labels"])):
            row = {"image_id": index, "category_id": target["labels"][i].item(), "id": len(annotations) + 1}
            row |= {"iscrowd": int(target["crowd"][i]), "area": target["area"][i].item(), name: region(target, i)}
            annotations.append(row)
        for i in range(len(prediction["labels"])):
            row = {"image_id": index, "category_id": prediction["labels"][i].item()}
            detections.append(row | {"score": prediction["scores"][i].item(), name: region(prediction, i)})
    truth = COCO()
    truth.dataset = {"images": images, "annotations": annotations}
    truth.dataset["categories"] = [{"id": i, "name": name} for i, name in enumerate(CLASSES)]
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(detections), "bbox" if kind == "boxes" else "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("kind", ["boxes", "masks"])
def test_average_precision_equals_pycocotools(kind, seed):
    random.seed(seed)
    torch.manual_seed(seed)
    indices = random.sample(range(100), 12)
    scenes = [(index, *scene(random.choice([0, 1, 5, 20]), false=random.choice([0, 3]))) for index in indices]
    scenes.append((100, *scene(6, missed=1.0, false=0)))  # nothing is found
    records = [average_precision.record(*each) for each in scenes]
    assert pickle.loads(pickle.dumps(records))[0].found.scores.tolist() == records[0].found.scores.tolist()
    scores = average_precision.evaluate(records, CLASSES, kind)
    expected = official(scenes, kind)
    names = ["ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", None, None, "ar100"]
    prefix = {"boxes": "box", "masks": "mask"}[kind]
    for name, value in zip(names, expected.stats):
        if value == -1:
            assert f"{prefix}_{name}" not in scores.metrics
        elif name:
            assert scores.metrics[f"{prefix}_{name}"] == pytest.approx(value, abs=1e-6)
    assert 0.05 < scores.metrics[f"{prefix}_ap"] < 0.95  # or the comparison would say little
    precision = expected.eval["precision"][..., 0, 2]
    assert [row["class"] for row in scores.per_class] == list(scores.curves) == CLASSES[:3]
    for label, row in enumerate(scores.per_class):
        assert row[f"{prefix}_ap"] == pytest.approx(precision[..., label].mean(), abs=1e-6)
        assert row[f"{prefix}_ap50"] == pytest.approx(precision[0, :, label].mean(), abs=1e-6)
        assert row["objects"] == sum(int((t["labels"][~t["crowd"]] == label).sum()) for _, _, t in scenes)
        np.testing.assert_allclose(scores.curves[CLASSES[label]], precision[0, :, label], atol=1e-6)


def test_the_records_order_and_doubles_change_nothing():
    random.seed(0)
    torch.manual_seed(0)
    records = [average_precision.record(index, *scene(8)) for index in range(6)]
    again = random.sample(records, 6) + records[2:4]
    assert [r.index for r in first_of_each(again)] == list(range(6))
    expected = average_precision.evaluate(records, CLASSES, "masks").metrics
    assert average_precision.evaluate(first_of_each(again), CLASSES, "masks").metrics == expected


def test_a_hundred_detections_count():
    torch.manual_seed(0)
    target = {
        "boxes": torch.tensor([[0.0, 0, 10, 10]]),
        "labels": torch.tensor([1]),
        "crowd": torch.tensor([False]),
        "area": torch.tensor([100.0]),
    }
    boxes = torch.tensor([[20.0, 20, 30, 30]]).repeat(150, 1)
    scores = torch.rand(150)
    for rank, recall in ((99, 1.0), (100, 0.0)):
        found = boxes.clone()
        found[scores.argsort(descending=True)[rank]] = target["boxes"][0]
        labels = torch.where((found == target["boxes"][0]).all(1), 1, 2)  # whatever the others are
        record = average_precision.record(0, {"boxes": found, "labels": labels, "scores": scores}, target)
        assert average_precision.evaluate([record], CLASSES, "boxes").metrics["box_ar100"] == recall


def test_a_record_keeps_copies_of_any_precision():
    prediction, target = scene(5)
    before = {name: values.clone() for name, values in target.items()}
    low = prediction | {name: prediction[name].bfloat16() for name in ("boxes", "scores")}
    record = average_precision.record(0, low, target)
    assert all(torch.equal(target[name], before[name]) for name in before)
    assert sorted(record.found.scores) == pytest.approx(sorted(prediction["scores"].tolist()), abs=0.005)
    np.testing.assert_allclose(record.true.boxes[:, 2:], (target["boxes"][:, 2:] - target["boxes"][:, :2]))


@pytest.mark.parametrize("kind", ["boxes", "masks"])
def test_without_truth_or_without_detections(kind):
    prefix = {"boxes": "box", "masks": "mask"}[kind]
    zeros = {f"{prefix}_{name}": 0.0 for name in ("ap", "ap50", "ap75", "ar100")}
    assert average_precision.evaluate([], CLASSES, kind).metrics == zeros
    record = average_precision.record(0, *scene(0, false=4))
    scores = average_precision.evaluate([record], CLASSES, kind)
    assert scores.metrics == zeros and scores.per_class == [] and scores.curves == {}
    prediction, target = scene(5, missed=1.0, false=0, crowds=0.0)
    scores = average_precision.evaluate([average_precision.record(0, prediction, target)], CLASSES, kind)
    assert {scores.metrics[name] for name in zeros} == {0.0} and len(scores.per_class) >= 1


def test_confusion_of_detections():
    def boxes(*lefts):
        return torch.tensor([[left, 0.0, left + 10, 10] for left in lefts]).reshape(-1, 4)

    target = {
        "boxes": torch.cat([boxes(0, 100, 200, 300), torch.tensor([[400.0, 0, 440, 10]])]),
        "labels": torch.tensor([0, 1, 1, 2, 3]),
        "crowd": torch.tensor([False, False, False, False, True]),
    }
    target["area"] = torch.full((5,), 100.0)
    prediction = {
        # Right; taken already; another class; too far off; in a crowd; in a crowd of another class; too unsure.
        "boxes": boxes(1, 0, 101, 206, 410, 420, 300),
        "labels": torch.tensor([0, 0, 2, 1, 3, 0, 2]),
        "scores": torch.tensor([0.9, 0.8, 0.7, 0.7, 0.7, 0.6, 0.4]),
    }
    counts = average_precision.confusion([average_precision.record(0, prediction, target)], CLASSES, "boxes", 0.5)
    nothing = len(CLASSES)
    expected = torch.zeros(5, 5, dtype=torch.long)
    for true, found in ((0, 0), (nothing, 0), (1, 2), (1, nothing), (nothing, 1), (nothing, 0), (2, nothing)):
        expected[true, found] += 1
    assert torch.equal(counts, expected)


@pytest.mark.parametrize("kind", ["boxes", "masks"])
def test_confusion_counts_every_object_once(kind):
    random.seed(1)
    torch.manual_seed(1)
    scenes = [scene(random.choice([0, 4, 9]), crowds=0.0) for _ in range(20)]
    records = [average_precision.record(i, *each) for i, each in enumerate(scenes)]
    counts = average_precision.confusion(records, CLASSES, kind, 0.3)
    true = torch.cat([target["labels"] for _, target in scenes])
    found = torch.cat([prediction["labels"][prediction["scores"] >= 0.3] for prediction, _ in scenes])
    assert torch.equal(counts.sum(1)[:-1], true.bincount(minlength=4))
    assert torch.equal(counts.sum(0)[:-1], found.bincount(minlength=4))
    assert counts.diag()[:3].min() > 5  # most are found


# Panoptic segmentation


def partition(height: int, width: int, segments: int, void: float = 0.2) -> torch.Tensor:
    """A map (H, W) of segments: of the nearest of random points, some of which are of none."""
    points = torch.rand(segments, 2) * torch.tensor([height, width])
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    nearest = torch.cdist(torch.stack([y, x], -1).reshape(-1, 2).float(), points).argmin(1).reshape(height, width)
    numbers = torch.arange(segments)
    numbers[torch.rand(segments) < void] = -1
    return numbers[nearest]


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


# Semantic segmentation


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
