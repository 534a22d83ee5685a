"""Losses of classifiers: of the labels, of an auxiliary head, of every token, and of a teacher."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from timm.loss import BinaryCrossEntropy
from torch import Tensor

from .settings import LossSettings

Loss = Callable[[Tensor, Tensor], Tensor]


def label_loss(settings: LossSettings, smoothing: float) -> Loss:
    """The loss of logits (B, classes) and targets, labels (B,) to be smoothed or soft (B, classes) as they are."""
    if settings.name == "bce":
        return BinaryCrossEntropy(smoothing, settings.bce_threshold)

    def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(logits, targets, label_smoothing=smoothing if targets.dim() == 1 else 0.0)

    return cross_entropy


def distillation_loss(logits: Tensor, teacher_logits: Tensor, mode: str, temperature: float) -> Tensor:
    """How far logits (B, classes) are from a teacher's: soft, Hinton et al. (arXiv:1503.02531), or hard, of DeiT."""
    if mode == "hard":
        return F.cross_entropy(logits, teacher_logits.argmax(1))
    ours, theirs = ((x.float() / temperature).log_softmax(1) for x in (logits, teacher_logits))
    return F.kl_div(ours, theirs, reduction="batchmean", log_target=True) * temperature**2


def token_losses(output, target: Tensor, token_targets: Tensor, loss: Loss, dense_weight: float) -> dict[str, Tensor]:
    """Losses of the class token and of all others, where the tokens of two images were mixed in a box.

    Args:
        output: logits (B, classes), token_logits (B, N, classes), box (4,): rows and columns r1, c1, r2, c2.
        target: soft, of the image, (B, classes).
        token_targets: soft, of each token, (B, N, classes).
    """
    r1, c1, r2, c2 = output.box.unbind()
    share = (r2 - r1) * (c2 - c1) / output.token_logits.shape[1]  # of the class token's image, from its partner's
    mixed = target.lerp(target.flip(0), share.to(target.dtype))
    dense = loss(output.token_logits.flatten(0, 1), token_targets.flatten(0, 1))
    return {"loss": loss(output.logits, mixed), "token_loss": dense_weight * dense}


def soft_labels(labels: Tensor, classes: int, smoothing: float) -> Tensor:
    """Labels (B,) as probabilities (B, classes); `smoothing` of each is spread over all classes."""
    return F.one_hot(labels, classes).to(torch.float32) * (1 - smoothing) + smoothing / classes
