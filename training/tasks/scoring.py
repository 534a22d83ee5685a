"""How the predictions of a classifier are counted."""

import torch
import torch.nn.functional as F
from torch import Tensor


class Scoring:
    """One right label per picture, out of all classes, unless the source of the pictures offers something else:

    - `label_subset`: the labels that may be predicted; the logits of others are left out;
    - `valid_labels(index)`: all the labels that count as right for a picture;
    - `metrics(indices, right)`: more metrics, of which pictures were classified rightly.
    """

    def __init__(self, source=None):
        self._subset = getattr(source, "label_subset", None)
        self._valid_labels = getattr(source, "valid_labels", None)
        self._metrics = getattr(source, "metrics", None)

    def restrict(self, logits: Tensor) -> Tensor:
        """Logits (B, classes), those of labels that are never predicted replaced by minus infinity."""
        if self._subset is None:
            return logits
        restricted = torch.full_like(logits, -torch.inf)
        restricted[:, self._subset] = logits[:, self._subset]
        return restricted

    def losses(self, logits: Tensor, targets: Tensor, indices: Tensor) -> Tensor:
        """Negative logarithm of the probability of all right labels together (B,): cross entropy, if there is one."""
        if self._valid_labels is None:
            return F.cross_entropy(logits, targets, reduction="none")
        wrong = torch.ones_like(logits, dtype=torch.bool)
        for row, index in enumerate(indices.tolist()):
            wrong[row, self._valid_labels(index)] = False
        return logits.logsumexp(1) - logits.masked_fill(wrong, -torch.inf).logsumexp(1)

    def hits(self, ranked: Tensor, targets: Tensor, indices: Tensor) -> Tensor:
        """Which of the predicted labels (N, k) are right (N, k)."""
        if self._valid_labels is None:
            return ranked == targets[:, None]
        valid = (set(self._valid_labels(index)) for index in indices.tolist())
        return torch.tensor([[label in labels for label in row] for row, labels in zip(ranked.tolist(), valid)])

    def metrics(self, indices: Tensor, right: Tensor) -> dict:
        """Metrics beside accuracy and loss, of pictures (N,) and whether each was classified rightly (N,)."""
        return {} if self._metrics is None else self._metrics(indices, right)
