"""Labels for every token, from maps of scores that a teacher left on disk (token labelling, arXiv:2104.10858).

A map is of the whole picture, so it is cropped and flipped as the picture is.
"""

import torch
from torch import Tensor
from torchvision.ops import roi_align


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
