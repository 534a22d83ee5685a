"""Maps: a PNG beside every picture, whose pixels are labels."""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from backbones.errors import InputError

from ...annotation import IGNORED, Target
from ..decode import BadImageError
from ..imagefolder import pictures_below
from .files import AnnotatedFiles, check_kind, must_exist, names_in, paths_array, root_of
from .segments import read_numbers, size_of
from .settings import DenseSettings, DenseSource

MOST_CLASSES = 2**15 - 1  # of int16


class MapSource(AnnotatedFiles):
    """Pictures with the label of every pixel.

    Args:
        pictures, maps: their files, in the same order.
        read: a map's file to labels, int16 (H, W); raises BadImageError.
    """

    def __init__(
        self,
        pictures: Iterable[Path],
        maps: Iterable[Path],
        read: Callable[[str], np.ndarray],
        channels: int,
        classes: list[str],
    ):
        super().__init__(pictures, channels, classes)
        self._maps, self._read = paths_array(maps), read

    def described(self, index: int) -> tuple[tuple[int, int], str]:
        file = os.fsdecode(self._maps[index])
        return size_of(file), file

    def target(self, index: int) -> Target:
        return {"map": torch.from_numpy(self._read(os.fsdecode(self._maps[index])))}


def read_labels(file: str, num_classes: int, first: int = 0, ignored: tuple[int, ...] = (255,)) -> np.ndarray:
    """The labels of a map's pixels, int16 (H, W).

    Args:
        first: the number that stands for label 0.
        ignored: numbers of pixels without a label.

    Raises:
        BadImageError: the file cannot be read, has colours, or a number that stands for nothing.
    """
    return to_labels(read_numbers(file), file, num_classes, first, ignored)


def to_labels(numbers: np.ndarray, file: str, num_classes: int, first: int, ignored: tuple[int, ...]) -> np.ndarray:
    """Numbers (H, W) to labels, int16 (H, W), as `read_labels`."""
    left_out = np.isin(numbers, ignored)
    wrong = numbers[((numbers < first) | (numbers >= first + num_classes)) & ~left_out]
    if wrong.size:
        allowed = f"{first} to {first + num_classes - 1}, and {' and '.join(map(str, ignored))} where there is no label"
        raise BadImageError(f"{file} has pixels of the number {wrong[0]}, but they must be {allowed}")
    return np.where(left_out, IGNORED, numbers - first).astype(np.int16)


def paired_source(
    pictures: Path, maps: Path, read: Callable[[str], np.ndarray], channels: int, classes: list[str]
) -> MapSource:
    """The pictures in a folder, with maps of the same names but `.png` in another. Raises InputError for none."""
    names = pictures_below(pictures)
    if not names:
        raise InputError(f"There are no pictures in {pictures}.")
    return MapSource(
        [pictures / name for name in names],
        [(maps / name).with_suffix(".png") for name in names],
        read,
        channels,
        classes,
    )


@dataclass
class MaskFolder(DenseSettings):
    """Your own pictures with maps: `images/train`, `images/val`, and PNGs of their names in `masks/train`, `masks/val`.

    A map's pixels are numbers of 8 or 16 bits, or indices of a palette. So masks of black and white, 0 and 255, are of
    one class and pixels without any: write these as 0 and 1.

    Args:
        root: the folder that holds `images` and `masks`, and perhaps `classes.txt`, the name of a class per line.
        num_classes: how many classes there are; not needed with `classes.txt`.
        first_label: the number of the first class.
        ignore_label: the number of pixels that are neither learned from nor counted.
    """

    name: str = "mask_folder"
    root: str | None = None
    num_classes: int | None = None
    first_label: int = 0
    ignore_label: int = 255

    def splits(self, kind: str) -> tuple[DenseSource, DenseSource]:
        return self._source("train", kind), self._source("val", kind)

    def evaluation(self, kind: str) -> DenseSource:
        return self._source("val", kind)

    def _source(self, split: str, kind: str) -> MapSource:
        check_kind(self, kind, ("map",))
        form = f"images/{split}/*.jpg (or .png) and masks/{split}/*.png"
        root = root_of(self, form)
        classes = self._classes(root)
        read = partial(read_labels, num_classes=len(classes), first=self.first_label, ignored=(self.ignore_label,))
        folders = (must_exist(root / part / split, form) for part in ("images", "masks"))
        return paired_source(*folders, read, self.channels, classes)

    def _classes(self, root: Path) -> list[str]:
        file = root / "classes.txt"
        if not file.exists() and self.num_classes is None:
            raise InputError(f"There is no {file}, the name of a class per line. Write it, or set data.num_classes.")
        classes = names_in(file) if file.exists() else [f"class {label}" for label in range(self.num_classes)]
        if self.num_classes not in (None, len(classes)):
            raise InputError(
                f"{file} names {len(classes)} classes, but data.num_classes is {self.num_classes}. Leave that out, or "
                "correct the file."
            )
        if not 1 <= len(classes) <= MOST_CLASSES:
            raise InputError(f"There must be 1 to {MOST_CLASSES} classes, but there are {len(classes)}.")
        if 0 <= self.ignore_label - self.first_label < len(classes):
            raise InputError(
                f"data.ignore_label={self.ignore_label} is the number of a class too: the {len(classes)} classes have "
                f"the numbers from data.first_label={self.first_label} on. Set it to a number that no class has."
            )
        return classes
