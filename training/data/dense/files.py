"""What data sets of files have in common: pictures whose annotations say their size, and folders that must be there."""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from backbones.errors import InputError

from ...annotation import Target
from ..decode import Picture
from ..lists import lines_of
from .orientation import picture_of_size
from .settings import DenseSettings


class AnnotatedFiles(ABC):
    """Pictures that are files, each with an annotation; a subclass reads these. It is a `DenseSource`.

    Args:
        pictures: their paths.
        channels: 1 for grey-scale, 3 for colour.
        classes: names of the labels.
        things: of segments: whether the objects of each label are counted.
        sizes: (width, height) of each picture, in pixels, where they are known without opening it.
    """

    def __init__(
        self,
        pictures: Iterable[str | Path],
        channels: int,
        classes: list[str],
        things: list[bool] | None = None,
        sizes: np.ndarray | None = None,
    ):
        self.channels, self.classes, self.things = channels, classes, things
        self.wide = None if sizes is None else sizes[:, 0] > sizes[:, 1]
        self._pictures = paths_array(pictures)

    def __len__(self) -> int:
        return len(self._pictures)

    def name(self, index: int) -> str:
        return os.fsdecode(self._pictures[index])

    def picture(self, index: int) -> Picture:
        return picture_of_size(self.name(index), self.channels, *self.described(index))

    @abstractmethod
    def described(self, index: int) -> tuple[tuple[int, int], str]:
        """(width, height) of a picture by its annotation, and the file that says so. Raises BadImageError."""

    @abstractmethod
    def target(self, index: int) -> Target:
        """What the annotation says. Raises BadImageError, which names its file."""


def paths_array(paths: Iterable[str | Path]) -> np.ndarray:
    """Paths as bytes in one array: a worker that counts references to a million strings would copy them all."""
    return np.array([os.fsencode(path) for path in paths], dtype=bytes)


def root_of(data: DenseSettings, form: str) -> Path:
    """The folder `data.root`. Raises InputError, which says what form it must have, where it is not there."""
    if data.root is None:
        raise InputError(f"data={data.name} needs data.root=PATH, a folder with {form}.")
    return must_exist(Path(data.root).expanduser(), form)


def must_exist(path: Path, form: str) -> Path:
    """The path of a file or folder. Raises InputError, which says what `data.root` must hold, where there is none."""
    if not path.exists():
        raise InputError(f"{path} does not exist. data.root must hold {form}.")
    return path


def check_kind(data: DenseSettings, kind: str, kinds: tuple[str, ...]) -> None:
    """Raises InputError where a data set has no targets of this kind."""
    if kind not in kinds:
        raise InputError(
            f"The task needs {kind}, but data={data.name} has only {' and '.join(kinds)} to learn from. Choose another "
            "task or another data set."
        )


def names_in(file: Path) -> list[str]:
    """A name per line of a text file. Raises InputError where it cannot be read or has no line."""
    names = [line for _, line in lines_of(file, "list of classes")]
    if not names:
        raise InputError(f"The list of classes {file} is empty; it needs the name of a class per line.")
    return names


def ids_in(file: Path) -> Iterator[str]:
    """The first word of each line of a text file. Raises InputError where it cannot be read."""
    return (line.split()[0] for _, line in lines_of(file, "list of pictures"))
