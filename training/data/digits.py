"""The handwritten digits that ship inside scikit-learn: 1,797 real pictures of 8 x 8 pixels."""

from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from .decode import Picture
from .settings import DataSettings, Source

SPLIT_SEED = 0  # of the 80/20 split, which is the same in every run


class DigitsSource:
    """One split, enlarged to `img_size` once."""

    def __init__(self, pixels: np.ndarray, labels: np.ndarray, numbers: np.ndarray, img_size: int):
        self.classes = [str(digit) for digit in range(10)]
        self._labels, self._numbers = labels, numbers
        pictures = (Image.fromarray(p) for p in pixels)
        self._images = [p.resize((img_size, img_size), Image.Resampling.BICUBIC) for p in pictures]

    def __len__(self) -> int:
        return len(self._images)

    def picture(self, index: int) -> Picture:
        return Picture(self._images[index], channels=1)

    def target(self, index: int) -> int:
        return int(self._labels[index])

    def name(self, index: int) -> str:
        return f"digit {self._numbers[index]} of scikit-learn"


@dataclass
class Digits(DataSettings):
    """1,437 training and 360 validation pictures, stratified, grey-scale, white on black."""

    name: str = "digits"
    img_size: int = 32
    channels: int = 1
    crop_pct: float = 1.0
    mean: list[float] = field(default_factory=lambda: [0.3])
    std: list[float] = field(default_factory=lambda: [0.35])
    workers: int = 0

    def splits(self) -> tuple[Source, Source]:
        train, val = (DigitsSource(*part, self.img_size) for part in digits())
        return train, val


def digits() -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Pixels uint8 (N, 8, 8), labels (N,) and numbers (N,) of the training digits, and of the validation digits."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    pixels, labels = load_digits(return_X_y=True)
    pixels = (pixels * 255 / 16).round().astype(np.uint8).reshape(-1, 8, 8)
    numbers = np.arange(len(labels))
    parts = train_test_split(numbers, test_size=0.2, stratify=labels, random_state=SPLIT_SEED)
    return [(pixels[part], labels[part], part) for part in parts]
