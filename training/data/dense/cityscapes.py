"""Cityscapes (Cordts et al., arXiv:1604.01685): streets, with maps, objects and segments."""

import os
from dataclasses import dataclass

import numpy as np
import torch

from backbones.errors import InputError

from ...annotation import IGNORED, Target
from ..decode import BadImageError
from .files import AnnotatedFiles, check_kind, must_exist, root_of
from .segments import read_numbers, size_of, target_of_segments
from .settings import DenseSettings, DenseSource

# Id in the files and name of the 19 classes that are evaluated, by train id (labels.py of cityscapesScripts).
STUFF = {7: "road", 8: "sidewalk", 11: "building", 12: "wall", 13: "fence", 17: "pole", 19: "traffic light",
         20: "traffic sign", 21: "vegetation", 22: "terrain", 23: "sky"}  # fmt: skip
THINGS = {24: "person", 25: "rider", 26: "car", 27: "truck", 28: "bus", 31: "train", 32: "motorcycle", 33: "bicycle"}
MOST = 33  # the largest id
OBJECT = 1000  # the number of an object is this times the id of its class, plus its own


class CityscapesSource(AnnotatedFiles):
    """One split.

    For segments and maps, labels are the 19 train ids; for boxes and masks, the 8 things from 0 on. A region of several
    things, which has the id of their class in the place of an object's number, is a crowd.

    Args:
        pictures: their files.
        annotations: folder of the files of annotations, which are named after the pictures.
    """

    def __init__(self, pictures: list[str], annotations: str, kind: str, channels: int):
        self.kind, self._annotations = kind, annotations
        table = THINGS if kind in ("boxes", "masks") else STUFF | THINGS
        self._labels = {number: label for label, number in enumerate(table)}
        things = [number in THINGS for number in table] if kind == "segments" else None
        super().__init__(pictures, channels, list(table.values()), things)

    def described(self, index: int) -> tuple[tuple[int, int], str]:
        file = self._annotation(index)
        return size_of(file), file

    def target(self, index: int) -> Target:
        file = self._annotation(index)
        numbers = read_numbers(file)
        found, places = np.unique(numbers, return_inverse=True)
        classes = [number if number < OBJECT else number // OBJECT for number in found.tolist()]
        wrong = [number for number, id_ in zip(found, classes) if not 0 <= id_ <= MOST]
        if wrong:
            raise BadImageError(f"{file} has pixels of the number {wrong[0]}, but the ids of classes are 0 to {MOST}")
        if self.kind == "map":
            labels = np.array([self._labels.get(id_, IGNORED) for id_ in classes], dtype=np.int16)
            return {"map": torch.from_numpy(labels[places.reshape(numbers.shape)])}
        segments = [
            (number, self._labels[id_], number < OBJECT and id_ in THINGS)
            for number, id_ in zip(found.tolist(), classes)
            if id_ in self._labels
        ]
        return target_of_segments(numbers, segments, self.kind)

    def _annotation(self, index: int) -> str:
        city, name = self.name(index).rsplit(os.sep, 2)[1:]
        which = "labelIds" if self.kind == "map" else "instanceIds"
        return os.path.join(self._annotations, city, name.replace("_leftImg8bit", f"_gtFine_{which}"))


@dataclass
class Cityscapes(DenseSettings):
    """Cityscapes with its fine annotations, as it is unpacked: `leftImg8bit` and `gtFine`.

    Args:
        root: the folder that holds these two.
    """

    name: str = "cityscapes"
    root: str | None = None

    def splits(self, kind: str) -> tuple[DenseSource, DenseSource]:
        return self._source("train", kind), self._source("val", kind)

    def evaluation(self, kind: str) -> DenseSource:
        return self._source("val", kind)

    def _source(self, split: str, kind: str) -> CityscapesSource:
        check_kind(self, kind, ("boxes", "masks", "segments", "map"))
        form = f"leftImg8bit/{split}/CITY/*_leftImg8bit.png and gtFine/{split}/CITY/*_gtFine_*.png"
        root = root_of(self, form)
        folder, annotations = (must_exist(root / part / split, form) for part in ("leftImg8bit", "gtFine"))
        pictures = sorted(map(str, folder.glob("*/*_leftImg8bit.png")))
        if not pictures:
            raise InputError(f"There are no pictures in {folder}. data.root must hold {form}.")
        return CityscapesSource(pictures, str(annotations), kind, self.channels)
