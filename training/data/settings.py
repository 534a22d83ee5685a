"""What a data set is to the rest, and what can be set about it."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Protocol

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from backbones.errors import InputError

from .decode import Picture


class Source(Protocol):
    """One split of a data set: pictures by index, each with a label and a name."""

    classes: list[str]  # label to name

    def __len__(self) -> int: ...

    def picture(self, index: int) -> Picture:
        """The picture, not decoded yet. Raises BadImageError where there is none."""

    def target(self, index: int) -> int:
        """Its label."""

    def name(self, index: int) -> str:
        """What to call it in a message: its path, say."""


@dataclass
class PictureSettings:
    """What every data set of pictures has.

    Args:
        name: which data set this is; the same for all settings of one.
        img_size: side of the square that the network sees, in pixels.
        channels: 1 for grey-scale, 3 for colour; pictures are converted.
        mean, std: of each channel, for pixels in [0, 1].
        workers: processes that decode and augment; 0 does it in the training process.
        max_bad_images: pictures that may be unreadable before the run stops.
    """

    name: str
    img_size: int = 224
    channels: int = 3
    mean: list[float] = field(default_factory=lambda: list(IMAGENET_DEFAULT_MEAN))
    std: list[float] = field(default_factory=lambda: list(IMAGENET_DEFAULT_STD))
    workers: int = 4
    max_bad_images: int = 10

    def __post_init__(self):
        for rule, holds in self._rules().items():
            if not holds:
                raise InputError(f"The data settings cannot work: data.{rule}, but they are {self}.")

    def _rules(self) -> dict[str, bool]:
        """What must be so, and whether it is."""
        kind = type(self).__dataclass_fields__["name"].default
        return {
            f"name must be {kind}": self.name == kind,
            "channels must be 1 or 3": self.channels in (1, 3),
            "mean and std need a positive number per channel": len(self.mean) == len(self.std) == self.channels
            and min(self.std) > 0,
            "img_size must be at least 1": self.img_size >= 1,
            "workers and max_bad_images must not be negative": min(self.workers, self.max_bad_images) >= 0,
        }


@dataclass
class DataSettings(PictureSettings, ABC):
    """What every data set of labelled pictures has; a subclass adds its own and `splits`.

    Args:
        crop_pct: share of the resized picture's side that the evaluation crop keeps; `img_size / crop_pct` is the
            length the short side is resized to. Above 1, the picture gets a black border.
        crop_mode: center, or squash: resize both sides to that length.
        interpolation: of resizing at evaluation: bilinear or bicubic.
        label_maps: folder of `CLASS/NAME.pt`, labels for every token of the training pictures `CLASS/NAME.*`.
    """

    crop_pct: float = 0.875
    crop_mode: str = "center"
    interpolation: str = "bicubic"
    label_maps: str | None = None

    def _rules(self) -> dict[str, bool]:
        return super()._rules() | {
            "crop_pct must be above 0 and at most 2": 0 < self.crop_pct <= 2,
            "crop_mode must be center or squash": self.crop_mode in ("center", "squash"),
            "interpolation must be bilinear or bicubic": self.interpolation in ("bilinear", "bicubic"),
        }

    @abstractmethod
    def splits(self) -> tuple[Source, Source]:
        """The training and the validation split."""

    def evaluation(self) -> Source:
        """What to evaluate on: the validation split, where that can be had without the training split."""
        return self.splits()[1]


@dataclass
class AugmentSettings:
    """What may happen to a training picture before it becomes a tensor.

    Args:
        scale, ratio: range of the random crop's area (share of the picture) and of its aspect ratio.
        hflip: probability of a horizontal flip.
        color_jitter: strength; not applied where `auto_augment` is.
        auto_augment: a timm policy, such as `rand-m9-mstd0.5-inc1`.
        degrees, translate, zoom: random rotation (at most, in degrees), shift (share of the side) and change of size
            (share of the size).
        interpolation: of the crop: bilinear, bicubic or random.
        random_erasing: probability that a rectangle is replaced by noise.
        repeats: how often a picture comes in one step, each time augmented anew (repeated augmentation).
    """

    scale: list[float] = field(default_factory=lambda: [0.08, 1.0])
    ratio: list[float] = field(default_factory=lambda: [3 / 4, 4 / 3])
    hflip: float = 0.5
    color_jitter: float = 0.0
    auto_augment: str | None = None
    degrees: float = 0.0
    translate: float = 0.0
    zoom: float = 0.0
    interpolation: str = "bicubic"
    random_erasing: float = 0.0
    repeats: int = 1

    def __post_init__(self):
        if self.repeats < 1:
            raise InputError(f"recipe.augment.repeats is {self.repeats}, but must be at least 1.")
        for name in ("hflip", "random_erasing"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"recipe.augment.{name} is {getattr(self, name)}, but must be between 0 and 1.")
        if self.interpolation not in ("bilinear", "bicubic", "random"):
            raise InputError(
                f"recipe.augment.interpolation must be bilinear, bicubic or random, but is {self.interpolation!r}."
            )
