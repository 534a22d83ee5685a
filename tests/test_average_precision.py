"""Average precision and the confusion of detections, against pycocotools and loops."""

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

from training.tasks.dense.metrics import average_precision, first_of_each

CLASSES = ["circle", "square", "dog", "tree"]


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
