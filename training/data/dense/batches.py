"""Pictures with targets, by the batch."""

import random
from typing import NamedTuple

import torch
from torch import Tensor

from ...annotation import Target
from ..decode import BadImageError, Picture
from .settings import DenseSource
from .transforms import TrainingTransform, decoded


class DenseBatch(NamedTuple):
    """Pictures, each uint8 (channels, H, W) of its own size, their targets, and their indices in the source (B,)."""

    images: list[Tensor]
    targets: list[Target]
    indices: Tensor


class AnnotatedPictures:
    """Samples of a source.

    Args:
        transform: changes pictures and targets together; None leaves both as they are.
    """

    def __init__(self, source: DenseSource, transform: TrainingTransform | None = None):
        self.source, self.transform = source, transform

    def read(self, index: int) -> tuple[Tensor, Target, int]:
        """(picture, target, index). Raises BadImageError."""
        sample = self.source.picture(index), self.source.target(index)
        image, target = decoded(*sample) if self.transform is None else self.transform(*sample, self._another)
        return image, target, index

    def collate(self, samples: list[tuple[Tensor, Target, int]]) -> DenseBatch:
        images, targets, indices = zip(*samples)
        return DenseBatch(list(images), list(targets), torch.tensor(indices))

    def _another(self) -> tuple[Picture, Target]:
        first = random.randrange(len(self.source))
        for index in range(first, first + len(self.source)):
            try:
                picture, target = (ask(index % len(self.source)) for ask in (self.source.picture, self.source.target))
                picture.size  # noqa: B018 - raises where it is damaged
                return picture, target
            except BadImageError:  # said when its own turn comes
                continue
        raise BadImageError("no picture of the data can be read")
