"""Losses, metrics and pictures of classification."""

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from backbones import InputError
from training.data import Batch, Picture
from training.tasks import Classification, RegularizeSettings, TeachingSettings

CLASSES = list("abcdefg")


class Flat(nn.Module):
    """A linear classifier of 4 x 4 pictures."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(16, len(CLASSES))

    def forward(self, images):
        return self.fc(images.flatten(1))


class Pictures:
    classes = CLASSES

    def picture(self, index):
        return Picture(Image.new("L", (4, 4), index), channels=1)


def task(model=None, sections=None, **settings):
    regularize = RegularizeSettings(**dict(label_smoothing=0.0) | settings)
    settings = TeachingSettings(regularize=regularize, **sections or {})
    return Classification(model or Flat(), CLASSES, [0.5], [0.25], settings)


def batch(count, start=0):
    images = torch.randint(0, 256, (count, 1, 4, 4), dtype=torch.uint8)
    return Batch(images, torch.randint(0, len(CLASSES), (count,)), torch.arange(start, start + count))


def test_loss_is_smoothed_cross_entropy_of_normalised_pictures():
    one, b = task(label_smoothing=0.1), batch(8)
    logits = one.model((b.images / 255 - 0.5) / 0.25)
    expected = F.cross_entropy(logits, b.targets, label_smoothing=0.1)
    torch.testing.assert_close(one.training_step(b)["loss"], expected)


@pytest.mark.parametrize("mixing", [dict(mixup=1.0), dict(cutmix=1.0), dict(mixup=0.8, cutmix=1.0)])
def test_mixing_changes_with_every_batch(mixing):
    one, b = task(**mixing), batch(8)
    assert len({one.training_step(b)["loss"].item() for _ in range(5)}) > 1
    off = task(**mixing, mix_prob=0.0)
    assert len({off.training_step(b)["loss"].item() for _ in range(5)}) == 1
    with pytest.raises(InputError, match="pair the pictures of a batch, but this one has 7"):
        one.training_step(batch(7))


def test_metrics_count_every_picture_once():
    one = task()
    batches = [batch(5), batch(3, start=5)]
    one.start_evaluation()
    for b in batches:
        one.evaluation_step(b)
    logits = torch.cat([one.model((b.images / 255 - 0.5) / 0.25) for b in batches])
    targets = torch.cat([b.targets for b in batches])
    ranks = (logits > logits.gather(1, targets[:, None])).sum(1)
    metrics = one.compute_metrics()
    assert metrics["top1"] == (ranks < 1).double().mean().item()
    assert metrics["top5"] == (ranks < 5).double().mean().item()
    assert metrics["loss"] == pytest.approx(F.cross_entropy(logits, targets).item())


def test_nothing_to_evaluate():
    with pytest.raises(InputError, match="no picture to evaluate on"):
        task().compute_metrics()


@torch.inference_mode()
@pytest.mark.parametrize("classes", [7, 40])
def test_pictures_are_drawn(tmp_path, classes):
    one = task()
    one.classes = [f"class {i}" for i in range(classes)]
    for b in (batch(30), batch(20, start=30)):
        one.evaluation_step(b)
    one.compute_metrics()
    for path in one.write_pictures(tmp_path, Pictures()).values():
        picture = Image.open(path)
        assert min(picture.size) > 300 and len(picture.getcolors(1 << 20)) > 20


@torch.inference_mode()
def test_pictures_of_a_flawless_classifier(tmp_path):
    one, b = task(), batch(4)
    b = b._replace(targets=one.model((b.images / 255 - 0.5) / 0.25).argmax(1))
    one.evaluation_step(b)
    one.compute_metrics()
    assert all(path.stat().st_size > 1000 for path in one.write_pictures(tmp_path, Pictures()).values())


def test_prediction_of_one_picture():
    one = task()
    image = torch.randint(0, 256, (1, 4, 4), dtype=torch.uint8)
    probabilities = one.model((image[None] / 255 - 0.5) / 0.25).softmax(1)[0]
    predicted = one.predict(image)
    assert len(predicted) == 5 and predicted[0][0] == CLASSES[probabilities.argmax()]
    assert [p for _, p in predicted] == pytest.approx(probabilities.sort(descending=True).values[:5].tolist())
