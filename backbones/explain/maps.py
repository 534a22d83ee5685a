"""Maps that mean the same for every family: what speaks for a class, what a feature sees, how large features are."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..backbone import Backbone


def grad_cam(model: Backbone, image: Tensor, label: int, stage: int = -1) -> Tensor:
    """Where the features speak for a class (Grad-CAM, arXiv:1610.02391), (h, w) of the stage's map, at least 0.

    The channels of the map are weighted with the mean gradient of the class's logit, added up, and cut off below 0.

    Args:
        image: (1, channels, H, W).
    """
    kept: list[Tensor] = []
    handle = model.stages[stage].register_forward_hook(lambda module, inputs, output: kept.append(output))
    try:
        with torch.enable_grad():
            logits = model(image.detach().requires_grad_())  # frozen networks have a gradient, too
    finally:
        handle.remove()
    (grad,) = torch.autograd.grad(logits[0, label], kept)
    features, grad = model.to_nchw(kept[0].detach()), model.to_nchw(grad)
    return (features * grad.mean((2, 3), keepdim=True)).sum(1)[0].relu()


def receptive_field(model: Backbone, images: Tensor, stage: int = -1) -> Tensor:
    """How strongly each pixel moves the middle of a stage's map (arXiv:1701.04128), (H, W), adding up to 1.

    That is the size of the gradient of the middle token's summed channels (of the middle two, where their number along
    an axis is even), added up over the colours and the images.

    Args:
        images: (B, channels, H, W); the more, the less it depends on what is in them.
    """
    total = torch.zeros(images.shape[2:], device=images.device)
    for image in images.split(1):
        image = image.detach().requires_grad_()
        with torch.enable_grad():
            (features,) = model.forward_intermediates(image, [stage], intermediates_only=True)
            rows, columns = (slice((side - 1) // 2, side // 2 + 1) for side in features.shape[2:])
            middle = features[0, :, rows, columns]
            (grad,) = torch.autograd.grad(middle.sum(), image)
        total += grad[0].abs().sum(0)
    return total / total.sum()


def half_sides(field: Tensor, shares: tuple[float, ...] = (0.5, 0.95)) -> list[float]:
    """Half the sides, in pixels, of the squares around the middle of a receptive field that hold these shares of it."""
    height, width = field.shape
    rows = (torch.arange(height) + 0.5 - height / 2).abs()
    columns = (torch.arange(width) + 0.5 - width / 2).abs()
    distance, order = torch.maximum(rows[:, None], columns[None, :]).flatten().sort()
    reached = field.flatten()[order].cumsum(0) / field.sum()
    return [float(distance[torch.searchsorted(reached, share).clamp(max=len(distance) - 1)]) + 0.5 for share in shares]


def feature_norms(model: Backbone, image: Tensor) -> list[Tensor]:
    """The length of the feature vector of each token, (h, w) per stage, for an image (1, channels, H, W)."""
    with torch.no_grad():
        maps = model.forward_intermediates(image, intermediates_only=True)
    return [features[0].norm(dim=0) for features in maps]


def enlarged(map: Tensor, size: tuple[int, int]) -> Tensor:
    """(h, w) interpolated to (H, W), bilinear."""
    return F.interpolate(map[None, None], size, mode="bilinear", align_corners=False)[0, 0]
