"""Training pictures and their targets, changed together; pictures become uint8 (channels, height, width).

They are normalised on the device, later. In evaluation a picture keeps its own pixels, and is resized there.
"""

import random
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torchvision.transforms import v2

from backbones.errors import InputError

from ...annotation import IGNORED, Target
from ...resizing import resized_size
from ..decode import Picture
from .augment import DenseAugmentSettings
from .copy_paste import paste
from .geometry import Sample, Size, Window, flip, nearest, pad, random_window, resize_and_crop
from .settings import DenseSettings

Other = Callable[[], tuple[Picture, Target]]

CROPS = 10  # drawn at most, until no class has too large a share; as in mmsegmentation


def training_transform(data: DenseSettings, augment: DenseAugmentSettings, kind: str) -> "TrainingTransform":
    """Random geometry and colour as `augment` says, for targets of a kind that `training.annotation` names.

    Raises:
        InputError: the kind has not what a setting needs.
    """
    if augment.copy_paste and kind != "masks":
        raise InputError(
            f"recipe.dense.copy_paste is {augment.copy_paste}, but pasting objects needs masks: set it to 0, or "
            "task=instance."
        )
    if augment.max_class_share < 1 and kind != "map":
        raise InputError(
            f"recipe.dense.max_class_share is {augment.max_class_share}, but classes have shares in maps only: set it "
            "to 1, or task=semantic."
        )
    return TrainingTransform(data, augment)


class TrainingTransform:
    """A random size, crop, flip and colours; every draw comes from the global generators.

    Args:
        data: for the size, where `augment` does not say it, and for the colour of what is padded: the mean, rounded.
        augment: what may happen.
    """

    def __init__(self, data: DenseSettings, augment: DenseAugmentSettings):
        self.augment = augment
        self.short_sides = augment.short_sides or [data.img_size]
        self.max_size = data.max_size if augment.max_size is None else augment.max_size
        self.colour = [round(255 * mean) for mean in data.mean]
        self.photometric = v2.RandomPhotometricDistort()

    def __call__(self, picture: Picture, target: Target, other: Other | None = None) -> Sample:
        """The picture, uint8 (channels, height, width), and its target. Raises BadImageError.

        Args:
            other: draws another picture with its target, of which objects are pasted; needed where some are to be.
        """
        image, target = self._alone(picture, target)
        if random.random() < self.augment.copy_paste:
            image, target = paste(image, target, *self._alone(*other()))
        return image, target

    def _alone(self, picture: Picture, target: Target) -> Sample:
        augment = self.augment
        image, target = decoded(picture, target)
        if augment.first_sides and random.random() < 0.5:
            size = resized_size(*image.shape[-2:], random.choice(augment.first_sides))
            low, high = augment.first_crop
            crop = [random.randint(min(low, side), min(high, side)) for side in size]
            image, target = resize_and_crop(image, target, size, random_window(size, crop))
        factor = random.uniform(*augment.jitter) if augment.jitter else 1.0
        size = resized_size(*image.shape[-2:], random.choice(self.short_sides), self.max_size, factor)
        image, target = resize_and_crop(image, target, size, self._window(size, target))
        if random.random() < augment.hflip:
            image, target = flip(image, target)
        if random.random() < augment.photometric:
            image = self.photometric(image)
        if augment.crop:
            image, target = pad(image, target, augment.crop, self.colour)
        return image.contiguous(), target  # no longer a view of all that was cropped away

    def _window(self, size: Size, target: Target) -> Window:
        """Where to crop a picture of this size."""
        draw = partial(random_window, size, self.augment.crop or size)
        window = draw()
        if self.augment.max_class_share < 1:
            for _ in range(CROPS - 1):
                if largest_share(nearest(target["map"], size, window)) <= self.augment.max_class_share:
                    break
                window = draw()
        return window


def decoded(picture: Picture, target: Target) -> Sample:
    """The pixels of a picture, uint8 (channels, height, width), and its target. Raises BadImageError."""
    return torch.from_numpy(picture.pixels()).permute(2, 0, 1), target


def largest_share(labels: Tensor) -> float:
    """The share of the labelled pixels that the most frequent label has; 1 where there are none."""
    counts = labels[labels != IGNORED].int().bincount()
    return float(counts.max() / counts.sum()) if len(counts) else 1.0
