"""Pictures with labels, by the batch."""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from .label_maps import label_map_of, read_label_map
from .settings import Source
from .transforms import Transform


class Batch(NamedTuple):
    """Pictures uint8 (B, channels, H, W), labels (B,), and their indices in the source (B,).

    With labels for every token also label_maps (B, 2, k, h, w), the scores and classes of the k likeliest classes all
    over each whole picture, and crops (B, 5): what of it is seen, top, left, height and width as shares of the picture,
    and 1 if it is flipped.
    """

    images: Tensor
    targets: Tensor
    indices: Tensor
    label_maps: Tensor | None = None
    crops: Tensor | None = None


class LabelledPictures:
    """Samples of a source: transformed pictures and their labels.

    Args:
        label_maps: folder of `CLASS/NAME.pt`, labels for every token of a training picture `CLASS/NAME.*`.
    """

    def __init__(self, source: Source, transform: Transform, label_maps: str | None = None):
        self.source, self.transform = source, transform
        self.label_maps = Path(label_maps) if label_maps else None

    def read(self, index: int) -> tuple:
        """(picture, label, index), and with label maps also the map and the crop. Raises BadImageError."""
        picture = self.source.picture(index)
        if self.label_maps is None:
            return self.transform(picture), self.source.target(index), index
        image, crop = self.transform.with_crop(picture)
        label_map = read_label_map(label_map_of(self.source.name(index), self.label_maps))
        return image, self.source.target(index), index, label_map, crop

    def collate(self, samples: list[tuple]) -> Batch:
        images, targets, indices, *maps_and_crops = zip(*samples)
        # Transforms give pictures that lie channels last in memory: stacked so, nothing has to be moved about.
        stacked = torch.stack([image.movedim(0, -1) for image in images]).movedim(-1, 1)
        return Batch(stacked, torch.tensor(targets), torch.tensor(indices), *map(torch.stack, maps_and_crops))
