"""Pascal VOC (Everingham et al., IJCV 2010), as VOC2012 is unpacked."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from backbones.errors import InputError, first_line

from ...annotation import Target
from ..decode import BadImageError
from .files import AnnotatedFiles, check_kind, ids_in, must_exist, paths_array, root_of
from .maps import MapSource, read_labels
from .objects import Objects, ObjectSource
from .segments import read_numbers, size_of, target_of_segments
from .settings import DenseSettings, DenseSource

CLASSES = [
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
]  # fmt: skip
VOID = 255  # the borders of objects, and what is too hard to tell
FORM = "JPEGImages, ImageSets, Annotations, and for maps and masks SegmentationClass and SegmentationObject"


class VocMasks(AnnotatedFiles):
    """Pictures with the masks of objects: one PNG numbers the objects, another says the class of each pixel."""

    def __init__(self, pictures: Iterable[Path], objects: Iterable[Path], classes: Iterable[Path], channels: int):
        super().__init__(pictures, channels, CLASSES)
        self._objects, self._classes = paths_array(objects), paths_array(classes)

    def described(self, index: int) -> tuple[tuple[int, int], str]:
        file = os.fsdecode(self._objects[index])
        return size_of(file), file

    def target(self, index: int) -> Target:
        file, class_file = os.fsdecode(self._objects[index]), os.fsdecode(self._classes[index])
        numbers = read_numbers(file)
        labels = read_labels(class_file, len(CLASSES) + 1)  # 0 is the background
        if numbers.shape != labels.shape:
            raise BadImageError(f"{file} and {class_file} are not of the same size")
        segments = []
        for number in np.setdiff1d(numbers, (0, VOID)).tolist():
            inside = labels[numbers == number]
            inside = inside[inside > 0]
            if not inside.size:
                raise BadImageError(f"{class_file} has no class for object {number} of {file}")
            segments.append((number, int(np.bincount(inside).argmax()) - 1, False))
        return target_of_segments(numbers, segments, "masks")


@dataclass
class VOC(DenseSettings):
    """Pascal VOC: boxes of 20 classes, their masks, or maps in which the background is a class of its own.

    Objects that are marked as difficult count as crowds: a detector is neither rewarded nor punished for finding them.

    Args:
        root: the folder that holds JPEGImages, VOCdevkit/VOC2012 say.
        train_split, val_split: names of the lists in ImageSets/Main (boxes) or ImageSets/Segmentation (masks, maps).
        map_folder: the folder of the maps; with the list `trainaug` that of the additional ones (Hariharan et al., ICCV
            2011), which often is SegmentationClassAug.
    """

    name: str = "voc"
    root: str | None = None
    train_split: str = "train"
    val_split: str = "val"
    map_folder: str = "SegmentationClass"

    def splits(self, kind: str) -> tuple[DenseSource, DenseSource]:
        return self._source(self.train_split, kind), self._source(self.val_split, kind)

    def evaluation(self, kind: str) -> DenseSource:
        return self._source(self.val_split, kind)

    def _source(self, split: str, kind: str) -> AnnotatedFiles:
        check_kind(self, kind, ("boxes", "masks", "map"))
        root = root_of(self, FORM)
        lists = root / "ImageSets" / ("Main" if kind == "boxes" else "Segmentation")
        file = must_exist(lists / f"{split}.txt", FORM)
        names = list(ids_in(file))
        if not names:
            raise InputError(f"{file} is empty; it needs the name of a picture per line.")
        pictures = [root / "JPEGImages" / f"{name}.jpg" for name in names]
        if kind == "boxes":
            folder = must_exist(root / "Annotations", FORM)
            sizes, objects = _read_objects([folder / f"{name}.xml" for name in names])
            return ObjectSource(folder, pictures, sizes, objects, kind, self.channels, CLASSES)
        maps = [must_exist(root / self.map_folder, FORM) / f"{name}.png" for name in names]
        if kind == "map":
            read = partial(read_labels, num_classes=len(CLASSES) + 1)
            return MapSource(pictures, maps, read, self.channels, ["background", *CLASSES])
        folder = must_exist(root / "SegmentationObject", FORM)
        return VocMasks(pictures, [folder / f"{name}.png" for name in names], maps, self.channels)


def _read_objects(files: list[Path]) -> tuple[list[tuple[int, int]], Objects]:
    """(width, height) of each picture by its XML file, and the objects of all. Raises InputError."""
    sizes, objects = [], Objects()
    for owner, file in enumerate(files):
        try:
            tree = ElementTree.parse(file)
            sizes.append((int(_text(tree, "size/width")), int(_text(tree, "size/height"))))
            for found in tree.findall("object"):
                left, top, right, bottom = (float(_text(found, f"bndbox/{side}")) for side in _SIDES)
                label = CLASSES.index(_text(found, "name").strip())
                difficult = found.findtext("difficult", "0").strip() == "1"
                # The first pixel is number 1, and the last one belongs to the box.
                objects.add(owner, label, (left - 1, top - 1, right, bottom), difficult)
        except (OSError, ElementTree.ParseError, ValueError, LookupError) as error:
            raise InputError(
                f"{file} cannot be read as an annotation of Pascal VOC ({first_line(error)}). Repair it, or remove its "
                "name from the list of the split."
            ) from error
    return sizes, objects


_SIDES = ("xmin", "ymin", "xmax", "ymax")


def _text(element, path: str) -> str:
    text = element.findtext(path)
    if text is None:
        raise LookupError(f"there is no {path}")
    return text
