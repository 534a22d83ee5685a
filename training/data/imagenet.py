"""ImageNet-1k, and sets to evaluate its classifiers on: ReaL, V2, A, R, Sketch and C, in the folders of their release.

Labels are those of the 1000 classes. A classifier of pictures that only have some of them is asked about these alone.
"""

from collections import Counter
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from statistics import fmean
from typing import ClassVar

from timm.data import ImageNetInfo, RealLabelsImagenet
from torch import Tensor

from backbones.errors import InputError, first_line

from .imagefolder import FileSource, ImageFolder, pictures_below, subfolders
from .lists import read_class_map
from .settings import DataSettings, Source

# Top-1 errors of AlexNet, means over five severities, by which Hendrycks and Dietterich (arXiv:1903.12261) divide those
# of other networks; as published with their code.
ALEXNET_ERRORS = {
    "gaussian_noise": 0.886428,
    "shot_noise": 0.894468,
    "impulse_noise": 0.922640,
    "defocus_blur": 0.819880,
    "glass_blur": 0.826268,
    "motion_blur": 0.785948,
    "zoom_blur": 0.798360,
    "snow": 0.866816,
    "frost": 0.826572,
    "fog": 0.819324,
    "brightness": 0.564592,
    "contrast": 0.853204,
    "elastic_transform": 0.646056,
    "pixelate": 0.717840,
    "jpeg_compression": 0.606500,
}
SEVERITIES = "12345"


class SubsetSource(FileSource):
    """Pictures that only have some of the classes, and a classifier knows that: others are never its answer."""

    label_subset: list[int]


class RealSource(FileSource):
    """ReaL: several labels can be right; the target is the first."""

    def __init__(self, folder: Path, paths: list[str], labels: list[list[int]], classes: list[str], channels: int):
        super().__init__(folder, paths, [valid[0] for valid in labels], classes, channels)
        self._valid = labels

    def valid_labels(self, index: int) -> list[int]:
        return self._valid[index]


class CorruptedSource(FileSource):
    """ImageNet-C: an error per corruption and severity."""

    def metrics(self, indices: Tensor, right: Tensor) -> dict:
        """Top-1 errors of pictures (N,), given whether each was classified rightly (N,).

        Returns:
            errors, by corruption and severity; mean_error, over the corruptions of the paper that are there; and mce
            where all of these are: the mean of their errors relative to AlexNet's.
        """
        all_of, wrong_of = Counter(), Counter()
        for index, hit in zip(indices.tolist(), right.tolist()):
            group = tuple(self.name(index).split("/")[-4:-2])
            all_of[group] += 1
            wrong_of[group] += not hit
        errors: dict[str, dict[str, float]] = {}
        for corruption, severity in sorted(all_of):
            group = corruption, severity
            errors.setdefault(corruption, {})[severity] = wrong_of[group] / all_of[group]
        means = {name: fmean(errors[name].values()) for name in ALEXNET_ERRORS if name in errors}
        metrics: dict = {"errors": errors}
        if means:
            metrics["mean_error"] = fmean(means.values())
        if all(set(errors.get(name, ())) == set(SEVERITIES) for name in ALEXNET_ERRORS):
            metrics["mce"] = fmean(means[name] / error for name, error in ALEXNET_ERRORS.items())
        return metrics


@dataclass
class ImageNet(ImageFolder):
    """ImageNet-1k itself, in folders `train` and `val`; its classes are known, so `val` is enough to evaluate."""

    name: str = "imagenet"

    def evaluation(self) -> Source:
        return self._source("val", *self._classes())

    def _classes(self) -> tuple[dict[str, int], list[str]]:
        if self.class_map is not None:
            return super()._classes()
        folders = ImageNetInfo().label_names()
        return {folder: label for label, folder in enumerate(folders)}, folders

    def _check_folders(self, folder: Path, labels: dict[str, int]) -> None:
        unknown = [name for name in subfolders(folder) if name not in labels]
        if unknown:
            raise InputError(
                f"{folder} has the folder(s) {', '.join(unknown[:5])}, which are no classes of ImageNet-1k (n01440764 "
                "to n15075141). Remove them, or use data=imagefolder, for which every folder is a class."
            )


@dataclass
class ImageNetEvaluation(DataSettings):
    """What these sets have in common.

    Args:
        root: the folder of the set.
        class_map: the class map that the classifier was trained with, if any (`lists.read_class_map` describes it);
            it must have the folders of all 1000 classes. Without it, classes are named by their folders (n01440764).
    """

    root: str | None = None
    class_map: str | None = None

    layout: ClassVar[str] = ""  # of the folder, for messages

    def splits(self) -> tuple[Source, Source]:
        raise InputError(
            f"data={self.name} is there for evaluation alone: python eval.py run=PATH data={self.name} data.root=PATH."
        )

    def evaluation(self) -> FileSource:
        source = self._source(*self._classes())
        if len(source) == 0:
            raise InputError(f"There are no pictures in {self.root}: data={self.name} expects {self.layout} there.")
        return source

    def _source(self, labels: dict[str, int], classes: list[str]) -> FileSource:
        """The pictures, given the label of each folder, by WordNet's number, and the names of all classes."""
        return FileSource.of_folders(self._folder(), self._known(labels), classes, self.channels)

    def _classes(self) -> tuple[dict[str, int], list[str]]:
        folders = ImageNetInfo().label_names()
        names = {folder: folder for folder in folders} if self.class_map is None else read_class_map(self.class_map)
        absent = [folder for folder in folders if folder not in names]
        if absent:
            raise InputError(
                f"The class map {self.class_map} lacks {len(absent)} of ImageNet's 1000 classes, {absent[0]} for one, "
                f"so data={self.name} cannot be evaluated with it. Leave data.class_map out, or complete it."
            )
        position = {folder: label for label, folder in enumerate(names)}
        return {folder: position[folder] for folder in folders}, list(names.values())

    def _folder(self) -> Path:
        if self.root is None or not Path(self.root).expanduser().is_dir():
            given = "data.root is not given" if self.root is None else f"The data folder {self.root} does not exist"
            raise InputError(f"{given}. data={self.name} expects {self.layout} in data.root.")
        return Path(self.root).expanduser()

    def _known(self, labels: dict[str, int]) -> dict[str, int]:
        """Those of the labels whose folder is there, in their order; another folder is an error."""
        found = set(subfolders(self._folder()))
        unknown = sorted(found - set(labels))
        if unknown:
            raise InputError(
                f"{self.root} has the folder(s) {', '.join(unknown[:5])}, which are no classes of {self.name}: it "
                f"expects {self.layout}. Remove them, or set data.root to the folder that holds the classes."
            )
        return {name: label for name, label in labels.items() if name in found}


@dataclass
class ImageNetReal(ImageNetEvaluation):
    """ImageNet's validation pictures with the labels of Beyer et al. (arXiv:2006.07159).

    Several labels can be right, and pictures without any are left out.

    Args:
        labels: the published real.json; timm's copy of it where this is not given.
    """

    name: str = "imagenet_real"
    labels: str | None = None
    layout: ClassVar[str] = "ILSVRC2012_val_00000001.JPEG to …50000.JPEG, in subfolders or not,"

    def _source(self, labels: dict[str, int], classes: list[str]) -> RealSource:
        to_label = list(labels.values())
        try:
            real = RealLabelsImagenet(range(50000), self.labels).real_labels
            numbered = {name: [to_label[i] for i in valid] for name, valid in real.items()}
        except (OSError, ValueError, AssertionError, TypeError, LookupError) as error:
            raise InputError(
                f"{self.labels} is not the published real.json, a list with a list of labels for each of ImageNet's "
                f"50000 validation pictures ({first_line(error)})."
            ) from error
        folder = self._folder()
        folder = folder / "val" if (folder / "val").is_dir() else folder
        paths, found = pictures_below(folder), []
        for path in paths:
            if Path(path).name not in numbered:
                raise InputError(
                    f"{folder / path} is none of ImageNet's validation pictures by its name; data={self.name} expects "
                    f"{self.layout} in data.root or data.root/val."
                )
            found.append(numbered[Path(path).name])
        kept = [(path, valid) for path, valid in zip(paths, found) if valid]
        return RealSource(folder, [p for p, _ in kept], [valid for _, valid in kept], classes, self.channels)


@dataclass
class ImageNetV2(ImageNetEvaluation):
    """New pictures for the 1000 classes (Recht et al., arXiv:1902.10811), in folders 0 to 999."""

    name: str = "imagenet_v2"
    layout: ClassVar[str] = "folders 0 to 999, numbers of the classes,"

    def _source(self, labels: dict[str, int], classes: list[str]) -> FileSource:
        # By number: alphabetically, 10 would come before 2.
        return super()._source({str(number): label for number, label in enumerate(labels.values())}, classes)


@dataclass
class ImageNetSketch(ImageNetEvaluation):
    """Sketches of the 1000 classes (Wang et al., arXiv:1905.13549)."""

    name: str = "imagenet_sketch"
    layout: ClassVar[str] = "folders n01440764 to n15075141"


@dataclass
class ImageNetA(ImageNetEvaluation):
    """Natural pictures that are hard for ResNet-50, of 200 of the classes (Hendrycks et al., arXiv:1907.07174)."""

    name: str = "imagenet_a"
    layout: ClassVar[str] = "200 folders from n01498041 on"

    def _source(self, labels: dict[str, int], classes: list[str]) -> SubsetSource:
        folders = (resources.files("timm.data") / f"_info/{self.name}_synsets.txt").read_text().split()
        subset = {folder: labels[folder] for folder in folders}
        source = SubsetSource.of_folders(self._folder(), self._known(subset), classes, self.channels)
        source.label_subset = list(subset.values())
        return source


@dataclass
class ImageNetR(ImageNetA):
    """Renditions, such as paintings and toys, of 200 of the classes (Hendrycks et al., arXiv:2006.16241)."""

    name: str = "imagenet_r"
    layout: ClassVar[str] = "200 folders from n01443537 on"


@dataclass
class ImageNetC(ImageNetEvaluation):
    """Corrupted validation pictures (Hendrycks and Dietterich, arXiv:1903.12261), which are cropped already."""

    name: str = "imagenet_c"
    crop_pct: float = 1.0
    layout: ClassVar[str] = "CORRUPTION/SEVERITY/n01440764, such as fog/1/n01440764,"

    def _source(self, labels: dict[str, int], classes: list[str]) -> CorruptedSource:
        folder = self._folder()
        # The downloads are tars of categories, whose folders some keep: noise/gaussian_noise/1.
        found = [*folder.glob(f"*/[{SEVERITIES}]"), *folder.glob(f"*/*/[{SEVERITIES}]")]
        pairs = []
        for part in sorted(path.relative_to(folder) for path in found if path.is_dir()):
            for path in pictures_below(folder, str(part)):
                name = Path(path).relative_to(part).parent
                if str(name) not in labels:
                    raise InputError(
                        f"{folder / path} is in no folder of a class: expected {self.layout} in data.root."
                    )
                pairs.append((path, labels[str(name)]))
        return CorruptedSource(folder, [p for p, _ in pairs], [label for _, label in pairs], classes, self.channels)
