"""Any data set with boxes, masks, segments or maps, written as files that the readers here and other tools read."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from faster_coco_eval.core import mask as coco_mask
from PIL import Image

from backbones.errors import InputError

from ...annotation import IGNORED, Target
from ..decode import BadImageError
from .settings import DenseSource


def export_coco(objects: DenseSource, segments: DenseSource | None, folder: str | Path, split: str) -> None:
    """Write a split in COCO's format, as `data=coco_folder` reads it: pictures as PNGs, masks as run lengths.

    Args:
        objects: pictures with boxes, or with boxes and masks.
        segments: the same pictures with segments, where they are to be written too.
        folder: where `SPLIT/*.png`, `annotations/SPLIT.json`, and for segments `annotations/panoptic_SPLIT.json` and
            `annotations/panoptic_SPLIT/*.png` are put.
        split: "train" or "val".

    Raises:
        InputError: a picture or target cannot be read, or the two sources are not of the same pictures.
    """
    if segments is not None and len(segments) != len(objects):
        raise InputError(f"There are {len(objects)} pictures with objects, but {len(segments)} with segments.")
    pictures, annotations = _made(folder, split), _made(folder, "annotations")
    images, instances = [], []
    for index, image, target in _samples(objects):
        name = f"{index:06}.png"
        image.save(pictures / name)
        images.append({"id": index + 1, "file_name": name, "width": image.width, "height": image.height})
        instances += [
            {"id": len(instances) + 1 + i, "image_id": index + 1} | one for i, one in enumerate(_each(target))
        ]
    _write(annotations / f"{split}.json", images, instances, _categories(objects))
    if segments is not None:
        numbers = _made(annotations, f"panoptic_{split}")
        listed = [_write_segments(numbers, image["file_name"], i, segments) for i, image in enumerate(images)]
        _write(annotations / f"panoptic_{split}.json", images, listed, _categories(segments))


def export_maps(source: DenseSource, folder: str | Path, split: str) -> None:
    """Write a split with maps as `data=mask_folder` reads it: `images/SPLIT/*.png`, `masks/SPLIT/*.png`, `classes.txt`.

    Up to 255 classes, maps have 8 bits, and ignored pixels are 255; with more they have 16 bits, and ignored pixels are
    65535, which is to be set as `data.ignore_label`.

    Args:
        split: "train" or "val".

    Raises:
        InputError: a picture or target cannot be read.
    """
    images, masks = _made(folder, f"images/{split}"), _made(folder, f"masks/{split}")
    dtype = np.uint8 if len(source.classes) <= 255 else np.uint16
    for index, image, target in _samples(source):
        labels = target["map"].numpy()
        image.save(images / f"{index:06}.png")
        numbers = np.where(labels == IGNORED, np.iinfo(dtype).max, labels).astype(dtype)
        Image.fromarray(numbers).save(masks / f"{index:06}.png")
    (Path(folder) / "classes.txt").write_text("".join(f"{name}\n" for name in source.classes), encoding="utf-8")


def _samples(source: DenseSource) -> Iterator[tuple[int, Image.Image, Target]]:
    for index in range(len(source)):
        with _reading(source, index):
            image, target = source.picture(index).image(), source.target(index)
        yield index, image, target


@contextmanager
def _reading(source: DenseSource, index: int) -> Iterator[None]:
    try:
        yield
    except BadImageError as error:
        raise InputError(f"{source.name(index)} cannot be exported ({error}). Repair or remove it.") from error


def _each(target: Target) -> Iterator[dict]:
    """What COCO's format says of each object."""
    masks = _run_lengths(target["masks"].numpy()) if "masks" in target else None
    for i, (left, top, right, bottom) in enumerate(target["boxes"].tolist()):
        yield {
            "category_id": int(target["labels"][i]) + 1,
            "bbox": [left, top, right - left, bottom - top],
            "area": float(target["area"][i]),
            "iscrowd": int(target["crowd"][i]),
        } | ({} if masks is None else {"segmentation": masks[i]})


def _run_lengths(masks: np.ndarray) -> list[dict]:
    """Masks uint8 (N, H, W) to compressed run lengths, as text that JSON can hold."""
    if not len(masks):
        return []
    # Down the columns: the library takes the memory as it lies, and anything else silently gives other masks.
    encoded = coco_mask.encode(np.asfortranarray(masks.transpose(1, 2, 0)))
    return [{"size": list(one["size"]), "counts": one["counts"].decode()} for one in encoded]


def _write_segments(folder: Path, name: str, index: int, segments: DenseSource) -> dict:
    """Write the PNG of a picture's segments, numbered from 1 on, and return its annotation."""
    with _reading(segments, index):
        target = segments.target(index)
    numbers = np.zeros(target["masks"].shape[1:], dtype=np.int64)
    info = []
    for number, (mask, label, crowd) in enumerate(zip(target["masks"].numpy(), target["labels"], target["crowd"]), 1):
        numbers[mask > 0] = number
        info.append({"id": number, "category_id": int(label) + 1, "iscrowd": int(crowd), "area": int(mask.sum())})
    colours = np.stack([numbers >> shift & 255 for shift in (0, 8, 16)], axis=-1).astype(np.uint8)
    Image.fromarray(colours).save(folder / name)
    return {"image_id": index + 1, "file_name": name, "segments_info": info}


def _categories(source: DenseSource) -> list[dict]:
    things = source.things or [True] * len(source.classes)
    named = enumerate(zip(source.classes, things), 1)
    return [{"id": number, "name": name, "isthing": int(thing)} for number, (name, thing) in named]


def _made(folder: str | Path, part: str) -> Path:
    path = Path(folder) / part
    path.mkdir(parents=True, exist_ok=True)
    return path


def _write(file: Path, images: list[dict], annotations: list[dict], categories: list[dict]) -> None:
    content = {"images": images, "annotations": annotations, "categories": categories}
    file.write_text(json.dumps(content), encoding="utf-8")
