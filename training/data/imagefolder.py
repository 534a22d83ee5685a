"""The ImageNet layout: ROOT/train/CLASS/*.jpg and ROOT/val/CLASS/*.jpg, or lists that say which file is what."""

import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torchvision.datasets.folder import IMG_EXTENSIONS

from backbones.errors import InputError

from .decode import Picture
from .lists import read_class_map, read_file_list
from .settings import DataSettings, Source

log = logging.getLogger(__name__)


class FileSource:
    """Pictures that are files, each with a label.

    Args:
        folder: what the paths are relative to.
        classes: names of the labels.
    """

    def __init__(self, folder: Path, paths: Iterable[str], labels: Iterable[int], classes: list[str], channels: int):
        self.folder, self.classes, self.channels = folder, classes, channels
        # Arrays, because a worker that counts references to a million strings would copy them all.
        self._paths = np.array([os.fsencode(path) for path in paths], dtype=bytes)
        self._labels = np.array(labels, dtype=np.int64)

    @classmethod
    def of_folders(cls, folder: Path, labels: dict[str, int], classes: list[str], channels: int) -> "FileSource":
        """Every picture anywhere in the subfolders that have a label, by label and in alphabetical order."""
        found = [(path, label) for name, label in labels.items() for path in pictures_below(folder, name)]
        return cls(folder, [path for path, _ in found], [label for _, label in found], classes, channels)

    def __len__(self) -> int:
        return len(self._paths)

    def picture(self, index: int) -> Picture:
        return Picture.read(self.name(index), self.channels)

    def target(self, index: int) -> int:
        return int(self._labels[index])

    def name(self, index: int) -> str:
        return os.path.join(self.folder, os.fsdecode(self._paths[index]))


@dataclass
class ImageFolder(DataSettings):
    """Pictures in a folder per class.

    Args:
        root: the folder that holds `train` and `val`.
        class_map: file with the folders of the classes in the order of their labels, and their names (`read_class_map`
            describes it); without it, the folders of `train` in alphabetical order.
        train_list, val_list: files with a line `PATH LABEL` per picture instead of a folder per class; paths are
            relative to `train` and `val` in `root`, or to `root` where there is no such folder.
    """

    name: str = "imagefolder"
    root: str | None = None
    class_map: str | None = None
    train_list: str | None = None
    val_list: str | None = None

    def splits(self) -> tuple[Source, Source]:
        labels, classes = self._classes()
        return self._source("train", labels, classes), self._source("val", labels, classes)

    def evaluation(self) -> Source:
        # A class map says all that the training pictures are asked for.
        return self._source("val", *self._classes()) if self.class_map else super().evaluation()

    def _classes(self) -> tuple[dict[str, int], list[str]]:
        """Label of each folder, and name of each label."""
        if self.class_map is not None:
            names = read_class_map(self.class_map)
            return {folder: label for label, folder in enumerate(names)}, list(names.values())
        if self.train_list is not None:
            _, labels = read_file_list(self.train_list)
            return {}, [str(label) for label in range(max(labels) + 1)]
        folders = subfolders(self._folder("train"))
        return {folder: label for label, folder in enumerate(folders)}, folders

    def _folder(self, part: str) -> Path:
        """The folder of a split, which must be there."""
        form = "train/CLASS/*.jpg and val/CLASS/*.jpg"
        if self.root is None:
            raise InputError(f"data={self.name} needs data.root=PATH, a folder with {form}.")
        root = Path(self.root).expanduser()
        for folder in (root, root / part):
            if not folder.is_dir():
                raise InputError(f"The data folder {folder} does not exist. data.root must hold {form}.")
        return root / part

    def _source(self, part: str, labels: dict[str, int], classes: list[str]) -> FileSource:
        listed = self.train_list if part == "train" else self.val_list
        if listed is not None:
            root = Path(self.root or ".").expanduser()
            folder = root / part if (root / part).is_dir() else root
            return FileSource(folder, *read_file_list(listed, len(classes)), classes, self.channels)
        folder = self._folder(part)
        self._check_folders(folder, labels)
        source = FileSource.of_folders(folder, labels, classes, self.channels)
        if len(source) == 0:
            raise InputError(
                f"There are no pictures in {folder}: expected {part}/CLASS/*.jpg (or {', '.join(IMG_EXTENSIONS[1:])})."
            )
        return source

    def _check_folders(self, folder: Path, labels: dict[str, int]) -> None:
        """A class without training pictures is an error, as is a folder without a class, except beside a class map."""
        found = subfolders(folder)
        unknown = [name for name in found if name not in labels]
        if unknown and self.class_map is not None:
            log.warning("%d folders of %s have no class in %s: left out", len(unknown), folder, self.class_map)
        elif unknown and self.train_list is not None:
            raise InputError(
                f"data.train_list numbers the classes, so nothing says which number the folder(s) "
                f"{', '.join(unknown[:5])} of {folder} have. Give data.val_list or data.class_map as well."
            )
        elif unknown:
            raise InputError(
                f"The class(es) {', '.join(unknown[:5])} of {folder} do not occur in {folder.with_name('train')}, so "
                "no network could learn them. Add training pictures of them, or remove them from val."
            )
        missing = [name for name in labels if name not in found]
        if missing and folder.name == "train":
            raise InputError(
                f"{self.class_map} names the folder(s) {', '.join(missing[:5])}, which are not in {folder}. Correct or "
                "remove these lines."
            )


def subfolders(folder: Path) -> list[str]:
    """Names of the folders in a folder, sorted."""
    return sorted(p.name for p in folder.iterdir() if p.is_dir())


def pictures_below(folder: Path, name: str = "") -> list[str]:
    """Paths, relative to `folder`, of the pictures anywhere in its subfolder `name`, sorted."""
    found = []
    for where, _, files in os.walk(folder / name):
        below = Path(where).relative_to(folder)
        found += [os.path.join(below, file) for file in files if file.lower().endswith(IMG_EXTENSIONS)]
    return sorted(found)
