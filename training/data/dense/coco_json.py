"""COCO's files of annotations: JSON with `images`, `annotations` and `categories`."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from backbones.errors import InputError, first_line

from .objects import Objects, Segmentation


class CocoFile:
    """What a file holds, with positions for the ids of pictures and labels for those of categories.

    Labels are 0, 1, … in the order of the categories' ids, which may have gaps.

    Raises:
        InputError: the file cannot be read, is of another form, or has an id twice.
    """

    def __init__(self, file: Path):
        self.file, content = file, _load(file)
        images, self.annotations = content["images"], content["annotations"]
        sized = self.each("images", images, lambda image: (image["id"], (int(image["width"]), int(image["height"]))))
        self.sizes: list[tuple[int, int]] = [size for _, size in sized]  # (width, height) of each picture
        self.pictures: list[str] = self.each("images", images, _picture)
        self._positions = self._numbered("image", [number for number, _ in sized])
        named = self.each(
            "categories", content["categories"], lambda c: (int(c["id"]), str(c["name"]), c.get("isthing", 1))
        )
        named.sort()
        self.classes = [name for _, name, _ in named]
        self.things = [bool(thing) for _, _, thing in named]
        self._labels = self._numbered("category", [number for number, _, _ in named])

    def position(self, image_id: Any) -> int:
        """Which of the pictures has this id."""
        return self._known("image", image_id, self._positions)

    def label(self, category_id: Any) -> int:
        """Which label stands for this category."""
        return self._known("category", int(category_id), self._labels)

    def each(self, what: str, entries: Iterable, read: Callable[[dict], Any]) -> list:
        """What `read` makes of each entry. Raises InputError, which names the entry, where a part of it is missing."""
        results = []
        for number, entry in enumerate(entries):
            try:
                results.append(read(entry))
            except InputError:
                raise
            except (LookupError, TypeError, ValueError, AttributeError) as error:
                reason = f"there is no {error}" if isinstance(error, KeyError) else first_line(error)
                raise InputError(
                    f"{self.file} is not as COCO's files of annotations are: {what}[{number}] is {entry!s:.100} "
                    f"({reason})."
                ) from error
        return results

    def _numbered(self, what: str, numbers: list) -> dict[Any, int]:
        positions = {number: position for position, number in enumerate(numbers)}
        if len(positions) < len(numbers):
            twice = next(number for position, number in enumerate(numbers) if positions[number] != position)
            raise InputError(f"{self.file} has the {what} id {twice} twice. Every {what} needs an id of its own.")
        return positions

    def _known(self, what: str, number: Any, positions: dict[Any, int]) -> int:
        try:
            return positions[number]
        except KeyError as error:
            raise InputError(
                f"{self.file} has an annotation of the {what} id {number}, but no {what} with this id. Correct the "
                "annotation, or add what it refers to."
            ) from error


def read_objects(coco: CocoFile, kind: str) -> Objects:
    """The objects of a file of instances, for boxes or masks. Their segmentations are taken out of `coco`."""
    objects = Objects()

    def read(annotation: dict) -> None:
        left, top, width, height = map(float, annotation["bbox"])
        # Out of the annotation: the polygons of a large data set take gigabytes until they are packed.
        segmentation, area = annotation.pop("segmentation", None), annotation.get("area")
        objects.add(
            coco.position(annotation["image_id"]),
            coco.label(annotation["category_id"]),
            (left, top, left + width, top + height),
            bool(annotation.get("iscrowd", 0)),
            None if area is None else float(area),
            _usable(segmentation) if kind == "masks" else None,
        )

    coco.each("annotations", coco.annotations, read)
    return objects


def _picture(image: dict) -> str:
    """The path of a picture in its folder; LVIS gives only the URL, of which the last folder and the name count."""
    return str(image["file_name"]) if "file_name" in image else "/".join(image["coco_url"].split("/")[-2:])


def _usable(segmentation: Segmentation | None) -> Segmentation | None:
    """Polygons that have an area, or run lengths."""
    if isinstance(segmentation, dict):
        return segmentation
    return [polygon for polygon in segmentation or [] if len(polygon) >= 6 and len(polygon) % 2 == 0] or None


def _load(file: Path) -> dict[str, list]:
    form = "a COCO file of annotations, JSON with lists of images, annotations and categories"
    try:
        with open(file, encoding="utf-8-sig") as opened:
            content = json.load(opened)
    except OSError as error:
        raise InputError(f"{file} cannot be read ({first_line(error)}); expected {form}.") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file} is no JSON ({first_line(error)}); expected {form}.") from error
    for part in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(part), list):
            raise InputError(f"{file} has no list of {part}; expected {form}.")
    return content
