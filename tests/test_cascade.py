"""The cascade's stages: what each corrects, and what it learns from."""

import math

import pytest
import torch
from torchvision.models.detection import roi_heads
from torchvision.models.detection.roi_heads import RoIHeads

from training.tasks.dense import cascade

from .detectors import (
    CASCADES,
    NUM_CLASSES,
    detector,
    example,
)


def decoded(region, corrections, units, size):
    """A region (left, top, right, bottom) moved by corrections in units, and cut to the picture (height, width)."""
    left, top, right, bottom = region
    across, down, wider, higher = (value / unit for value, unit in zip(corrections, units))
    x, y = (left + right) / 2 + across * (right - left), (top + bottom) / 2 + down * (bottom - top)
    width, height = (
        (right - left) * math.exp(min(wider, math.log(62.5))),
        (bottom - top) * math.exp(min(higher, math.log(62.5))),
    )
    corners = (x - width / 2, size[1]), (y - height / 2, size[0]), (x + width / 2, size[1]), (y + height / 2, size[0])
    return [min(max(value, 0), limit) for value, limit in corners]


def seen_by(stage, features, regions, sizes):
    return stage.box_predictor(stage.box_head(stage.box_roi_pool(features, regions, sizes)))


@pytest.fixture(params=CASCADES)
def cascaded(request):
    """A cascade's heads with corrections that matter, maps of two pictures, regions and the pictures' sizes."""
    heads = detector(request.param, score_threshold=0.0).detector.roi_heads
    for stage in (*heads.earlier, heads):
        torch.nn.init.normal_(stage.box_predictor.bbox_pred.weight, std=1.0)
        torch.nn.init.normal_(stage.box_predictor.cls_score.weight, std=0.5)
    features = {str(i): torch.randn(2, 32, 32 // 2**i, 48 // 2**i) for i in range(5)}
    corners = torch.rand(2, 9, 2, 2).sort(2).values * torch.tensor([90.0, 60.0]) + torch.tensor([0.0, 1.0])
    regions = [corners[0].flatten(1), corners[1, :4].flatten(1) * 0.7]
    return heads, features, regions, [(64, 96), (50, 70)]


def test_each_stage_of_a_cascade_corrects_the_boxes_of_the_one_before(cascaded, monkeypatch):
    heads, features, regions, sizes = cascaded
    seen, post = {}, RoIHeads.postprocess_detections

    def spy(self, logits, corrections, proposals, image_shapes):
        seen.update(scores=logits.softmax(-1), corrections=corrections, regions=proposals)
        return post(self, logits, corrections, proposals, image_shapes)

    monkeypatch.setattr(RoIHeads, "postprocess_detections", spy)
    units = [(10, 10, 5, 5), (20, 20, 10, 10), (30, 30, 15, 15)]
    with torch.inference_mode():
        detections, losses = heads.eval()(features, regions, sizes)
        probabilities, moved = [], regions
        for stage, unit in zip(heads.earlier, units):
            logits, corrections = seen_by(stage, features, moved, sizes)
            probabilities.append(logits.softmax(-1))
            rows, lists = iter(range(len(logits))), []
            for picture, size in zip(moved, sizes):
                boxes = []
                for region in picture.tolist():
                    row = next(rows)
                    label = 1 + max(range(NUM_CLASSES), key=lambda i, row=row: logits[row, 1 + i])  # never background
                    boxes.append(decoded(region, corrections[row, 4 * label : 4 * label + 4].tolist(), unit, size))
                lists.append(torch.tensor(boxes))
            assert max((a - b).abs().max() for a, b in zip(lists, moved)) > 1
            moved = lists
        logits, corrections = seen_by(heads, features, moved, sizes)
        probabilities.append(logits.softmax(-1))
    assert losses == {} and len(detections) == 2
    for found, expected in zip(seen["regions"], moved, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(
        seen["scores"], (probabilities[0] + probabilities[1] + probabilities[2]) / 3, atol=1e-4, rtol=1e-3
    )
    torch.testing.assert_close(seen["corrections"], corrections, atol=1e-3, rtol=1e-3)
    # A detection is what the last stage makes of a region, with the mean score of a class.
    scores, rows = seen["scores"], iter(range(len(corrections)))
    for picture, size, found in zip(moved, sizes, detections):
        made = []
        for region, row in zip(picture.tolist(), rows):
            for label in range(1, 1 + NUM_CLASSES):
                box = decoded(region, corrections[row, 4 * label : 4 * label + 4].tolist(), units[2], size)
                made.append([label, scores[row, label].item(), *box])
        ours = torch.cat([found["labels"][:, None], found["scores"][:, None], found["boxes"]], 1)
        gaps = (ours[:, None] - torch.tensor(made)).abs().amax(2)
        assert len(ours) and gaps.amin(1).max() < 1e-3


def test_stages_of_a_cascade_learn_from_better_and_better_boxes(cascaded, monkeypatch):
    """Overlaps of 0.5, 0.6 and 0.7 count as hits, in finer units; losses weigh 1, 1/2 and 1/4."""
    heads, features, regions, sizes = cascaded
    targets = [example(*sizes[0], [[5, 5, 60, 50]], [1])[1], example(*sizes[1], [[20, 3, 60, 40]], [3])[1]]
    given, drawn, select = [], [], RoIHeads.select_training_samples

    def spy(self, proposals, targets):
        given.append([x.clone() for x in proposals])
        drawn.append(select(self, proposals, targets))
        return drawn[-1]

    monkeypatch.setattr(RoIHeads, "select_training_samples", spy)
    for module in (cascade, roi_heads):
        monkeypatch.setattr(module, "fastrcnn_loss", lambda *_: (torch.tensor(8.0), torch.tensor(16.0)))
    monkeypatch.setattr(roi_heads, "maskrcnn_loss", lambda *_: torch.tensor(32.0))
    _, losses = heads.train()(features, regions, sizes, targets)
    masks = {"loss_mask": 32.0} if heads.has_mask() else {}
    assert losses == masks | {
        "loss_classifier_0": 8.0, "loss_box_reg_0": 16.0, "loss_classifier_1": 4.0, "loss_box_reg_1": 8.0,
        "loss_classifier": 2.0, "loss_box_reg": 4.0,
    }  # fmt: skip
    assert len(given) == 3 and all(torch.equal(a, b) for a, b in zip(given[0], regions))
    assert not any(boxes.requires_grad for each in given for boxes in each)
    for number, (stage, least, finer) in enumerate(zip((*heads.earlier, heads), (0.5, 0.6, 0.7), (1, 2, 3))):
        proposals, _, labels, corrections = drawn[number]
        for boxes, found, moves, target in zip(proposals, labels, corrections, targets):
            [object_], [label] = target["boxes"].tolist(), target["labels"].tolist()
            for region, one, move in zip(boxes.tolist(), found.tolist(), moves.tolist()):
                assert one == (label if overlap(region, object_) >= least else 0)
                if one:  # back to the object itself
                    units = [value * finer for value in (10, 10, 5, 5)]
                    assert decoded(region, move, units, (1000, 1000)) == pytest.approx(object_, abs=1e-2)
        if number < 2:
            with torch.no_grad():
                logits, moves = seen_by(stage, features, proposals, sizes)
            label, regions = logits[:, 1:].argmax(1) + 1, torch.cat(proposals).tolist()
            expected = [
                decoded(region, move[4 * i : 4 * i + 4], [value * finer for value in (10, 10, 5, 5)], size)
                for region, move, i, size in zip(
                    regions, moves.tolist(), label.tolist(), [s for s, x in zip(sizes, proposals) for _ in x]
                )
            ]
            torch.testing.assert_close(torch.cat(given[number + 1]), torch.tensor(expected), atol=1e-2, rtol=1e-3)


@pytest.mark.parametrize("head", CASCADES)
def test_a_region_is_an_objects_by_the_overlap_that_its_stage_asks_for(head):
    heads = detector(head).detector.roi_heads
    shares = [0.49, 0.51, 0.59, 0.61, 0.69, 0.71, 1.0]  # of the object that a region covers
    regions = torch.tensor([[0.0, 0.0, 100 * share, 50.0] for share in shares])
    for stage, least in zip((*heads.earlier, heads), (0.5, 0.6, 0.7), strict=True):
        args = [regions], [torch.tensor([[0.0, 0.0, 100.0, 50.0]])], [torch.tensor([2])]
        _, [labels] = stage.assign_targets_to_proposals(*args)
        assert labels.tolist() == [2 if share >= least else 0 for share in shares]


def overlap(a, b) -> float:
    """Intersection over union of two boxes."""
    width, height = (min(a[2 + i], b[2 + i]) - max(a[i], b[i]) for i in range(2))
    common = max(width, 0) * max(height, 0)
    return common / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common)


@pytest.mark.parametrize("head", CASCADES)
def test_stages_of_a_cascade_share_nothing(head):
    heads = detector(head).detector.roi_heads
    stages = [[*stage.box_head.parameters(), *stage.box_predictor.parameters()] for stage in (*heads.earlier, heads)]
    assert len(stages) == 3 and len({id(p) for stage in stages for p in stage}) == 3 * len(stages[0]) == 24
    assert len({p.data_ptr() for stage in stages for p in stage}) == 24
    own = {name.split(".")[0] for name, _ in heads.named_parameters()}
    masks = {"mask_head", "mask_predictor"} if head == "cascade_mask_rcnn" else set()
    assert own == {"box_head", "box_predictor", "earlier"} | masks  # masks are of the last stage alone
    assert not any("mask" in name for name, _ in heads.earlier.named_parameters())
