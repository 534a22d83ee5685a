"""Image classification: one label per picture."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from timm.data import Mixup
from timm.data.random_erasing import RandomErasing
from torch import Tensor, nn

from backbones.errors import InputError

from .pictures import confusion_picture, errors_picture
from .scoring import Scoring


@dataclass
class RegularizeSettings:
    """What makes the targets softer and the pictures harder, batch by batch.

    Args:
        label_smoothing: share of the target spread over all classes.
        mixup, cutmix: parameter of the Beta distribution of the mixing; 0 is off.
        mix_prob: probability that a batch is mixed at all.
        switch_prob: probability of cutmix where both are on.
        random_erasing: probability that a rectangle of a picture is replaced by noise.
    """

    label_smoothing: float = 0.1
    mixup: float = 0.0
    cutmix: float = 0.0
    mix_prob: float = 1.0
    switch_prob: float = 0.5
    random_erasing: float = 0.0

    def __post_init__(self):
        for name in ("label_smoothing", "mix_prob", "switch_prob", "random_erasing"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"recipe.regularize.{name} is {getattr(self, name)}, but must be between 0 and 1.")
        if min(self.mixup, self.cutmix) < 0:
            raise InputError(
                f"recipe.regularize.mixup and cutmix must not be negative, but are {self.mixup}, {self.cutmix}."
            )


class Classification(nn.Module):
    """Cross entropy and accuracy of a classifier.

    Args:
        model: pictures (B, channels, H, W) to logits (B, len(classes)).
        classes: names of the labels.
        mean, std: of each channel, for pixels in [0, 1].
    """

    metric = "top1"  # what the best checkpoint is best in

    def __init__(
        self, model: nn.Module, classes: list[str], mean: list[float], std: list[float], settings: RegularizeSettings
    ):
        super().__init__()
        self.model, self.classes, self.settings = model, classes, settings
        self.register_buffer("mean", 255 * torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(std).view(1, -1, 1, 1), persistent=False)
        self._mixup = None
        if settings.mixup > 0 or settings.cutmix > 0:
            self._mixup = Mixup(
                settings.mixup,
                settings.cutmix,
                prob=settings.mix_prob,
                switch_prob=settings.switch_prob,
                label_smoothing=settings.label_smoothing,
                num_classes=len(classes),
            )
        self.scoring = Scoring()  # how the data that are evaluated want predictions counted
        self.start_evaluation()

    def training_step(self, batch) -> dict[str, Tensor]:
        """The losses of a batch (uint8 images, targets, indices); their sum is minimised."""
        images, targets = self._prepare(batch)
        if self.settings.random_erasing > 0:
            images = RandomErasing(self.settings.random_erasing, mode="pixel", device=images.device)(images)
        if self._mixup is not None:
            if len(images) % 2:
                raise InputError(
                    f"Mixup and cutmix pair the pictures of a batch, but this one has {len(images)}. "
                    "Make trainer.batch_size even, or set recipe.regularize.mixup and cutmix to 0."
                )
            images, targets = self._mixup(images, targets)
            return {"loss": F.cross_entropy(self.model(images), targets)}
        loss = F.cross_entropy(self.model(images), targets, label_smoothing=self.settings.label_smoothing)
        return {"loss": loss}

    def start_evaluation(self) -> None:
        """Forget the predictions of the last evaluation."""
        self._seen: list[tuple[Tensor, ...]] = []

    def evaluation_step(self, batch) -> None:
        """Predict a batch and remember the outcome."""
        images, targets = self._prepare(batch)
        logits = self.scoring.restrict(self.model(images).float())
        losses = self.scoring.losses(logits, targets, batch.indices)
        ranked = logits.topk(min(5, logits.shape[1])).indices
        confidence = logits.softmax(1).amax(1)
        self._seen.append(tuple(t.cpu() for t in (batch.indices, targets, ranked, confidence, losses)))

    def compute_metrics(self) -> dict[str, float]:
        """top1 and top5, as fractions, the mean loss, and what the data add, of all since `start_evaluation`."""
        indices, targets, ranked, _, losses = self._outcome()
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

    def write_pictures(self, folder: Path, source) -> list[Path]:
        """confusion.png and errors.png of the last evaluation, which was of `source`."""
        indices, targets, ranked, confidence, _ = self._outcome()
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
        return [
            confusion_picture(folder / "confusion.png", confusion, self.classes),
            errors_picture(folder / "errors.png", errors, wrong=len(wrong), total=len(targets)),
        ]

    @torch.inference_mode()
    def predict(self, image: Tensor) -> list[tuple[str, float]]:
        """Up to five (class, probability) of one picture, uint8 (channels, H, W), the likeliest first."""
        probabilities = self.model(self._normalise(image[None])).float().softmax(1)[0]
        values, labels = probabilities.topk(min(5, len(self.classes)))
        return [(self.classes[label], value) for label, value in zip(labels.tolist(), values.tolist())]

    def _prepare(self, batch) -> tuple[Tensor, Tensor]:
        return self._normalise(batch.images), batch.targets.to(self.mean.device, non_blocking=True)

    def _normalise(self, images: Tensor) -> Tensor:
        images = images.to(self.mean.device, non_blocking=True, memory_format=torch.channels_last)
        return (images.float() - self.mean) / self.std

    def _outcome(self) -> tuple[Tensor, ...]:
        if not self._seen:
            raise InputError("There was no picture to evaluate on: the validation set has none that can be read.")
        return tuple(torch.cat(parts) for parts in zip(*self._seen))
