"""Files of boxes, masks and maps, as data sets have them, for the tests of their readers."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from training.data.dense.coco import CocoFolder

CATEGORIES = [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}]  # with gaps, out of order


def save(path: Path, pixels, palette: bool = False, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.asarray(pixels, dtype=np.uint8 if palette else None)
    image = Image.fromarray(pixels)
    if palette:
        image = Image.frombytes("P", image.size, pixels.tobytes())
        image.putpalette([value // 3 for value in range(767, -1, -1)])
    image.save(path, **options)
    return path


def picture(path: Path, width: int = 40, height: int = 30, **options) -> Path:
    return save(path, np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8), **options)


def write_json(path: Path, **content) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def image(number: int, width: int = 40, height: int = 30, **others) -> dict:
    return {"id": number, "width": width, "height": height, "file_name": f"{number}.png"} | others


def thing(image_id: int, box: list, category: int = 3, **others) -> dict:
    return {"id": 1, "image_id": image_id, "category_id": category, "bbox": box} | others


def own(folder: Path, annotations: list, images: list | None = None, categories: list = CATEGORIES) -> CocoFolder:
    """A folder of one's own, with the same train and val."""
    images = [image(1)] if images is None else images
    for split in ("train", "val"):
        (folder / split).mkdir(exist_ok=True)
        write_json(folder / f"annotations/{split}.json", images=images, annotations=annotations, categories=categories)
    return CocoFolder(root=str(folder))
