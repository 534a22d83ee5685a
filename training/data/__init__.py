"""From samples to batches: sources, transforms, and a sample stream that depends on (seed, epoch, index) alone."""

from .decode import BadImageError, Picture
from .digits import Digits
from .huggingface import HuggingFace
from .imagefolder import ImageFolder
from .loader import BadImages, Batch, Loader
from .settings import AugmentSettings, DataSettings, Source
from .shards import WebDataset
from .transforms import evaluation_transform, training_transform

# By the `name` of their settings.
DATASETS = {
    "digits": Digits,
    "huggingface": HuggingFace,
    "imagefolder": ImageFolder,
    "webdataset": WebDataset,
}

__all__ = [
    "DATASETS",
    "AugmentSettings",
    "BadImageError",
    "BadImages",
    "Batch",
    "DataSettings",
    "Digits",
    "HuggingFace",
    "ImageFolder",
    "Loader",
    "Picture",
    "Source",
    "WebDataset",
    "evaluation_transform",
    "training_transform",
]
