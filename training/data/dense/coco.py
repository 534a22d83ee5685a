"""COCO, LVIS, and anybody's own data in COCO's format: the same files at different places."""

from dataclasses import dataclass
from pathlib import Path

from backbones.errors import InputError

from .coco_json import CocoFile, read_objects
from .files import AnnotatedFiles, check_kind
from .objects import ObjectSource
from .panoptic import PanopticSource
from .settings import DenseSettings, DenseSource


@dataclass
class CocoFolder(DenseSettings):
    """Your own pictures, with annotations in COCO's format (cocodataset.org/#format-data).

    Boxes and masks come from the files of instances, segments and maps from the panoptic ones. Relative paths are
    taken from `root`, where it is given.

    Args:
        root: the folder that holds all below.
        train_json, val_json: files of instances.
        train_images, val_images: folders that the names of the pictures are relative to.
        train_panoptic, val_panoptic: files of segments; their PNGs lie in the folder of the same name without `.json`.
    """

    name: str = "coco_folder"
    root: str | None = None
    train_json: str = "annotations/train.json"
    val_json: str = "annotations/val.json"
    train_images: str = "train"
    val_images: str = "val"
    train_panoptic: str | None = "annotations/panoptic_train.json"
    val_panoptic: str | None = "annotations/panoptic_val.json"

    def splits(self, kind: str) -> tuple[DenseSource, DenseSource]:
        train, val = self._source("train", kind), self._source("val", kind)
        if (train.classes, train.things) != (val.classes, val.things):
            differing = sorted(set(train.classes) ^ set(val.classes)) or ["their order, or which are things"]
            raise InputError(
                f"{self._file('train', kind)} and {self._file('val', kind)} must have the same categories, but differ "
                f"in {', '.join(differing[:5])}. Give both files all categories, with the same ids."
            )
        return train, val

    def evaluation(self, kind: str) -> DenseSource:
        return self._source("val", kind)

    def _file(self, split: str, kind: str) -> Path:
        return self._path(f"{split}_json" if kind in ("boxes", "masks") else f"{split}_panoptic")

    def _path(self, option: str) -> Path:
        path = Path(self.root or "").expanduser() / Path(getattr(self, option)).expanduser()
        if not path.exists():
            raise InputError(
                f"{path} does not exist. Set data.root to the folder that holds {getattr(self, option)}, or "
                f"data.{option} to where it is."
            )
        return path

    def _source(self, split: str, kind: str) -> AnnotatedFiles:
        panoptic = ("segments", "map") if getattr(self, f"{split}_panoptic") else ()
        check_kind(self, kind, ("boxes", "masks", *panoptic))
        file, pictures = self._file(split, kind), self._path(f"{split}_images")
        coco = CocoFile(file)
        if kind in ("segments", "map"):
            return PanopticSource(coco, pictures, kind, self.channels)
        paths = [pictures / name for name in coco.pictures]
        return ObjectSource(file, paths, coco.sizes, read_objects(coco, kind), kind, self.channels, coco.classes)


@dataclass
class Coco(CocoFolder):
    """COCO 2017 (Lin et al., arXiv:1405.0312), as it is unpacked from its official files.

    80 classes of objects; for segments and maps, from the panoptic annotations, 133 of things and stuff.

    Args:
        root: the folder that holds `train2017`, `val2017` and `annotations`.
    """

    name: str = "coco"
    train_json: str = "annotations/instances_train2017.json"
    val_json: str = "annotations/instances_val2017.json"
    train_images: str = "train2017"
    val_images: str = "val2017"
    train_panoptic: str | None = "annotations/panoptic_train2017.json"
    val_panoptic: str | None = "annotations/panoptic_val2017.json"


@dataclass
class Lvis(CocoFolder):
    """LVIS v1 (Gupta et al., arXiv:1908.03195): COCO's pictures with boxes and masks of 1203 classes.

    Not every class is annotated in every picture. LVIS's own average precision goes by lists of which are
    (`neg_category_ids`, `not_exhaustive_category_ids`); here these are not read, and all count as if they were.

    Args:
        root: the folder that holds `train2017` and `val2017`, both of which either split has pictures of.
    """

    name: str = "lvis"
    train_json: str = "annotations/lvis_v1_train.json"
    val_json: str = "annotations/lvis_v1_val.json"
    train_images: str = "."
    val_images: str = "."
    train_panoptic: str | None = None
    val_panoptic: str | None = None
