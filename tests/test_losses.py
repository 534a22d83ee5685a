"""Losses, teachers, labels for tokens, and sizes of pictures by epoch."""

from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import backbones
from backbones import InputError
from training.data.label_maps import read_label_map
from training.tasks import DistillSettings, LossSettings, ProgressiveSettings
from training.tasks.losses import distillation_loss, soft_labels
from training.tasks.progressive import epoch_size
from training.tasks.token_labels import (
    crop_label_map,
    dense_label_map,
    token_targets,
    with_ground_truth,
)

from .test_tasks import CLASSES, Flat, batch, task

C = len(CLASSES)


def normalised(b):
    return (b.images / 255 - 0.5) / 0.25


class Several(Flat):
    """Logits and something beside them, in training."""

    def __init__(self, kind, **fixed):
        super().__init__()
        self.kind, self.fixed = kind, fixed

    def forward(self, images):
        logits = super().forward(images)
        return self.kind(logits, **self.fixed) if self.training else logits


class WithAuxiliary(NamedTuple):
    logits: Tensor
    aux_logits: Tensor


class TokenLogits(NamedTuple):
    logits: Tensor
    token_logits: Tensor
    box: Tensor


@pytest.mark.parametrize("threshold", [None, 0.4])
def test_binary_cross_entropy(threshold):
    sections = dict(loss=LossSettings(name="bce", bce_threshold=threshold))
    one, b = task(sections=sections, label_smoothing=0.2), batch(8)
    targets = soft_labels(b.targets, C, 0.2)
    targets = targets if threshold is None else (targets > threshold).float()
    expected = F.binary_cross_entropy_with_logits(one.model(normalised(b)), targets)
    torch.testing.assert_close(one.training_step(b)["loss"], expected)


def test_mixing_is_off_in_the_last_epochs():
    one, b = task(mixup=1.0, mix_off_epochs=2, label_smoothing=0.1), batch(8)
    plain = F.cross_entropy(one.model(normalised(b)), b.targets, label_smoothing=0.1)
    for epoch, mixes in ((0, True), (7, True), (8, False), (9, False)):
        one.start_epoch(epoch, 10)
        losses = [one.training_step(b)["loss"].item() for _ in range(4)]
        assert len(set(losses)) == (4 if mixes else 1)
        assert mixes or losses[0] == pytest.approx(plain.item())


def test_an_auxiliary_head_adds_its_weighted_loss():
    aux, b = torch.randn(8, C), batch(8)
    one = task(Several(WithAuxiliary, aux_logits=aux), dict(loss=LossSettings(aux_weight=0.3)))
    losses = one.training_step(b)
    torch.testing.assert_close(losses["aux_loss"], 0.3 * F.cross_entropy(aux, b.targets))
    torch.testing.assert_close(losses["loss"], F.cross_entropy(one.model(normalised(b)).logits, b.targets))


def token_loss_as_written(logits, token_logits, box, targets, tokens):
    """The specification, one picture and one token at a time, in float64."""
    r1, c1, r2, c2 = box.tolist()
    keep = 1 - (r2 - r1) * (c2 - c1) / token_logits.shape[1]
    whole, dense = 0.0, 0.0
    for i in range(len(logits)):
        mixed = keep * targets[i] + (1 - keep) * targets[len(logits) - 1 - i]
        whole -= (mixed * logits[i].double().log_softmax(0)).sum() / len(logits)
        for t in range(token_logits.shape[1]):
            loss = -(tokens[i, t] * token_logits[i, t].double().log_softmax(0)).sum()
            dense += loss / (len(logits) * token_logits.shape[1])
    return whole.item(), dense.item()


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("corners", [(0, 0, 0, 0), (1, 0, 3, 2), (0, 0, 3, 3)])
def test_token_labelling(mapped, corners):
    b, box, token_logits = batch(4), torch.tensor(corners), torch.randn(4, 9, C)
    sections = dict(loss=LossSettings(dense_weight=0.5, ground_truth=mapped))
    one = task(Several(TokenLogits, token_logits=token_logits, box=box), sections, label_smoothing=0.1)
    if mapped:
        maps = torch.stack([torch.randn(4, 5, 6, 6), torch.rand(4, C, 6, 6).argsort(1)[:, :5].float()], 1)
        crops = torch.tensor([[0.0, 0.0, 1.0, 1.0, 0.0]]).repeat(4, 1)
        b = b._replace(label_maps=maps.half(), crops=crops)
        target, tokens = token_targets(maps.half(), crops, C, 3)
        target = with_ground_truth(target, b.targets)
    else:
        target = soft_labels(b.targets, C, 0.1)
        tokens = target[:, None].repeat(1, 9, 1)
    losses = one.training_step(b)
    whole, dense = token_loss_as_written(one.model(normalised(b)).logits, token_logits, box, target, tokens)
    assert losses["loss"].item() == pytest.approx(whole, rel=1e-5)
    assert losses["token_loss"].item() == pytest.approx(0.5 * dense, rel=1e-5)


def test_volo_learns_from_its_tokens():
    model = backbones.create_model("volo_nano", in_chans=1, num_classes=C, token_labelling=True)
    one, b = task(model), batch(4)
    b = b._replace(images=torch.randint(0, 256, (4, 1, 32, 32), dtype=torch.uint8))
    losses = one.training_step(b)
    sum(losses.values()).backward()
    assert set(losses) == {"loss", "token_loss"} and model.head.aux.weight.grad.abs().sum() > 0


def test_overlock_learns_from_its_overview():
    model = backbones.create_model("overlock_nano", in_chans=1, num_classes=C, aux_head=True)
    one, b = task(model), batch(4)
    b = b._replace(images=torch.randint(0, 256, (4, 1, 32, 32), dtype=torch.uint8))
    losses = one.training_step(b)
    losses["aux_loss"].backward()
    assert model.aux_head[1].fc.weight.grad.abs().sum() > 0 and model.head.fc.weight.grad is None


def test_a_label_map_is_cropped_as_the_picture_is():
    """On a grid that the crop's edges hit, cropping and resizing is taking means of whole cells."""
    maps = torch.randn(3, 4, 12, 12)
    crops = torch.tensor([[0.0, 0.0, 1.0, 1.0, 0], [0.5, 0.25, 0.5, 0.5, 0], [0.5, 0.25, 0.5, 0.5, 1]])
    cropped = crop_label_map(maps, crops, 3)
    torch.testing.assert_close(cropped[0], F.avg_pool2d(maps[0], 4))
    torch.testing.assert_close(cropped[1], F.avg_pool2d(maps[1, :, 6:, 3:9], 2))
    torch.testing.assert_close(cropped[2], F.avg_pool2d(maps[2, :, 6:, 3:9], 2).flip(-1))


def test_scores_go_to_their_classes():
    maps = torch.tensor([[[[[2.0, 3.0]], [[1.0, 0.5]]], [[[4.0, 0.0]], [[1.0, 6.0]]]]]).half()  # (1, 2, k=2, 1, 2)
    dense = dense_label_map(maps, 7)
    expected = torch.zeros(1, 7, 1, 2)
    expected[0, 4, 0, 0], expected[0, 1, 0, 0], expected[0, 0, 0, 1], expected[0, 6, 0, 1] = 2.0, 1.0, 3.0, 0.5
    torch.testing.assert_close(dense, expected)
    target, tokens = token_targets(maps, torch.tensor([[0.0, 0.0, 1.0, 1.0, 0.0]]), 7, 2)
    assert target.shape == (1, 7) and tokens.shape == (1, 4, 7)
    torch.testing.assert_close(target[0], expected[0].mean((1, 2)).softmax(0))
    torch.testing.assert_close(tokens.sum(-1), torch.ones(1, 4))


def test_the_true_label_counts_more_where_the_map_agrees():
    soft = torch.tensor([[0.6, 0.4], [0.6, 0.4]])
    mixed = with_ground_truth(soft, torch.tensor([0, 1]))
    torch.testing.assert_close(mixed, torch.tensor([[0.8, 0.2], [0.54, 0.46]]))


def test_label_maps_on_disk(tmp_path):
    saved = torch.randn(2, 5, 18, 18).half()
    torch.save(saved, tmp_path / "a.pt")
    assert torch.equal(read_label_map(tmp_path / "a.pt"), saved)
    torch.save(saved[0], tmp_path / "b.pt")
    (tmp_path / "c.pt").write_bytes(b"nothing")
    for name, said in (("b", "is no tensor"), ("c", "cannot be read"), ("d", "cannot be read")):
        with pytest.raises(InputError, match=said):
            read_label_map(tmp_path / f"{name}.pt")


def test_distillation_losses():
    ours, theirs = torch.randn(8, C), torch.randn(8, C)
    assert distillation_loss(ours, ours, "soft", 2.0).item() == pytest.approx(0, abs=1e-6)
    p, q = (theirs / 2).softmax(1), (ours / 2).softmax(1)
    expected = 4 * (p * (p / q).log()).sum(1).mean()
    torch.testing.assert_close(distillation_loss(ours, theirs, "soft", 2.0), expected)
    expected = F.cross_entropy(ours, theirs.argmax(1))
    torch.testing.assert_close(distillation_loss(ours, theirs, "hard", 2.0), expected)


@pytest.mark.parametrize("mode", ["soft", "hard"])
def test_a_student_learns_from_a_teacher(tmp_path, mode):
    keywords = dict(in_chans=1, num_classes=C)
    teacher = backbones.create_model("swin_nano", **keywords)
    torch.save(teacher.state_dict(), tmp_path / "teacher.pt")
    settings = DistillSettings("swin_nano", str(tmp_path / "teacher.pt"), mode, weight=0.25, temperature=3.0)
    student = backbones.create_model("davit_nano", **keywords)
    one, b = task(student, dict(distill=settings)), batch(4)
    b = b._replace(images=torch.randint(0, 256, (4, 1, 32, 32), dtype=torch.uint8))
    one.train()
    assert not one.teacher.model.training and not any(p.requires_grad for p in one.teacher.parameters())
    assert not any(key.startswith("teacher") for key in one.model.state_dict())
    losses = one.training_step(b)
    images = normalised(b)
    with torch.no_grad():
        logits, teacher_logits = student(images), teacher.eval()(images)
    expected = 0.25 * distillation_loss(logits, teacher_logits, mode, 3.0)
    torch.testing.assert_close(losses["distillation_loss"].detach(), expected, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(losses["loss"].detach(), 0.75 * F.cross_entropy(logits, b.targets), rtol=1e-3, atol=1e-5)


def test_a_published_teacher_sees_pictures_in_its_own_normalisation(monkeypatch):
    import timm

    from training.tasks.teacher import Teacher

    seen = []

    published = dict(mean=(0.1, 0.2, 0.3), std=(0.5, 0.5, 0.25))

    class Published(nn.Module):
        pretrained_cfg = published

        def forward(self, images):
            seen.append(images)
            return images.mean((2, 3))

    monkeypatch.setattr(timm, "create_model", lambda *_, **__: Published())
    ours = torch.tensor([0.4, 0.5, 0.6]).view(1, 3, 1, 1), torch.tensor([0.2, 0.3, 0.4]).view(1, 3, 1, 1)
    pixels = torch.rand(2, 3, 4, 4)
    Teacher(DistillSettings("any"), 3, *ours)((pixels - ours[0]) / ours[1])
    own = [torch.tensor(published[name]).view(1, 3, 1, 1) for name in ("mean", "std")]
    torch.testing.assert_close(seen[0], (pixels - own[0]) / own[1])


def test_pictures_grow_with_the_epochs():
    settings = ProgressiveSettings(start_size=128, full_epochs=2, multiple=32)
    sizes = [epoch_size(settings, epoch, 10, 224) for epoch in range(10)]
    assert sizes == [128, 128, 160, 160, 192, 192, 192, 224, 224, 224]
    assert epoch_size(ProgressiveSettings(), 0, 10, 224) == 224
    assert epoch_size(settings, 0, 1, 224) == 224


def test_the_network_sees_the_size_of_the_epoch():
    sides = []

    class Sides(nn.Module):
        def forward(self, images):
            sides.append(images.shape[-1])
            return images.mean((2, 3)).expand(-1, C)

    one = task(Sides(), dict(progressive=ProgressiveSettings(start_size=8, full_epochs=1, multiple=4)))
    b = batch(4)._replace(images=torch.randint(0, 256, (4, 1, 16, 16), dtype=torch.uint8))
    for epoch in range(3):
        one.start_epoch(epoch, 3)
        one.training_step(b)
    one.evaluation_step(b)
    assert sides == [8, 12, 16, 16]


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: LossSettings(name="mse"), "loss.name is 'mse', but must be cross_entropy or bce"),
        (lambda: LossSettings(aux_weight=-1), "aux_weight and dense_weight must not be negative"),
        (lambda: DistillSettings(mode="medium"), "distill.mode is 'medium', but must be soft or hard"),
        (lambda: DistillSettings(temperature=0), "temperature above 0"),
        (lambda: ProgressiveSettings(start_size=0), "must be at least 1"),
        (lambda: task(sections=dict(distill=DistillSettings("no_such_net"))), "The teacher 'no_such_net' cannot be"),
    ],
)
def test_wrong_settings(build, said):
    with pytest.raises(InputError, match=said):
        build()
