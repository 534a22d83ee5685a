"""Pictures of numbers, one for every pixel, to what they stand for."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image

from backbones.errors import first_line

from ...annotation import Target
from ..decode import BadImageError
from .geometry import boxes_around

T = TypeVar("T")
NUMBERS = ("1", "L", "P", "I", "I;16", "I;16B", "I;16L")  # Pillow's modes of one number per pixel; P: of the palette


def opened(file: str | Path, read: Callable[[Image.Image], T]) -> T:
    """What `read` makes of a picture. Raises BadImageError, which names the file, where that fails."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)  # as in `Picture`
            with Image.open(file) as image:
                return read(image)
    except BadImageError:
        raise
    except Exception as error:  # Pillow's readers let any error of parsing a damaged file through
        reason = first_line(error)
        raise BadImageError(reason if str(file) in reason else f"{file}: {reason}") from error


def size_of(file: str | Path) -> tuple[int, int]:
    """(width, height) in pixels, of which only the first bytes are read."""
    return opened(file, lambda image: image.size)


def read_numbers(file: str | Path) -> np.ndarray:
    """The number of every pixel, int32 (H, W): indices, of a palette too, not colours.

    Raises:
        BadImageError: the file cannot be read, or its pixels are colours.
    """

    def read(image: Image.Image) -> np.ndarray:
        if image.mode not in NUMBERS:
            raise BadImageError(f"{file} has colours (mode {image.mode}), but a map has one number per pixel")
        return np.array(image).astype(np.int32)

    return opened(file, read)


def read_colours(file: str | Path) -> np.ndarray:
    """Red, green and blue of every pixel, int32 (H, W, 3), in which some formats hide numbers.

    Raises:
        BadImageError: the file cannot be read, or its pixels are no such colours.
    """

    def read(image: Image.Image) -> np.ndarray:
        if image.mode not in ("RGB", "RGBA"):
            raise BadImageError(f"{file} has one number per pixel (mode {image.mode}), but three are expected")
        return np.array(image)[..., :3].astype(np.int32)

    return opened(file, read)


def target_of_segments(numbers: np.ndarray, segments: list[tuple[int, int, bool]], kind: str) -> Target:
    """A target of boxes, masks or segments.

    Boxes reach from the left and top edges of the outermost pixels to the right and bottom edges; areas are the pixels.

    Args:
        numbers: which segment each pixel is of, (H, W).
        segments: number, label and crowd of those that are asked for; those without a pixel are left out.
    """
    values, labels, crowd = (list(part) for part in zip(*segments)) if segments else ([], [], [])
    masks = torch.from_numpy(numbers == np.array(values, dtype=numbers.dtype)[:, None, None])
    area = masks.sum((1, 2))
    seen = area > 0
    masks = masks[seen].to(torch.uint8)
    target = {
        "labels": torch.tensor(labels, dtype=torch.int64)[seen],
        "crowd": torch.tensor(crowd, dtype=torch.bool)[seen],
    }
    if kind != "segments":
        target |= {"boxes": boxes_around(masks).float(), "area": area[seen].float()}
    return target if kind == "boxes" else target | {"masks": masks}
