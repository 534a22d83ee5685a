"""Pictures to uint8 tensors (channels, img_size, img_size); they are normalised on the device, later.

A training picture is cropped while it is decoded and resized by torch, which does what Pillow does in a third of the
time; timm's policies follow. Evaluation keeps Pillow's own resizing, with which published
accuracies were measured.
"""

import math
import random
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from timm.data import create_transform
from timm.data.transforms import RandomResizedCropAndInterpolation
from torch import Tensor
from torchvision.transforms import Compose, InterpolationMode, v2

from backbones.errors import InputError

from .decode import Picture
from .operations import by_pillow, quickened
from .settings import AugmentSettings, DataSettings

Transform = Callable[[Picture], Tensor]  # raises BadImageError

SHRINKS = (8, 4, 2)  # by which libjpeg-turbo can divide the sides of a JPEG while it decodes


def training_transform(data: DataSettings, augment: AugmentSettings) -> "TrainingTransform":
    """Random geometry and colour as `augment` says, by timm's names."""
    try:
        crop, colour, _ = create_transform(
            data.img_size,
            is_training=True,
            scale=tuple(augment.scale),
            ratio=tuple(augment.ratio),
            color_jitter=augment.color_jitter or None,
            auto_augment=augment.auto_augment,
            interpolation=augment.interpolation,
            mean=tuple(data.mean),
            normalize=False,
            separate=True,
        )
        affine = v2.RandomAffine(
            augment.degrees,
            translate=(augment.translate, augment.translate),
            scale=(1 - augment.zoom, 1 + augment.zoom),
            interpolation=InterpolationMode.BILINEAR,
        )
    except (AssertionError, TypeError, ValueError, LookupError, AttributeError) as error:
        raise InputError(f"timm and torchvision cannot augment as recipe.augment says, {augment}: {error}.") from error
    policy = [quickened(colour.transforms.pop(0))] if augment.auto_augment else []
    return TrainingTransform(
        data.img_size,
        affine if augment.degrees or augment.translate or augment.zoom else None,
        crop.transforms[0],
        augment.hflip,
        policy + [partial(by_pillow, operation) for operation in colour.transforms],
        RandomErasing(augment.random_erasing, data.mean, data.std),
    )


def evaluation_transform(data: DataSettings) -> Compose:
    """Resize to img_size / crop_pct, the short side or both (crop_mode squash), then crop the centre."""
    resize_and_crop = create_transform(
        data.img_size,
        interpolation=data.interpolation,
        crop_pct=data.crop_pct,
        crop_mode=data.crop_mode,
        normalize=False,
    )
    return Compose([Picture.image, resize_and_crop])


class TrainingTransform:
    """A picture's random crop, flip, colours and erasing; every draw comes from the global generators.

    Args:
        img_size: side of the result, in pixels.
        affine: what happens to the whole picture before it is cropped.
        crop: draws the crop.
        hflip: probability of a horizontal flip.
        colour: operations on pixels, uint8 (height, width) or (height, width, 3), after the flip.
        erasing: comes last.
    """

    def __init__(
        self,
        img_size: int,
        affine: v2.RandomAffine | None,
        crop: RandomResizedCropAndInterpolation,
        hflip: float,
        colour: list[Callable[[np.ndarray], np.ndarray]],
        erasing: "RandomErasing",
    ):
        self.img_size, self.affine, self.crop, self.hflip = img_size, affine, crop, hflip
        self.colour, self.erasing = colour, erasing

    def __call__(self, picture: Picture) -> Tensor:
        """uint8 (channels, img_size, img_size). Raises BadImageError."""
        return self.with_crop(picture)[0]

    def with_crop(self, picture: Picture) -> tuple[Tensor, Tensor]:
        """The same, and what of the picture is seen: (5,), top, left, height and width as shares, 1 if flipped."""
        if self.affine is not None:
            picture = Picture(self.affine(picture.image()), picture.channels)
        image, crop = self._crop(picture)
        flipped = random.random() < self.hflip
        if flipped:
            image = image.flip(-1)
        if self.colour:
            pixels = image.permute(1, 2, 0).numpy()
            shape = pixels.shape
            pixels = pixels.reshape(shape[:2] if picture.channels == 1 else shape)
            for operation in self.colour:
                pixels = operation(pixels)
            image = torch.from_numpy(pixels.reshape(shape)).permute(2, 0, 1)
        return self.erasing(image), torch.tensor([*crop, flipped])

    def _crop(self, picture: Picture) -> tuple[Tensor, tuple[float, ...]]:
        """A random rectangle, resized, and where it is, as shares of the picture's sides.

        A large JPEG is decoded at the least size that is not enlarged afterwards.
        """
        width, height = picture.size
        outline = torch.empty(1, height, width, device="meta")
        top, left, h, w = self.crop.get_params(outline, self.crop.scale, self.crop.ratio)
        mode = self.crop.interpolation
        mode = random.choice(mode) if isinstance(mode, tuple) else mode
        shrink = next((s for s in SHRINKS if min(h, w) >= s * self.img_size), 1)
        pixels = picture.pixels(shrink)
        y, x = pixels.shape[0] / height, pixels.shape[1] / width  # 1 where the picture is no JPEG
        pixels = pixels[round(y * top) : round(y * (top + h)), round(x * left) : round(x * (left + w))]
        pixels = torch.from_numpy(pixels)[None].permute(0, 3, 1, 2)  # channels last, for which torch is fastest
        image = F.interpolate(pixels, (self.img_size, self.img_size), mode=mode.value, antialias=True)[0]
        return image, (top / height, left / width, h / height, w / width)


class RandomErasing:
    """timm's RandomErasing of mode "pixel" on pixels that are not normalised yet: noise of the data's mean and std.

    Args:
        probability: that a rectangle is erased.
        mean, std: of each channel, for pixels in [0, 1].
    """

    area = 0.02, 1 / 3  # share of the picture
    log_aspect = math.log(0.3), math.log(1 / 0.3)

    def __init__(self, probability: float, mean: list[float], std: list[float]):
        self.probability, self.mean, self.std = probability, 255 * torch.tensor(mean), 255 * torch.tensor(std)

    def __call__(self, image: Tensor) -> Tensor:
        """An uint8 picture (channels, height, width), changed in place."""
        if random.random() >= self.probability:
            return image
        channels, height, width = image.shape
        for _ in range(10):
            area = random.uniform(*self.area) * height * width
            aspect = math.exp(random.uniform(*self.log_aspect))
            h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if h < height and w < width:
                top, left = random.randint(0, height - h), random.randint(0, width - w)
                # A row's values side by side, as they lie in memory: much faster than three at a time.
                noise = torch.randn(h, w * channels).mul_(self.std.repeat(w)).add_(self.mean.repeat(w))
                noise = torch.from_numpy(noise.round_().clamp_(0, 255).numpy().astype(np.uint8))
                image[:, top : top + h, left : left + w] = noise.view(h, w, channels).permute(2, 0, 1)
                break
        return image
