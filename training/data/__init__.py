"""From samples to batches: sources, transforms, and a sample stream that depends on (seed, epoch, index) alone."""

from .decode import BadImageError, Picture
from .dense import ADE20K, VOC, Cityscapes, Coco, CocoFolder, DigitScenes, Lvis, MaskFolder
from .digits import Digits
from .huggingface import HuggingFace
from .imagefolder import ImageFolder
from .imagenet import ImageNet, ImageNetA, ImageNetC, ImageNetR, ImageNetReal, ImageNetSketch, ImageNetV2
from .labelled import Batch, LabelledPictures
from .loader import BadImages, Loader
from .prefetch import prefetched
from .settings import AugmentSettings, DataSettings, Source
from .shards import WebDataset
from .transforms import evaluation_transform, training_transform

# By the `name` of their settings.
DATASETS = {
    "ade20k": ADE20K,
    "cityscapes": Cityscapes,
    "coco": Coco,
    "coco_folder": CocoFolder,
    "digit_scenes": DigitScenes,
    "digits": Digits,
    "huggingface": HuggingFace,
    "imagefolder": ImageFolder,
    "imagenet": ImageNet,
    "imagenet_a": ImageNetA,
    "imagenet_c": ImageNetC,
    "imagenet_r": ImageNetR,
    "imagenet_real": ImageNetReal,
    "imagenet_sketch": ImageNetSketch,
    "imagenet_v2": ImageNetV2,
    "lvis": Lvis,
    "mask_folder": MaskFolder,
    "voc": VOC,
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
    "ImageNet",
    "ImageNetA",
    "ImageNetC",
    "ImageNetR",
    "ImageNetReal",
    "ImageNetSketch",
    "ImageNetV2",
    "LabelledPictures",
    "Loader",
    "Picture",
    "Source",
    "WebDataset",
    "evaluation_transform",
    "prefetched",
    "training_transform",
]
