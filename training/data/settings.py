"""What a data set is to the rest, and what can be set about it."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Protocol

from PIL.Image import Image

IMAGENET_MEAN, IMAGENET_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


class Source(Protocol):
    """One split of a data set: decoded pictures by index, each with a label and a name."""

    classes: list[str]  # label to name

    def __len__(self) -> int: ...

    def image(self, index: int) -> Image:
        """The picture, decoded. Raises BadImageError."""

    def target(self, index: int) -> int:
        """Its label."""

    def name(self, index: int) -> str:
        """What to call it in a message: its path, say."""


@dataclass
class DataSettings(ABC):
    """What every data set has; a subclass adds its own and `splits`.

    Args:
        name: what to call the data set in paths and reports.
        img_size: side of the square that the network sees, in pixels.
        channels: 1 for grey-scale, 3 for colour; pictures are converted.
        crop_pct: share of the resized picture's side that the evaluation crop keeps; `img_size / crop_pct` is the
            length the short side is resized to.
        interpolation: of resizing at evaluation: bilinear or bicubic.
        mean, std: of each channel, for pixels in [0, 1].
        workers: processes that decode and augment; 0 does it in the training process.
        max_bad_images: pictures that may be unreadable before the run stops.
    """

    name: str
    img_size: int = 224
    channels: int = 3
    crop_pct: float = 0.875
    interpolation: str = "bicubic"
    mean: list[float] = field(default_factory=lambda: list(IMAGENET_MEAN))
    std: list[float] = field(default_factory=lambda: list(IMAGENET_STD))
    workers: int = 4
    max_bad_images: int = 10

    @abstractmethod
    def splits(self) -> tuple[Source, Source]:
        """The training and the validation split."""


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
