"""Pictures with boxes, masks or maps: readers, transforms and batches."""

from .ade20k import ADE20K
from .augment import DenseAugmentSettings
from .batches import AnnotatedPictures, DenseBatch
from .cityscapes import Cityscapes
from .coco import Coco, CocoFolder, Lvis
from .export import export_coco, export_maps
from .maps import MaskFolder
from .orientation import upright
from .scenes import DigitScenes
from .settings import DenseSettings, DenseSource
from .transforms import training_transform
from .voc import VOC

__all__ = [
    "ADE20K",
    "VOC",
    "AnnotatedPictures",
    "Cityscapes",
    "Coco",
    "CocoFolder",
    "DenseAugmentSettings",
    "DenseBatch",
    "DenseSettings",
    "DenseSource",
    "DigitScenes",
    "Lvis",
    "MaskFolder",
    "export_coco",
    "export_maps",
    "training_transform",
    "upright",
]
