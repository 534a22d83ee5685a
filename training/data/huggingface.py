"""Data sets of Hugging Face's `datasets`: parquet files, folders of `save_to_disk`, or names of its hub."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from backbones.errors import InputError, first_line, suggest

from .decode import BadImageError, Picture
from .lists import MOST_CLASSES
from .settings import DataSettings, Source

VALIDATION = ("validation", "val", "test")  # the split to evaluate on is the first of these


class TableSource:
    """The rows of a table, read from its memory map one by one, and not decoded by `datasets`.

    Args:
        pictures: a `datasets.Dataset` in Arrow's format.
        image: its column of pictures: {"bytes", "path"}, bytes, or paths.
        name: what to call the table in messages.
    """

    def __init__(self, pictures, image: str, labels: np.ndarray, classes: list[str], channels: int, name: str):
        self.classes, self.channels = classes, channels
        self._pictures, self._image, self._labels, self._name = pictures, image, labels, name

    def __len__(self) -> int:
        return len(self._labels)

    def picture(self, index: int) -> Picture:
        entry = self._pictures[index].column(self._image)[0].as_py()
        if isinstance(entry, dict):
            entry = entry.get("path") if entry.get("bytes") is None else entry["bytes"]
        match entry:
            case bytes():
                return Picture(entry, self.channels)
            case str():
                return Picture.read(entry, self.channels)
        raise BadImageError(f"the column {self._image!r} holds {entry!s:.20} there, which is no picture")

    def target(self, index: int) -> int:
        return int(self._labels[index])

    def name(self, index: int) -> str:
        return f"{self._name}, row {index}"


@dataclass
class HuggingFace(DataSettings):
    """A data set of Hugging Face's `datasets`. Parquet is turned into Arrow files in its cache once (`HF_HOME`).

    Args:
        root: a folder with parquet files named by their split (`train-00000-of-00002.parquet`, also in subfolders), a
            folder of `save_to_disk`, or the name of a data set on the hub.
        config: which configuration of the data set, where it has several.
        train, val: names of the splits; without `val`, the first of validation, val, test.
        image, label: names of the columns; without them, the only one with pictures and the only one with classes.
    """

    name: str = "huggingface"
    root: str | None = None
    config: str | None = None
    train: str = "train"
    val: str | None = None
    image: str | None = None
    label: str | None = None

    def splits(self) -> tuple[Source, Source]:
        splits = self._load()
        train = self._source(splits, self.train, None)
        return train, self._source(splits, self._validation(splits), train.classes)

    def evaluation(self) -> Source:
        splits = self._load()
        classes = self._source(splits, self.train, None).classes if self.train in splits else None
        return self._source(splits, self._validation(splits), classes)

    def _validation(self, splits: dict[str, Any]) -> str:
        return self.val or next((name for name in VALIDATION if name in splits), VALIDATION[0])

    def _load(self) -> dict[str, Any]:
        """The `datasets.Dataset` of each split."""
        if self.root is None:
            raise InputError("data=huggingface needs data.root=PATH, a folder with parquet files.")
        try:
            import datasets
        except ImportError as error:
            raise InputError("data=huggingface needs datasets: pip install 'backbones[huggingface]'.") from error
        root = Path(self.root).expanduser()
        if not root.is_dir() and (self.root.startswith(("/", ".", "~")) or self.root.count("/") > 1):
            raise InputError(f"The data folder {root} does not exist. data.root must be a folder with parquet files.")
        try:
            if (root / "dataset_dict.json").is_file():
                return dict(datasets.load_from_disk(str(root)))
            if (root / "state.json").is_file():
                return {self.train: datasets.load_from_disk(str(root))}
            return dict(datasets.load_dataset(str(root) if root.is_dir() else self.root, self.config))
        except (OSError, ValueError, LookupError, datasets.exceptions.DatasetsError) as error:
            known = "" if root.is_dir() else f"There is no folder {root}, and "
            raise InputError(f"{known}datasets cannot load {self.root} ({first_line(error)}).") from error

    def _source(self, splits: dict[str, Any], split: str, classes: list[str] | None) -> TableSource:
        """One split; `classes` are those of the other one, None: those that its own labels say."""
        import datasets

        if split not in splits:
            have = ", ".join(splits)
            raise InputError(f"{self.root} has no split {split!r}, but {have}. Set data.train and data.val.")
        table, name = splits[split], f"{self.root} {split}"
        features = table.features
        image = self._column("image", features, self.image, lambda kind: isinstance(kind, datasets.Image))
        label = self._column("label", features, self.label, lambda kind: isinstance(kind, datasets.ClassLabel))
        labels = table.select_columns(label).with_format("arrow")[:].column(label).to_numpy()
        if not np.issubdtype(labels.dtype, np.integer) or not len(labels) or labels.min() < 0:
            raise InputError(
                f"The column {label!r} of {name} does not give a label, a number from 0 on, to every picture. Choose "
                "another column with data.label, or another split with data.val."
            )
        if classes is None:
            named = isinstance(features[label], datasets.ClassLabel)
            classes = features[label].names if named else [str(n) for n in range(min(labels.max() + 1, MOST_CLASSES))]
        if labels.max() >= len(classes):
            raise InputError(
                f"{name} has the label {labels.max()}, but there are {len(classes)} classes, from 0 on. Choose another "
                "column with data.label, or other splits with data.train and data.val."
            )
        pictures = table.select_columns(image).with_format("arrow")
        return TableSource(pictures, image, labels, classes, self.channels, name)

    def _column(self, what: str, features: dict[str, Any], given: str | None, fits: Callable[[Any], bool]) -> str:
        """The column that was asked for, or the only one that fits."""
        if given is not None:
            if given not in features:
                raise InputError(f"{self.root} has no column {given!r}.{suggest(given, list(features))}")
            return given
        fitting = [name for name, kind in features.items() if fits(kind)] or [n for n in features if n == what]
        if len(fitting) != 1:
            raise InputError(
                f"Which column of {self.root} is the {what} is not clear. Set data.{what} to one of them: "
                f"{', '.join(features)}."
            )
        return fitting[0]
