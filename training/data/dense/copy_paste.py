"""Simple copy-paste (Ghiasi et al., arXiv:2012.07177): objects of one picture in front of another."""

import torch
from torch import Tensor

from ...annotation import Target
from .geometry import Sample, objects, pad, resize_and_crop, seen


def paste(image: Tensor, target: Target, other_image: Tensor, other_target: Target) -> Sample:
    """The picture with some of another one's objects in front, at their places, each with probability one half.

    Masks below are cut, with their areas, and the boxes of those that lose pixels become those of what is left; objects
    that are covered completely are dropped. The pasted ones come last. Regions of crowds are not pasted. Of pictures of
    different sizes, the upper left region that both have takes part.

    Args:
        image, other_image: uint8 (C, H, W).
        target, other_target: of the kind "masks".
    """
    chosen = ~other_target["crowd"] & (torch.rand(len(other_target["crowd"])) < 0.5)
    size, other_size = tuple(image.shape[-2:]), tuple(other_image.shape[-2:])
    common = 0, 0, min(size[0], other_size[0]), min(size[1], other_size[1])
    front = resize_and_crop(other_image, objects(other_target, chosen), other_size, common)
    front_image, front_target = pad(*front, size, [0] * len(image))
    if len(front_target["masks"]) == 0:
        return image, target
    over = front_target["masks"].amax(0)
    cut = (target["masks"] & over).flatten(1).amax(1) > 0
    below = seen(target | {"masks": target["masks"] & (1 - over)}, cut)
    image = torch.where(over.bool(), front_image, image)
    return image, {name: torch.cat([value, front_target[name]]) for name, value in below.items()}
