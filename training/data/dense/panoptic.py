"""COCO's panoptic annotations: a file of segments, and a PNG per picture that says which segment each pixel is of."""

import logging
import os
import pickle
from pathlib import Path

import numpy as np
import torch

from backbones.errors import InputError

from ...annotation import IGNORED, Target
from ..decode import BadImageError
from .coco_json import CocoFile
from .files import AnnotatedFiles, paths_array
from .objects import Packed
from .segments import read_colours, target_of_segments

log = logging.getLogger(__name__)


class PanopticSource(AnnotatedFiles):
    """Pictures with segments, or with the map of the segments' labels; pixels of no segment are IGNORED.

    The number of a pixel's segment is R + 256 G + 256^2 B, 0 where there is none (Kirillov et al., arXiv:1801.00868;
    cocodataset.org/#format-data).

    Args:
        coco: the file of segments, with `segments_info`; the PNGs lie in the folder of its name without `.json`.
        pictures: the folder of the pictures.
        kind: "segments" or "map".

    Raises:
        InputError: there are no pictures, or an annotation refers to what is not there.
    """

    def __init__(self, coco: CocoFile, pictures: Path, kind: str, channels: int):
        def read(annotation: dict) -> tuple[int, str, bytes]:
            segments = [
                (int(s["id"]), coco.label(s["category_id"]), bool(s.get("iscrowd", 0)))
                for s in annotation["segments_info"]
            ]
            return coco.position(annotation["image_id"]), str(annotation["file_name"]), pickle.dumps(segments)

        found = coco.each("annotations", coco.annotations, read)
        numbers, names = coco.file.with_suffix(""), coco.pictures
        if not numbers.is_dir():
            raise InputError(f"{numbers} does not exist. It must hold the PNGs of the segments that {coco.file} lists.")
        positions = [position for position, _, _ in found]
        if len(set(positions)) < len(positions):
            raise InputError(
                f"{coco.file} has two annotations of the same picture. Each needs one, of all its segments."
            )
        if not positions:
            raise InputError(f"{coco.file} has no pictures with an annotation; there must be at least one.")
        if len(positions) < len(names):
            log.warning("%d of %d pictures of %s have no segments: left out", len(names) - len(positions), len(names),
                        coco.file)  # fmt: skip
        self._sizes = np.array(coco.sizes, dtype=np.int64)[positions]
        super().__init__([pictures / names[i] for i in positions], channels, coco.classes, coco.things, self._sizes)
        self._numbers = paths_array(numbers / name for _, name, _ in found)
        self._segments = Packed([packed for _, _, packed in found])
        self._file, self.kind = str(coco.file), kind

    def described(self, index: int) -> tuple[tuple[int, int], str]:
        width, height = self._sizes[index].tolist()
        return (width, height), self._file

    def target(self, index: int) -> Target:
        file = os.fsdecode(self._numbers[index])
        numbers = read_colours(file) @ np.array([1, 256, 256**2], dtype=np.int32)
        size = self.described(index)[0]
        if numbers.shape != size[::-1]:
            height, width = numbers.shape
            raise BadImageError(f"{file} has {width} x {height} pixels, but {self._file} says {size[0]} x {size[1]}")
        segments = self._segments[index]
        label_of = {0: IGNORED} | {number: label for number, label, _ in segments}
        found, places = np.unique(numbers, return_inverse=True)
        unknown = [number for number in found.tolist() if number not in label_of]
        if unknown:
            raise BadImageError(f"{file} has pixels of the segment {unknown[0]}, which {self._file} does not list")
        if self.kind == "map":
            labels = np.array([label_of[number] for number in found.tolist()], dtype=np.int16)
            return {"map": torch.from_numpy(labels[places.reshape(numbers.shape)])}
        return target_of_segments(numbers, segments, "segments")
