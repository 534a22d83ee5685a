"""Objects with boxes, and perhaps with polygons or run lengths from which masks are made."""

import logging
import pickle
from pathlib import Path

import numpy as np
import torch
from faster_coco_eval.core import mask as coco_mask
from torch import Tensor

from backbones.errors import InputError, first_line

from ...annotation import Target
from ..decode import BadImageError
from .files import AnnotatedFiles

log = logging.getLogger(__name__)

Segmentation = list[list[float]] | dict  # polygons x, y, x, y, …, or run lengths {"size", "counts"}, as in COCO's files


class Packed:
    """Many small objects as one array of bytes.

    Workers share its memory; that of a million Python objects they would copy as they count references.
    """

    def __init__(self, pickled: list[bytes]):
        self._ends = np.cumsum([0, *map(len, pickled)])
        self._bytes = np.frombuffer(b"".join(pickled), dtype=np.uint8)

    def __getitem__(self, index: int):
        return pickle.loads(self._bytes[self._ends[index] : self._ends[index + 1]])


class Objects:
    """The objects of all pictures of a split, as they are read one by one."""

    def __init__(self):
        self.owners: list[int] = []  # index of the picture
        self.labels: list[int] = []
        self.boxes: list[tuple[float, float, float, float]] = []  # left, top, right, bottom
        self.areas: list[float] = []
        self.crowd: list[bool] = []
        self.segmentations: list[bytes] = []  # pickled

    def add(
        self,
        owner: int,
        label: int,
        box: tuple[float, float, float, float],
        crowd: bool = False,
        area: float | None = None,
        segmentation: Segmentation | None = None,
    ) -> None:
        self.owners.append(owner)
        self.labels.append(label)
        self.boxes.append(box)
        self.crowd.append(crowd)
        self.areas.append(np.nan if area is None else area)
        self.segmentations.append(b"" if segmentation is None else pickle.dumps(segmentation))


class ObjectSource(AnnotatedFiles):
    """Pictures with boxes, or with boxes and masks.

    Boxes are cut off at the border of the picture; objects of which nothing is left, and with masks those without a
    segmentation, are left out, as COCO's tools do. An object without an area has that of its mask, or else of its box.

    Args:
        file: where the objects come from, for messages.
        sizes: (width, height) of each picture, in pixels.
        kind: "boxes" or "masks".

    Raises:
        InputError: there are no pictures, or none of the objects has a segmentation though masks are asked for.
    """

    def __init__(
        self,
        file: Path,
        pictures: list[Path],
        sizes: list[tuple[int, int]],
        objects: Objects,
        kind: str,
        channels: int,
        classes: list[str],
    ):
        if not pictures:
            raise InputError(f"{file} has no pictures; there must be at least one.")
        self._file, self._sizes = str(file), np.array(sizes, dtype=np.int64)
        super().__init__(pictures, channels, classes, sizes=self._sizes)
        owners = np.array(objects.owners, dtype=np.int64)
        boxes = np.array(objects.boxes, dtype=np.float64).reshape(-1, 4)
        boxes = boxes.clip(0, np.tile(self._sizes[owners], 2))
        kept = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
        if kind == "masks":
            segmented = np.array([len(packed) > 0 for packed in objects.segmentations], dtype=bool)
            if len(segmented) and not segmented.any():
                raise InputError(f"The objects of {file} have no segmentations, but the task needs masks.")
            kept &= segmented
        if not kept.all():
            which = "an empty box or no segmentation" if kind == "masks" else "an empty box"
            log.warning("%d of %d objects of %s have %s: left out", (~kept).sum(), len(kept), file, which)
        order = np.flatnonzero(kept)
        order = order[owners[order].argsort(kind="stable")]
        # The objects of picture i are those from _first[i] on, before _first[i + 1].
        self._first = np.searchsorted(owners[order], np.arange(len(sizes) + 1))
        self._boxes = boxes[order].astype(np.float32)
        self._labels = np.array(objects.labels, dtype=np.int64)[order]
        self._crowd = np.array(objects.crowd, dtype=bool)[order]
        self._areas = np.array(objects.areas, dtype=np.float32)[order]
        self._segmentations = Packed([objects.segmentations[i] for i in order]) if kind == "masks" else None

    def described(self, index: int) -> tuple[tuple[int, int], str]:
        width, height = self._sizes[index].tolist()
        return (width, height), self._file

    def target(self, index: int) -> Target:
        first, end = self._first[index : index + 2]
        fields = {"boxes": self._boxes, "labels": self._labels, "crowd": self._crowd, "area": self._areas}
        target = {name: torch.from_numpy(values[first:end].copy()) for name, values in fields.items()}
        if self._segmentations is not None:
            width, height = self._sizes[index].tolist()
            try:
                target["masks"] = decode_masks([self._segmentations[i] for i in range(first, end)], height, width)
            except (ValueError, RuntimeError, TypeError, LookupError) as error:
                raise BadImageError(f"{self._file} has a bad segmentation of it ({first_line(error)})") from error
        whole = target["masks"].sum((1, 2)) if "masks" in target else box_areas(target["boxes"])
        target["area"] = torch.where(target["area"].isnan(), whole.float(), target["area"])
        return target


def box_areas(boxes: Tensor) -> Tensor:
    """Areas (N,) of boxes (N, 4)."""
    return (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)


def decode_masks(segmentations: list[Segmentation], height: int, width: int) -> Tensor:
    """Masks uint8 (N, height, width), of the same pixels as with COCO's annToMask.

    Raises:
        ValueError, RuntimeError, TypeError, LookupError: a segmentation is none, or is of another size.
    """
    if not segmentations:
        return torch.zeros((0, height, width), dtype=torch.uint8)
    masks = coco_mask.decode([_run_lengths(segmentation, height, width) for segmentation in segmentations])
    return torch.from_numpy(np.ascontiguousarray(masks.transpose(2, 0, 1)))


def _run_lengths(segmentation: Segmentation, height: int, width: int) -> dict:
    if isinstance(segmentation, list):
        for polygon in segmentation:
            # Its outline is drawn in steps of a fifth of a pixel, for which a wild number would take all memory.
            if not (np.abs(np.array(polygon, dtype=np.float64)) <= 10 * max(height, width)).all():
                raise ValueError("a corner of a polygon is far outside of the picture, or no number")
        return coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
    if list(segmentation["size"]) != [height, width]:
        size = " x ".join(map(str, reversed(segmentation["size"])))
        raise ValueError(f"a mask of {size} pixels for a picture of {width} x {height}")
    if isinstance(segmentation["counts"], list):
        return coco_mask.frPyObjects(segmentation, height, width)
    return segmentation
