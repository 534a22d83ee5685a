"""From samples to batches: sources, transforms, and a sample stream that depends on (seed, epoch, index) alone."""

from .decode import BadImageError, Picture
from .digits import Digits
from .huggingface import HuggingFace
from .imagefolder import ImageFolder
from .imagenet import ImageNetA, ImageNetC, ImageNetR, ImageNetReal, ImageNetSketch, ImageNetV2
from .loader import BadImages, Batch, Loader
from .prefetch import prefetched
from .settings import AugmentSettings, DataSettings, Source
from .shards import WebDataset
from .transforms import evaluation_transform, training_transform

# By the `name` of their settings.
DATASETS = {
    "digits": Digits,
    "huggingface": HuggingFace,
    "imagefolder": ImageFolder,
    "imagenet_a": ImageNetA,
    "imagenet_c": ImageNetC,
    "imagenet_r": ImageNetR,
    "imagenet_real": ImageNetReal,
    "imagenet_sketch": ImageNetSketch,
    "imagenet_v2": ImageNetV2,
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
    "ImageNetA",
    "ImageNetC",
    "ImageNetR",
    "ImageNetReal",
    "ImageNetSketch",
    "ImageNetV2",
    "Loader",
    "Picture",
    "Source",
    "WebDataset",
    "evaluation_transform",
    "prefetched",
    "training_transform",
]
