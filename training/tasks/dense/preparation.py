"""From pictures as they come to what a network takes."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...resizing import resized_size

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


class Preparation(nn.Module):
    """How pictures become a network's input.

    Args:
        data: `mean` and `std` of each channel, for pixels in [0, 1]; `img_size` and `max_size`, the short side at
            evaluation and the limit of the long one, in pixels.
    """

    def __init__(self, data):
        super().__init__()
        self.img_size, self.max_size = data.img_size, data.max_size
        self.register_buffer("mean", 255 * torch.tensor(data.mean), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(data.std), persistent=False)

    def forward(self, images: list[Tensor]) -> Tensor:
        """As `batched`."""
        return batched(images, self.mean, self.std)

    def resized(self, image: Tensor, factor: float = 1.0) -> Tensor:
        """A picture (channels, H, W) at the size for evaluation times a factor, as float."""
        return resized(image, resized_size(*image.shape[1:], self.img_size, self.max_size, factor))


def resized(image: Tensor, size: tuple[int, int]) -> Tensor:
    """A picture (channels, H, W) as float of another size, as detection toolboxes resize: bilinear."""
    image = image.float()
    if image.shape[1:] == size:
        return image
    return F.interpolate(image[None], size, mode="bilinear")[0]


def padded_maps(maps: list[Tensor], height: int, width: int, value: int) -> Tensor:
    """Label maps (H, W), long and side by side, (B, height, width), with a value where a map has none."""
    return torch.stack([F.pad(x, (0, width - x.shape[1], 0, height - x.shape[0]), value=value) for x in maps]).long()
