"""Small detectors and pictures for the tests of torchvision's heads."""

from types import SimpleNamespace

import torch

import backbones
from training.tasks.dense.detectors import Detector, DetectorSettings, build_detector
from training.tasks.dense.neck import fitting_neck

CASCADES = ("cascade_rcnn", "cascade_mask_rcnn")
ONE_STAGE = ("retinanet", "fcos")
NUM_CLASSES = 3
DATA = SimpleNamespace(mean=[0.5], std=[0.25], img_size=64, max_size=96)


def nano(family: str):
    return backbones.create_model(
        f"{family}_nano", in_chans=1, img_size=(64, 96), features_only=True, dense="detection"
    )


def detector(head: str, family: str = "swin", data=DATA, **options) -> Detector:
    settings = DetectorSettings(head=head, **(dict(width=32, hidden=32, proposals=16) | options))
    backbone = nano(family)
    neck = fitting_neck(backbone, settings.neck, settings.width, settings.finest_stride)
    return build_detector(backbone, neck, NUM_CLASSES, settings, data)


def example(height: int, width: int, boxes: list[list[int]], labels: list[int], crowd: list[bool] | None = None):
    """Noise with brighter rectangles, and the target that says where they are."""
    image = torch.randint(0, 100, (1, height, width), dtype=torch.uint8)
    masks = torch.zeros(len(boxes), height, width, dtype=torch.uint8)
    for mask, (left, top, right, bottom) in zip(masks, boxes):
        mask[top:bottom, left:right] = 1
        image[:, top:bottom, left:right] += 100
    return image, {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor(labels, dtype=torch.int64),
        "crowd": torch.tensor(crowd or [False] * len(boxes), dtype=torch.bool),
        "area": masks.sum((1, 2)).float(),
        "masks": masks,
    }


def without_objects(targets):
    return [{name: value[:0] for name, value in target.items()} for target in targets]


def losses_of(model, images, targets) -> dict[str, torch.Tensor]:
    """Losses by name, of the same draw of regions each time."""
    torch.manual_seed(0)
    return model.train()(images, targets)


def numbers(losses) -> dict[str, float]:
    return {name: loss.item() for name, loss in losses.items()}


def unused(model, losses) -> list[str]:
    """Parameters that have no gradient at all, not even zero."""
    model.zero_grad(set_to_none=True)
    sum(losses.values()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    return [name for name, p in model.named_parameters() if p.grad is None]
