"""Pictures to uint8 tensors (channels, img_size, img_size); they are normalised on the device, later."""

from collections.abc import Callable

from PIL.Image import Image
from timm.data import auto_augment, create_transform
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from backbones.errors import InputError

from .settings import AugmentSettings, DataSettings

Transform = Callable[[Image], Tensor]


def _posterize(image: Image, bits: int, **_) -> Image:
    """timm's posterize, also where its strongest level asks for 0 bits: black, which Pillow 13 refuses to draw."""
    return image.point(lambda value: 0) if bits < 1 else auto_augment.posterize(image, bits)


for _name, _op in auto_augment.NAME_TO_OP.items():
    if _op is auto_augment.posterize:
        auto_augment.NAME_TO_OP[_name] = _posterize


def training_transform(data: DataSettings, augment: AugmentSettings) -> Transform:
    """Random geometry and colour as `augment` says; every draw comes from the global generators."""
    try:
        crop_and_colour = create_transform(
            data.img_size,
            is_training=True,
            scale=tuple(augment.scale),
            ratio=tuple(augment.ratio),
            hflip=augment.hflip,
            color_jitter=augment.color_jitter or None,
            auto_augment=augment.auto_augment,
            interpolation=augment.interpolation,
            mean=tuple(data.mean),
            std=tuple(data.std),
            normalize=False,
        )
        if not (augment.degrees or augment.translate or augment.zoom):
            return crop_and_colour
        affine = v2.RandomAffine(
            augment.degrees,
            translate=(augment.translate, augment.translate),
            scale=(1 - augment.zoom, 1 + augment.zoom),
            interpolation=InterpolationMode.BILINEAR,
        )
        return v2.Compose([affine, crop_and_colour])
    except (AssertionError, TypeError, ValueError, LookupError, AttributeError) as error:
        raise InputError(f"timm and torchvision cannot augment as recipe.augment says, {augment}: {error}.") from error


def evaluation_transform(data: DataSettings) -> Transform:
    """Resize to img_size / crop_pct, the short side or both (crop_mode squash), then crop the centre."""
    return create_transform(
        data.img_size,
        interpolation=data.interpolation,
        crop_pct=data.crop_pct,
        crop_mode=data.crop_mode,
        normalize=False,
    )
