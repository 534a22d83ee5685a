"""Scenes made of the handwritten digits inside scikit-learn: real shapes, with boxes, masks and maps that are exact."""

from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from ...annotation import Target
from ..decode import Picture
from ..digits import digits
from .geometry import boxes_around
from .settings import DenseSettings, DenseSource

TEXTURES = ("stripes", "checks", "grain")
CLASSES = [*map(str, range(10)), *TEXTURES]
LEAST_SEEN = 0.85  # share of an object's pixels that others must leave visible


class Scene(NamedTuple):
    """A composed picture.

    Args:
        image: (height, width, 3), from 0 to 1.
        masks: bool (N, height, width), the visible pixels of each digit.
        labels: (N,) of the digits.
        background: (height, width), the label of the texture at each pixel, also behind digits.
    """

    image: np.ndarray
    masks: np.ndarray
    labels: np.ndarray
    background: np.ndarray


class ScenesSource:
    """One split: scene i is a function of (seed, split, i) and the settings.

    Args:
        shapes: uint8 (N, 8, 8), the digits to choose from; labels: which these are.
    """

    wide = None

    def __init__(self, settings: "DigitScenes", kind: str, split: str, shapes: np.ndarray, labels: np.ndarray):
        self.settings, self.kind, self.split = settings, kind, split
        self.classes = CLASSES if kind in ("segments", "map") else CLASSES[:10]
        self.things = [label < 10 for label in range(len(CLASSES))] if kind == "segments" else None
        self._shapes, self._labels = shapes, labels
        self._scene = lru_cache(maxsize=2)(self._compose)  # a picture and its target are asked for by themselves

    def __len__(self) -> int:
        return self.settings.train_scenes if self.split == "train" else self.settings.val_scenes

    def name(self, index: int) -> str:
        return f"scene {index} of {self.split}"

    def picture(self, index: int) -> Picture:
        image = Image.fromarray((255 * self._scene(index).image).round().astype(np.uint8))
        return Picture(image if self.settings.channels == 3 else image.convert("L"), self.settings.channels)

    def target(self, index: int) -> Target:
        scene = self._scene(index)
        masks, labels = torch.from_numpy(scene.masks), torch.from_numpy(scene.labels)
        if self.kind == "map":
            label_map = scene.background.copy()
            for mask, label in zip(scene.masks, scene.labels):
                label_map[mask] = label
            return {"map": torch.from_numpy(label_map)}
        if self.kind == "segments":
            behind = torch.from_numpy(scene.background).masked_fill(masks.any(0), -1)
            stuff = behind.unique()
            stuff = stuff[stuff >= 0].long()
            masks = torch.cat([masks, behind == stuff[:, None, None]])
            labels = torch.cat([labels, stuff])
        target = {"labels": labels, "crowd": torch.zeros(len(labels), dtype=torch.bool)}
        if self.kind in ("boxes", "masks"):
            target |= {"boxes": boxes_around(masks.to(torch.uint8)).float(), "area": masks.sum((1, 2)).float()}
        return target if self.kind == "boxes" else target | {"masks": masks.to(torch.uint8)}

    def _compose(self, index: int) -> Scene:
        settings = self.settings
        rng = np.random.default_rng([settings.seed, self.split == "train", index])
        height, width = settings.size
        background = _regions(rng, height, width)
        image = np.zeros((height, width, 3), dtype=np.float32)
        for texture in np.unique(background):
            at = background == texture
            image[at] = _texture(rng, TEXTURES[texture], height, width)[at]

        masks, whole, labels = np.zeros((0, height, width), dtype=bool), [], []
        for _ in range(rng.integers(*settings.objects, endpoint=True)):
            for _ in range(20):  # tries to find a place where it hides no other
                chosen = rng.integers(len(self._shapes))
                place, opacity = self._placed(rng, self._shapes[chosen])
                mask = np.zeros((height, width), dtype=bool)
                mask[place] = opacity >= 0.5
                visible = masks & ~mask
                if all(seen >= LEAST_SEEN * pixels for seen, pixels in zip(visible.sum((1, 2)), whole)):
                    masks = np.concatenate([visible, mask[None]])
                    whole.append(mask.sum())
                    labels.append(self._labels[chosen])
                    image[place] += opacity[..., None] * (_ink(rng, image[mask].mean(-1)) - image[place])
                    break
        image += settings.noise * rng.standard_normal((height, width, 1), dtype=np.float32)
        return Scene(image.clip(0, 1), masks, np.array(labels, dtype=np.int64), (background + 10).astype(np.int16))

    def _placed(self, rng: np.random.Generator, shape: np.ndarray) -> tuple[tuple[slice, slice], np.ndarray]:
        """A rectangle somewhere in the picture, and the opacity there of a digit of random scale and rotation."""
        height, width = self.settings.size
        side = round(rng.uniform(*self.settings.scale))
        degrees = rng.uniform(-self.settings.degrees, self.settings.degrees)
        digit = Image.fromarray(shape).resize((side, side), Image.Resampling.BICUBIC)
        digit = digit.rotate(degrees, Image.Resampling.BICUBIC, expand=True)
        digit = digit.crop(digit.getbbox())
        top, left = rng.integers(height - digit.height + 1), rng.integers(width - digit.width + 1)
        # Sixteen grey levels of eight pixels, enlarged, are a blur; so steepened, the edge is where half of it is.
        opacity = ((np.asarray(digit, dtype=np.float32) / 255 - 0.3) / 0.4).clip(0, 1)
        return (slice(top, top + digit.height), slice(left, left + digit.width)), opacity


def _regions(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Which texture each pixel has, uint8 (height, width): one side of a random line has one, the other another."""
    y, x = np.ogrid[:height, :width]
    angle = rng.uniform(0, 2 * np.pi)
    side = (x - rng.uniform(0.2, 0.8) * width) * np.cos(angle) + (y - rng.uniform(0.2, 0.8) * height) * np.sin(angle)
    one, other = rng.choice(len(TEXTURES), 2, replace=False)
    return np.where(side > 0, one, other).astype(np.uint8)


def _texture(rng: np.random.Generator, name: str, height: int, width: int) -> np.ndarray:
    """A texture between two random colours that are not far apart, (height, width, 3)."""
    y, x = np.ogrid[:height, :width]
    if name == "grain":
        coarse = Image.fromarray(rng.integers(0, 256, (height // 4 + 1, width // 4 + 1), dtype=np.uint8))
        pattern = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)) / 255
    else:
        angle, period = rng.uniform(0, np.pi), rng.uniform(6, 14)
        along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
        pattern = along // (period / 2) % 2
        pattern = pattern if name == "stripes" else (pattern + across // (period / 2)) % 2
    colour = rng.uniform(0.1, 0.9) + rng.uniform(-0.1, 0.1, 3).astype(np.float32)
    return colour + rng.uniform(0.12, 0.26) * (pattern[..., None] - 0.5)


def _ink(rng: np.random.Generator, behind: np.ndarray) -> np.ndarray:
    """A colour that is clearly lighter or clearly darker than the lightness of most pixels behind, (N,)."""
    darkest, lightest = np.quantile(behind, (0.1, 0.9)) if len(behind) else (0.0, 0.0)
    below, above = darkest, 1 - lightest
    lighter = rng.random() < 0.5 if min(below, above) > 0.4 else above > below
    contrast = max(rng.uniform(0.6, 1.0) * (above if lighter else below), 0.4)
    return (lightest + contrast if lighter else darkest - contrast) + rng.uniform(-0.1, 0.1, 3)


@dataclass
class DigitScenes(DenseSettings):
    """Digits at random places, scales, angles and contrasts, some before others, on two textures. Nothing to download.

    Validation scenes are of other digits, by the split of `data=digits`. Classes: the digits; for maps and segments
    also the textures, of which nobody counts how many there are.

    Args:
        size: height and width, in pixels.
        objects: least and most digits in a scene.
        scale: range of the side of a digit's square before it is turned, in pixels.
        degrees: most that it is turned, either way.
        noise: standard deviation of the noise on every pixel, of values from 0 to 1.
        train_scenes, val_scenes: how many there are.
        seed: of all that is random in them.
    """

    name: str = "digit_scenes"
    img_size: int = 64
    channels: int = 1
    mean: list[float] = field(default_factory=lambda: [0.5])
    std: list[float] = field(default_factory=lambda: [0.25])
    workers: int = 1
    size: list[int] = field(default_factory=lambda: [64, 96])
    objects: list[int] = field(default_factory=lambda: [2, 4])
    scale: list[float] = field(default_factory=lambda: [24.0, 42.0])
    degrees: float = 15.0
    noise: float = 0.02
    train_scenes: int = 2000
    val_scenes: int = 200
    seed: int = 0

    def _rules(self) -> dict[str, bool]:
        ranges = (self.objects, self.scale)
        return super()._rules() | {
            "size needs a height and a width of at least 16": len(self.size) == 2 and min(self.size) >= 16,
            "objects and scale need a least and a most, of at least 0 objects and 8 pixels": all(
                len(pair) == 2 and pair[0] <= pair[1] for pair in ranges
            )
            and self.objects[0] >= 0
            and self.scale[0] >= 8,
            "scale must leave room in data.size to turn a digit": max(self.scale) * 1.5 <= min(self.size),
            "noise, seed and degrees must not be negative": min(self.noise, self.seed, self.degrees) >= 0,
            "train_scenes and val_scenes must be at least 1": min(self.train_scenes, self.val_scenes) >= 1,
        }

    def splits(self, kind: str) -> tuple[DenseSource, DenseSource]:
        return tuple(ScenesSource(self, kind, split, *part[:2]) for split, part in zip(("train", "val"), digits()))
