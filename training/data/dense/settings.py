"""What a data set with boxes, masks or maps is to the rest, and what can be set about it."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ...annotation import Target
from ..decode import Picture
from ..settings import PictureSettings


class DenseSource(Protocol):
    """One split of a data set: pictures by index, each with a target of one kind (see `training.annotation`)."""

    classes: list[str]  # label to name
    things: list[bool] | None  # of segments: whether the objects of a label are counted; None where all are or none is
    wide: np.ndarray | None  # whether each picture is wider than high, so that batches can hold similar ones; or None

    def __len__(self) -> int: ...

    def picture(self, index: int) -> Picture:
        """The picture, not decoded yet. Raises BadImageError where there is none."""

    def target(self, index: int) -> Target:
        """What is known of it. Raises BadImageError, which names the file, where that cannot be read."""

    def name(self, index: int) -> str:
        """What to call it in a message: its path, say."""


@dataclass
class DenseSettings(PictureSettings, ABC):
    """What every data set of this kind has; a subclass adds its own and `splits`.

    Args:
        img_size: length of a picture's short side when it is evaluated, in pixels.
        max_size: limit of the long side, in pixels, for which the short one is made smaller; None is no limit.
    """

    max_size: int | None = None

    def _rules(self) -> dict[str, bool]:
        return super()._rules() | {
            "max_size must not be below img_size": self.max_size is None or self.max_size >= self.img_size
        }

    @abstractmethod
    def splits(self, kind: str) -> tuple[DenseSource, DenseSource]:
        """The training and the validation split, with targets of a kind that `training.annotation` names.

        Raises:
            InputError: the data have no such targets, or cannot be read.
        """

    def evaluation(self, kind: str) -> DenseSource:
        """What to evaluate on: the validation split, where that can be had without the training split."""
        return self.splits(kind)[1]
