"""torchvision's detectors around our backbones: what they learn from, and what they predict."""

import pytest
import torch
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.fcos import FCOSClassificationHead
from torchvision.models.detection.retinanet import RetinaNetClassificationHead
from torchvision.models.detection.roi_heads import RoIHeads

from backbones import InputError
from training.tasks.dense import Detection, InstanceSegmentation
from training.tasks.dense.detectors import HEADS, MASK_HEADS, Detector, DetectorSettings

from .detectors import (
    CASCADES,
    DATA,
    NUM_CLASSES,
    ONE_STAGE,
    detector,
    example,
    losses_of,
    nano,
    numbers,
    unused,
    without_objects,
)


@pytest.fixture
def batch():
    """Pictures of different sizes, none of them square, one of them without an object."""
    examples = [
        example(64, 90, [[5, 8, 40, 50], [50, 10, 80, 30]], [0, 2]),
        example(48, 70, [], []),
        example(61, 40, [[2, 20, 35, 58]], [1]),
    ]
    return [image for image, _ in examples], [target for _, target in examples]


@pytest.mark.parametrize(
    ("family", "head"),
    [*(("swin", head) for head in HEADS), *(("volo", head) for head in HEADS), ("dinat", "cascade_mask_rcnn")],
)
def test_all_that_a_detector_has_learns_from_any_picture(family, head, batch):
    """Data-parallel training relies on it: each parameter has a gradient, in pictures without objects too."""
    model, (images, targets) = detector(head, family), batch
    losses = losses_of(model, images, targets)
    assert all(loss.ndim == 0 and loss.isfinite() for loss in losses.values())
    assert unused(model, losses) == []
    # The coarsest map here has one pixel, and with groups of one channel a norm leaves nothing of it.
    idle = ("fpn.extra_blocks.p7.weight", "fpn.extra_blocks.p7.bias") if family == "volo" and head in ONE_STAGE else ()
    assert all(p.grad.any() != name.endswith(idle) for name, p in model.named_parameters())
    nothing = losses_of(model, images, without_objects(targets))
    assert nothing.keys() == losses.keys() and unused(model, nothing) == []
    for name, loss in nothing.items():
        of_objects = any(part in name for part in ("box", "mask", "ctr"))
        assert (loss == 0 and losses[name] > 0) if of_objects else 0 < loss < losses[name] * 1.2, name


@pytest.mark.parametrize("head", HEADS)
def test_nothing_is_learned_from_crowds(head, batch):
    model, (images, targets) = detector(head), batch
    crowds = [target | {"crowd": torch.ones_like(target["crowd"])} for target in targets]
    kept = [{name: value.clone() for name, value in target.items()} for target in crowds]
    losses, expected = losses_of(model, images, crowds), losses_of(model, images, without_objects(targets))
    assert numbers(losses) == numbers(expected)
    assert all(torch.equal(x[name], y[name]) for x, y in zip(crowds, kept) for name in x)  # the batch is as it was
    # Beside a crowd, the other object is learned from.
    beside, alone = ([{name: v.clone() for name, v in target.items()} for target in targets] for _ in range(2))
    beside[0]["crowd"][0] = True
    alone[0] = {name: value[1:] for name, value in targets[0].items()}
    losses, expected = losses_of(model, images, beside), losses_of(model, images, alone)
    assert numbers(losses) == numbers(expected)


@pytest.mark.parametrize("head", HEADS)
def test_the_same_label_is_learned_and_predicted(head, batch):
    """With a layer that sees one class everywhere, this is what is found, and what training has the least loss for."""
    model = detector(head, score_threshold=0.0)
    for label in range(NUM_CLASSES):
        with torch.no_grad():
            for layer in class_layers(model):
                biases = layer.bias.view(-1, NUM_CLASSES + (head not in ONE_STAGE))
                layer.weight.zero_()
                biases.fill_(-4)[:, label - NUM_CLASSES] = 4  # counted from the end: the background comes first
            losses = []
            for named in range(NUM_CLASSES):
                image, target = example(64, 90, [[5, 8, 40, 50]], [named])
                found = losses_of(model, [image], [target])
                losses.append(sum(float(x) for name, x in found.items() if "class" in name))
            assert min(range(NUM_CLASSES), key=lambda i: losses[i]) == label, losses
            [prediction] = model.eval()([image])
        sure = prediction["scores"] > 0.4
        assert sure.any() and (prediction["labels"][sure] == label).all()


def class_layers(model: Detector):
    """The last layers of what tells classes apart."""
    for module in model.modules():
        if isinstance(module, FastRCNNPredictor):
            yield module.cls_score
        elif isinstance(module, (RetinaNetClassificationHead, FCOSClassificationHead)):
            yield module.cls_logits


@pytest.mark.parametrize("first_label", [0, 1])
def test_labels_are_shifted_for_detectors_with_a_background(first_label):
    class Library(torch.nn.Module):
        def group_matcher(self):
            return {}

        def forward(self, images, targets=None):
            self.seen = images, targets
            return [{"labels": torch.arange(3) + first_label, "masks": torch.tensor([[[[0.49, 0.5]]]] * 3)}]

    model = Detector(Library(), first_label)
    image, target = example(32, 40, [[1, 2, 3, 4], [5, 6, 7, 8], [2, 2, 9, 9]], [2, 1, 0], [False, True, False])
    model.train()([image], [target])
    [given], [seen] = model.detector.seen
    assert given.dtype == torch.float32 and torch.equal(given, image.float())
    assert seen["labels"].tolist() == [2 + first_label, first_label] and target["labels"].tolist() == [2, 1, 0]
    assert seen["boxes"].tolist() == [[1, 2, 3, 4], [2, 2, 9, 9]] and len(seen["masks"]) == 2
    [prediction] = model.eval()([image])
    assert prediction["labels"].tolist() == [0, 1, 2]
    assert prediction["masks"].tolist() == [[[False, True]]] * 3


# Predictions


@pytest.mark.parametrize(
    ("family", "head"), [*(("swin", head) for head in HEADS), ("volo", "mask_rcnn"), ("volo", "retinanet")]
)
def test_predictions_are_of_the_pictures_own_pixels(family, head):
    sizes = [(64, 90), (30, 100), (131, 70)]  # as it is, made larger up to the limit, made smaller
    images = [torch.randint(0, 256, (1, *size), dtype=torch.uint8) for size in sizes]
    model = detector(head, family, score_threshold=0.0).eval()
    with torch.inference_mode():
        predictions = model(images)
    assert len(predictions) == 3
    for (height, width), found in zip(sizes, predictions):
        boxes, labels, scores = found["boxes"], found["labels"], found["scores"]
        assert 0 < len(boxes) <= 100 and boxes.shape == (len(boxes), 4) and len(labels) == len(scores) == len(boxes)
        left, top, right, bottom = boxes.unbind(1)
        assert (
            (left >= 0).all() and (top >= 0).all() and (right <= width + 1e-3).all() and (bottom <= height + 1e-3).all()
        )
        assert (left <= right).all() and (top <= bottom).all()
        assert right.max() > 0.7 * width and bottom.max() > 0.7 * height  # or they were never scaled back
        assert labels.dtype == torch.int64 and set(labels.tolist()) <= set(range(NUM_CLASSES))
        assert (scores >= 0).all() and (scores <= 1).all() and (scores.diff() <= 0).all()
        assert ("masks" in found) == (head in MASK_HEADS)
        if "masks" in found:
            masks = found["masks"]
            assert masks.dtype == torch.bool and masks.shape == (len(boxes), height, width) and masks.any()
            for mask, (x0, y0, x1, y1) in zip(masks, boxes):
                rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
                if len(rows):
                    assert y0 - 2 <= rows.min() and rows.max() <= y1 + 2
                    assert x0 - 2 <= columns.min() and columns.max() <= x1 + 2


@pytest.mark.parametrize("head", HEADS)
def test_nothing_may_be_found(head):
    model = detector(head, score_threshold=0.999).eval()
    with torch.inference_mode():
        [found] = model([torch.zeros(1, 64, 90, dtype=torch.uint8)])
    assert found["boxes"].shape == (0, 4) and found["labels"].shape == found["scores"].shape == (0,)
    assert head not in MASK_HEADS or (found["masks"].shape == (0, 64, 90) and found["masks"].dtype == torch.bool)


@pytest.mark.parametrize("head", HEADS)
def test_boxes_are_not_rounded_in_mixed_precision(head, batch, monkeypatch):
    """In bf16 a corner at 600 would be a multiple of 4 pixels, of regions to learn from too."""
    model, (images, targets) = detector(head, score_threshold=0.0), batch
    regions, select = [], RoIHeads.select_training_samples

    def spy(self, proposals, targets):
        regions.extend(proposals)
        return select(self, proposals, targets)

    monkeypatch.setattr(RoIHeads, "select_training_samples", spy)
    with torch.autocast("cpu", torch.bfloat16):
        losses = losses_of(model, images, targets)
        assert unused(model, losses) == []
        with torch.inference_mode():
            regions += [found["boxes"] for found in model.eval()(images)]
    assert len(regions) == (3 if head in ONE_STAGE else 12 if head in CASCADES else 6)
    assert all(boxes.dtype == torch.float32 and (boxes != boxes.bfloat16()).any() for boxes in regions)


def test_pictures_are_normalised_and_resized_in_evaluation_alone():
    model, seen = detector("retinanet"), []
    model.detector.backbone.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    light = torch.full((1, 40, 90), 255, dtype=torch.uint8)
    losses_of(model, [light, light[:, :33]], [example(40, 90, [], [])[1], example(33, 90, [], [])[1]])
    with torch.inference_mode():
        model.eval()([light])  # short side 64, but the long one would be 144
        model([light[:, :, :50]])
    in_training, limited, enlarged = seen
    assert in_training.shape == (2, 1, 64, 96) and limited.shape == (1, 1, 64, 96) and enlarged.shape == (1, 1, 64, 96)
    assert (in_training[0, :, :40, :90] == 2).all() and (in_training[0] != 0).sum() == 40 * 90
    assert (in_training[1] != 0).sum() == 33 * 90
    assert (limited != 0).sum() == 42 * 96 and (enlarged != 0).sum() == 64 * 80


@pytest.mark.parametrize("family", ["swin", "volo"])
@pytest.mark.parametrize("head", HEADS)
def test_anchors_are_in_strides_of_their_map(head, family):
    model = detector(head, family, anchor_scale=6).eval()
    with torch.inference_mode():
        maps = list(model.detector.backbone(torch.zeros(1, 1, 256, 384)).values())
    strides = [256 // x.shape[2] for x in maps]
    finest, coarsest = (8, 128) if head in ONE_STAGE else (4, 64)
    if family == "swin":  # whose coarsest map has a stride of 16, not 32
        coarsest //= 2
    assert (strides[0], strides[-1]) == (finest, coarsest) and all(x.shape[1] == 32 for x in maps)
    assert all(x.shape[3] * 2 == x.shape[2] * 3 for x in maps)
    [generator] = [module for module in model.modules() if isinstance(module, AnchorGenerator)]
    for stride, sizes in zip(strides, generator.sizes, strict=True):
        expected = {"fcos": [1], "retinanet": [3, 3 * 2 ** (1 / 3), 3 * 2 ** (2 / 3)]}.get(head, [6])
        assert sizes == pytest.approx([scale * stride for scale in expected])


# Settings


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"head": "yolo"}, r"There is no head 'yolo' here; task.head must be one of faster_rcnn, .*cascade_mask_rcnn"),
        ({"width": 48}, r"task.width a multiple of 32 .*, but they are .1024, 8, 2000, 512. and 48"),
        ({"width": 0}, r"task.width a multiple of 32"),
        ({"hidden": 0}, r"task.hidden, anchor_scale, candidates and proposals must be at least 1"),
        ({"anchor_scale": 0}, r"task.hidden, anchor_scale, candidates and proposals must be at least 1"),
        ({"proposals": -1}, r"task.hidden, anchor_scale, candidates and proposals must be at least 1"),
        ({"score_threshold": 1.0}, r"task.score_threshold must be from 0 to below 1, .* they are 1.0 and 0.25"),
        ({"score_threshold": -0.1}, r"they are -0.1 and 0.25"),
        ({"positives": 0.0}, r"they are 0.05 and 0.0"),
    ],
)
def test_settings_that_cannot_work(options, said):
    with pytest.raises(InputError, match=said):
        DetectorSettings(**({"head": "fcos"} | options))


@pytest.mark.parametrize(
    ("task", "family", "options", "said"),
    [
        (Detection, "volo", {"neck": "none"}, r"at 4, 8, 8 and 8; add task.neck=simple_pyramid"),
        (InstanceSegmentation, "volo", {"neck": "none"}, r"at 4, 8, 8 and 8; add task.neck=simple_pyramid"),
        (Detection, "swin", {"neck": "fpn"}, r"task.neck is 'fpn', but must be one of auto, none, simple_pyramid"),
        (Detection, "swin", {"head": "mask_rcnn"}, r"'mask_rcnn', but must be one of faster_rcnn, .*, fcos"),
        (InstanceSegmentation, "swin", {"head": "fcos"}, r"'fcos' here|'fcos', but must be one of mask_rcnn, casc"),
        (Detection, "swin", {"widht": 64}, r"There is no option task.widht; .* Did you mean width\?"),
        (Detection, "swin", {"hidden": "many"}, r"task.hidden is 'many', but must be of the type int"),
    ],
)
def test_tasks_that_cannot_be_built(task, family, options, said):
    with pytest.raises(InputError, match=said):
        task.build(nano(family), ["a", "b"], None, DATA, **options)
