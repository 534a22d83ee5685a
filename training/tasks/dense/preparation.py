"""From pictures as they come to what a network takes."""

import torch
import torch.nn.functional as F
from torch import Tensor

DIVISOR = 32  # pixels; sides are filled up to multiples of it, so that maps of all strides fit one another


def batched(images: list[Tensor], mean: Tensor, std: Tensor) -> Tensor:
    """Pictures, uint8 or float (channels, H, W) each, normalised and side by side.

    Args:
        mean, std: of each channel, (channels,), in the pictures' units.

    Returns:
        (B, channels, H, W), channels last in memory: large enough for all of them and a multiple of DIVISOR; what a
        picture lacks at its right and bottom is 0, the mean colour.
    """
    height, width = (-(-max(image.shape[dim] for image in images) // DIVISOR) * DIVISOR for dim in (1, 2))
    shape = (len(images), len(mean), height, width)
    batch = torch.zeros(shape, device=mean.device).contiguous(memory_format=torch.channels_last)
    for place, image in zip(batch, images):
        filled = place[:, : image.shape[1], : image.shape[2]]
        filled.copy_(image).sub_(mean[:, None, None]).div_(std[:, None, None])
    return batch


def evaluation_size(height: int, width: int, short_side: int, limit: int | None) -> tuple[int, int]:
    """(height, width) of a picture when its short side is resized, or its long one to the limit if that is smaller.

    Pixels are rounded to the nearest number, and up in between, as detection toolboxes do.
    """
    scale = short_side / min(height, width)
    if limit is not None:
        scale = min(scale, limit / max(height, width))
    return max(1, int(scale * height + 0.5)), max(1, int(scale * width + 0.5))


def resized(image: Tensor, size: tuple[int, int]) -> Tensor:
    """A picture (channels, H, W) as float of another size, as detection toolboxes resize: bilinear."""
    image = image.float()
    if image.shape[1:] == size:
        return image
    return F.interpolate(image[None], size, mode="bilinear")[0]


def padded_maps(maps: list[Tensor], height: int, width: int, value: int) -> Tensor:
    """Label maps (H, W), long and side by side, (B, height, width), with a value where a map has none."""
    return torch.stack([F.pad(x, (0, width - x.shape[1], 0, height - x.shape[0]), value=value) for x in maps]).long()
