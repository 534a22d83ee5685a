"""From samples to batches: sources, transforms, and a sample stream that depends on (seed, epoch, index) alone."""

from .decode import BadImageError, Picture
from .digits import Digits
from .imagefolder import ImageFolder
from .loader import BadImages, Batch, Loader
from .prefetch import prefetched
from .settings import AugmentSettings, DataSettings, Source
from .transforms import evaluation_transform, training_transform

DATASETS = {"digits": Digits, "imagefolder": ImageFolder}  # by the `name` of their settings

__all__ = [
    "DATASETS",
    "AugmentSettings",
    "BadImageError",
    "BadImages",
    "Batch",
    "DataSettings",
    "Digits",
    "ImageFolder",
    "Loader",
    "Picture",
    "Source",
    "evaluation_transform",
    "prefetched",
    "training_transform",
]
