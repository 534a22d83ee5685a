"""ADE20K (Zhou et al., arXiv:1608.05442): the benchmark of 150 classes, and the full release."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from backbones.errors import InputError

from ..imagefolder import pictures_below
from .files import check_kind, must_exist, names_in, root_of
from .maps import MOST_CLASSES, MapSource, paired_source, read_labels, to_labels
from .segments import read_colours
from .settings import DenseSettings, DenseSource

NUM_CLASSES = 150
UNLABELLED = (0, 255)  # of the benchmark: 0 is all other classes, and 255 what some tools make of it


@dataclass
class ADE20K(DenseSettings):
    """Scenes with a map of what each pixel shows.

    Args:
        root: ADEChallengeData2016, with `images/training`, `annotations/training` and so for `validation`; for the
            full release ADE20K_2021_17_01, with `images/ADE/training/…/*.jpg` and a `*_seg.png` beside each.
        full: the full release instead of the benchmark of 150 classes.
        class_list: file with the name of a class per line. Line n names number n of the files, of which 0 is no class:
            for the full release, where it is needed, `objectnames` of its index_ade20k.pkl; for the benchmark, whose
            names otherwise come from objectInfo150.txt in `root` where that is there, 150 lines.
    """

    name: str = "ade20k"
    root: str | None = None
    full: bool = False
    class_list: str | None = None

    def splits(self, kind: str) -> tuple[DenseSource, DenseSource]:
        return self._source("training", kind), self._source("validation", kind)

    def evaluation(self, kind: str) -> DenseSource:
        return self._source("validation", kind)

    def _source(self, split: str, kind: str) -> MapSource:
        check_kind(self, kind, ("map",))
        return self._full(split) if self.full else self._benchmark(split)

    def _benchmark(self, split: str) -> MapSource:
        form = f"images/{split}/*.jpg and annotations/{split}/*.png"
        root = root_of(self, form)
        folders = (must_exist(root / part / split, form) for part in ("images", "annotations"))
        read = partial(read_labels, num_classes=NUM_CLASSES, first=1, ignored=UNLABELLED)
        return paired_source(*folders, read, self.channels, self._names(root))

    def _names(self, root: Path) -> list[str]:
        info = root / "objectInfo150.txt"
        if self.class_list is not None:
            file, names = self.class_list, names_in(Path(self.class_list))
        elif info.exists():  # columns Idx, Ratio, Train, Val, Stuff, Name, under a line that says so
            file, names = info, [line.split("\t")[-1].strip() for line in names_in(info)[1:]]
        else:
            return [f"class {number}" for number in range(1, NUM_CLASSES + 1)]
        if len(names) != NUM_CLASSES:
            raise InputError(f"{file} names {len(names)} classes, but the benchmark has {NUM_CLASSES}.")
        return names

    def _full(self, split: str) -> MapSource:
        form = f"images/ADE/{split}/…/*.jpg, with a *_seg.png beside each"
        if self.class_list is None:
            raise InputError(
                "data.full=true needs data.class_list=FILE, the name of a class per line; line n names number n of the "
                "files of segments: `objectnames` of index_ade20k.pkl."
            )
        classes = names_in(Path(self.class_list))
        if len(classes) > MOST_CLASSES:
            raise InputError(f"{self.class_list} names {len(classes)} classes; at most {MOST_CLASSES} are possible.")
        folder = must_exist(root_of(self, form) / "images/ADE" / split, form)
        pictures = [folder / name for name in pictures_below(folder) if name.endswith(".jpg")]
        if not pictures:
            raise InputError(f"There are no pictures in {folder}. data.root must hold {form}.")
        maps = [path.with_name(f"{path.stem}_seg.png") for path in pictures]
        return MapSource(pictures, maps, partial(_read_full, num_classes=len(classes)), self.channels, classes)


def _read_full(file: str, num_classes: int) -> np.ndarray:
    """Red and green hold the number of the class, R // 10 * 256 + G; blue tells objects apart."""
    red, green, _ = np.moveaxis(read_colours(file), -1, 0)
    return to_labels(red // 10 * 256 + green, file, num_classes, first=1, ignored=(0,))
