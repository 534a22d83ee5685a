"""Labels for every token, from maps of scores that a teacher left on disk (token labelling, arXiv:2104.10858).

The published maps are files `CLASS/NAME.pt` beside the pictures' own folders: half-precision tensors (2, k, h, w) with
the k highest scores of each place and their classes. A map is of the whole picture, so it is cropped and flipped as the
picture is.
"""

from pathlib import Path

import torch
from torch import Tensor
from torchvision.ops import roi_align

from backbones.errors import InputError, first_line


def read_label_map(path: Path) -> Tensor:
    """The scores and classes of one picture, (2, k, h, w). Raises InputError where there is no such file."""
    try:
        label_map = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises a dozen kinds
        raise InputError(f"The label map {path} cannot be read ({first_line(error)}).") from error
    if not isinstance(label_map, Tensor) or label_map.dim() != 4 or len(label_map) != 2:
        raise InputError(f"The label map {path} is no tensor (2, k, h, w) of scores and classes.")
    return label_map


def dense_label_map(maps: Tensor, classes: int) -> Tensor:
    """Scores and classes (B, 2, k, h, w) to the scores of all classes, (B, classes, h, w), 0 where none is given."""
    batch, _, _, height, width = maps.shape
    scores = torch.zeros(batch, classes, height, width, device=maps.device)
    return scores.scatter_(1, maps[:, 1].long(), maps[:, 0].float())


def crop_label_map(maps: Tensor, crops: Tensor, size: int) -> Tensor:
    """Scores (B, classes, h, w) of pictures to those of their crops, (B, classes, size, size).

    Args:
        crops: (B, 5): top, left, height and width of each crop, as shares of its picture, and 1 if it is flipped.
    """
    height, width = maps.shape[2:]
    top, left, tall, wide, flipped = crops.to(maps).unbind(1)
    index = torch.arange(len(maps), device=maps.device, dtype=maps.dtype)
    corners = (left * width, top * height, (left + wide) * width, (top + tall) * height)
    cropped = roi_align(maps, torch.stack([index, *corners], 1), size, aligned=True)
    return torch.where(flipped.bool().view(-1, 1, 1, 1), cropped.flip(-1), cropped)


def token_targets(maps: Tensor, crops: Tensor, classes: int, size: int) -> tuple[Tensor, Tensor]:
    """Label maps (B, 2, k, h, w) to probabilities for crops: the whole (B, classes), tokens (B, size ** 2, classes)."""
    scores = dense_label_map(maps, classes)
    whole = crop_label_map(scores, crops, 1).flatten(1).softmax(1)
    tokens = crop_label_map(scores, crops, size).softmax(1)
    return whole, tokens.flatten(2).transpose(1, 2)


def with_ground_truth(soft: Tensor, labels: Tensor) -> Tensor:
    """Half of a soft target (B, classes) and half of the label (B,), or, where they disagree, nine tenths and one."""
    share = torch.where(soft.argmax(1) == labels, 0.5, 0.9)[:, None]
    hard = torch.nn.functional.one_hot(labels, soft.shape[1])
    return share * soft + (1 - share) * hard
