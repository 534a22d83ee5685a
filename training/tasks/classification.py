"""Image classification: one label per picture."""

import json
from functools import partial
from math import isqrt
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from timm.data import Mixup
from torch import Tensor, nn

from backbones.errors import InputError

from ..distributed import gather
from .losses import distillation_loss, label_loss, soft_labels, token_losses
from .pictures import confusion_picture, errors_picture
from .progressive import epoch_size
from .scoring import Scoring
from .settings import TeachingSettings
from .teacher import Teacher
from .token_labels import token_targets, with_ground_truth


class Classification(nn.Module):
    """Losses and accuracy of a classifier.

    Args:
        model: pictures (B, channels, H, W) to logits (B, len(classes)). In training also to a tuple of them and of
            `aux_logits` of the same shape, or of `token_logits` (B, N, len(classes)) and the `box` that was mixed.
        classes: names of the labels.
        mean, std: of each channel, for pixels in [0, 1].
    """

    metric = "top1"  # what the best checkpoint is best in
    target = None  # labels, rather than a kind of targets that `training.annotation` names
    trains = True  # rather than being evaluated alone
    whole_checkpoint = False  # its checkpoints are a backbone's, rather than to be loaded by `load_weights`

    def __init__(
        self, model: nn.Module, classes: list[str], mean: list[float], std: list[float], settings: TeachingSettings
    ):
        super().__init__()
        self.model, self.classes, self.settings = model, classes, settings
        mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (mean, std))
        self.register_buffer("mean", 255 * mean, persistent=False)
        self.register_buffer("std", 255 * std, persistent=False)
        regularize = settings.regularize
        self._loss = label_loss(settings.loss, regularize.label_smoothing)
        self._mixup = None
        if regularize.mixup > 0 or regularize.cutmix > 0:
            self._mixup = Mixup(
                regularize.mixup,
                regularize.cutmix,
                prob=regularize.mix_prob,
                switch_prob=regularize.switch_prob,
                label_smoothing=regularize.label_smoothing,
                num_classes=len(classes),
            )
        self.teacher = Teacher(settings.distill, len(classes), mean, std) if settings.distill.teacher else None
        self.start_epoch(0, 1)
        self.scoring = Scoring()  # how the data that are evaluated want predictions counted
        self.start_evaluation()

    @staticmethod
    def backbone_keywords(classes: list[str]) -> dict[str, Any]:
        """The keywords of `create_model` that follow from the task."""
        return {"num_classes": len(classes)}

    def start_epoch(self, epoch: int, epochs: int) -> None:
        """Be told which epoch begins, counted from 0, and of how many."""
        self._mixes = epoch < epochs - self.settings.regularize.mix_off_epochs
        self._side = partial(epoch_size, self.settings.progressive, epoch, epochs)

    def training_step(self, batch) -> dict[str, Tensor]:
        """The losses of a batch (uint8 images, targets, indices); their sum is minimised."""
        images, labels = self._prepare(batch)
        side = self._side(images.shape[-1])
        if side < images.shape[-1]:
            images = F.interpolate(images, size=(side, side), mode="bilinear", antialias=True)
        targets = labels
        if self._mixup is not None and self._mixes:
            if len(images) % 2:
                raise InputError(
                    f"Mixup and cutmix pair the pictures of a batch, but this one has {len(images)}. "
                    "Make trainer.batch_size even, or set recipe.regularize.mixup and cutmix to 0."
                )
            images, targets = self._mixup(images, targets)
        output = self.model(images)
        if hasattr(output, "token_logits"):
            losses = self._token_losses(output, targets, labels, batch)
        elif hasattr(output, "aux_logits"):
            aux_loss = self.settings.loss.aux_weight * self._loss(output.aux_logits, targets)
            losses = {"loss": self._loss(output.logits, targets), "aux_loss": aux_loss}
        else:
            losses = {"loss": self._loss(output, targets)}
        if self.teacher is not None:
            distill = self.settings.distill
            logits = output if isinstance(output, Tensor) else output.logits
            loss = distillation_loss(logits, self.teacher(images), distill.mode, distill.temperature)
            losses = {name: (1 - distill.weight) * value for name, value in losses.items()}
            losses["distillation_loss"] = distill.weight * loss
        return losses

    def _token_losses(self, output, targets: Tensor, labels: Tensor, batch) -> dict[str, Tensor]:
        """The losses of a network that mixes tokens; without label maps, every token has its picture's label."""
        settings, classes, tokens = self.settings.loss, len(self.classes), output.token_logits.shape[1]
        if batch.label_maps is not None:
            maps = batch.label_maps.to(labels.device, non_blocking=True)
            target, token_target = token_targets(maps, batch.crops.to(labels.device), classes, isqrt(tokens))
            target = with_ground_truth(target, labels) if settings.ground_truth else target
        else:
            smoothing = self.settings.regularize.label_smoothing
            target = soft_labels(targets, classes, smoothing) if targets.dim() == 1 else targets
            token_target = target[:, None].expand(-1, tokens, -1)
        return token_losses(output, target, token_target, self._loss, settings.dense_weight)

    def start_evaluation(self) -> None:
        """Forget the predictions of the last evaluation."""
        self._seen: list[tuple[Tensor, ...]] = []

    def evaluation_step(self, batch) -> None:
        """Predict a batch and remember the outcome."""
        images, targets = self._prepare(batch)
        logits = self.scoring.restrict(self.logits(images))
        losses = self.scoring.losses(logits, targets, batch.indices)
        ranked = logits.topk(min(5, logits.shape[1])).indices
        confidence = logits.softmax(1).amax(1)
        self._seen.append(tuple(t.cpu() for t in (batch.indices, targets, ranked, confidence, losses)))

    def compute_metrics(self) -> dict[str, float]:
        """top1 and top5, as fractions, the mean loss, and what the data add, of every picture that a process saw."""
        seen = [batch for each in gather(self._seen) for batch in each]
        if not seen:
            raise InputError("There was no picture to evaluate on: the validation set has none that can be read.")
        outcome = [torch.cat(parts) for parts in zip(*seen)]
        # Where a loader fills up its last round, or puts one picture in the place of another, that one comes twice.
        first = {index: i for i, index in reversed(list(enumerate(outcome[0].tolist())))}
        self._outcome = [part[[first[index] for index in sorted(first)]] for part in outcome]
        indices, targets, ranked, _, losses = self._outcome
        hits = self.scoring.hits(ranked, targets, indices)
        return {
            "top1": hits[:, 0].double().mean().item(),
            "top5": hits.any(1).double().mean().item(),
            "loss": losses.double().mean().item(),
            **self.scoring.metrics(indices, hits[:, 0]),
        }

    def describe(self, metrics: dict[str, float]) -> str:
        """The metrics in words."""
        names = {"mean_error": "mean error", "mce": "mCE"}
        added = "".join(f", {names[name]} {metrics[name]:.2%}" for name in names if name in metrics)
        return f"top-1 {metrics['top1']:.2%}, top-5 {metrics['top5']:.2%}, loss {metrics['loss']:.4f}{added}"

    def metadata(self) -> dict[str, str]:
        """What to keep with the weights: the names of the classes, to classify a picture without the data."""
        return {"classes": json.dumps(self.classes)}

    def draw_samples(self, path: Path, source) -> dict[str, Path]:
        """None, epoch by epoch: what can be seen of a label is seen in the errors at the end."""
        return {}

    def write_pictures(self, folder: Path, source) -> dict[str, Path]:
        """confusion.png and errors.png of the last evaluation, which was of `source`."""
        indices, targets, ranked, confidence, _ = self._outcome
        predicted = ranked[:, 0]
        targets = torch.where(self.scoring.hits(ranked, targets, indices)[:, 0], predicted, targets)
        confusion = torch.zeros(len(self.classes), len(self.classes), dtype=torch.long)
        confusion.index_put_((targets, predicted), torch.ones_like(targets), accumulate=True)
        wrong = torch.nonzero(predicted != targets).flatten()
        wrong = wrong[confidence[wrong].argsort(descending=True)]
        errors = []
        for i in wrong[:25].tolist():
            picture = source.picture(int(indices[i])).image()
            errors.append((picture, self.classes[targets[i]], self.classes[predicted[i]], float(confidence[i])))
        return {
            "confusion": confusion_picture(folder / "confusion.png", confusion, self.classes),
            "errors": errors_picture(folder / "errors.png", errors, wrong=len(wrong), total=len(targets)),
        }

    @torch.inference_mode()
    def predict(self, image: Tensor) -> list[tuple[str, float]]:
        """Up to five (class, probability) of one picture, uint8 (channels, H, W), the likeliest first."""
        probabilities = self.logits(self.normalise(image[None])).softmax(1)[0]
        values, labels = probabilities.topk(min(5, len(self.classes)))
        return [(self.classes[label], value) for label, value in zip(labels.tolist(), values.tolist())]

    def logits(self, images: Tensor) -> Tensor:
        """Normalised pictures (B, channels, H, W) to logits (B, classes), in evaluation mode."""
        return self.model(images).float()

    def check_weights(self) -> None:
        """Raise InputError where the weights given to the model leave it without a classifier."""
        if not self.model.get_classifier().weight.any():
            raise InputError(
                f"The weights have no classifier for the {len(self.classes)} classes of the data, so there is nothing "
                "to evaluate. Fine-tune them first: python train.py backbone.checkpoint_path=FILE …"
            )

    def load_weights(self, state: dict[str, Tensor]) -> None:
        """Take the tensors of a checkpoint of this task, if there are more than the backbone's."""

    def _prepare(self, batch) -> tuple[Tensor, Tensor]:
        return self.normalise(batch.images), batch.targets.to(self.mean.device, non_blocking=True)

    def normalise(self, images: Tensor) -> Tensor:
        """Pictures, uint8 (B, channels, H, W), as the model takes them."""
        images = images.to(self.mean.device, non_blocking=True, memory_format=torch.channels_last)
        # As wide as the pictures, so that a processor runs along a row's values instead of restarting at each pixel.
        mean, std = (
            values.expand(1, -1, 1, images.shape[-1]).contiguous(memory_format=torch.channels_last)
            for values in (self.mean, self.std)
        )
        return images.float().sub_(mean).div_(std)
