"""The frozen network that a student learns from."""

import timm
import torch
from torch import Tensor, nn

from backbones.errors import InputError, first_line  # and with the package, its names in timm

from .settings import DistillSettings


class Teacher(nn.Module):
    """Normalised pictures (B, channels, H, W) to logits (B, classes), without gradients and never in training mode.

    Args:
        classes: number of classes.
        mean, std: with which the pictures were normalised, (1, channels, 1, 1), for pixels in [0, 1].
    """

    def __init__(self, settings: DistillSettings, classes: int, mean: Tensor, std: Tensor):
        super().__init__()
        where = {"checkpoint_path": settings.checkpoint_path} if settings.checkpoint_path else {"pretrained": True}
        try:
            model = timm.create_model(settings.teacher, num_classes=classes, in_chans=mean.shape[1], **where)
        except Exception as error:  # anything, down to the network's own
            raise InputError(
                f"The teacher {settings.teacher!r} cannot be built for {classes} classes ({first_line(error)}). "
                "recipe.distill.teacher must be a model of timm or of the zoo, with published weights or "
                "recipe.distill.checkpoint_path=FILE."
            ) from error
        self.model = model.requires_grad_(False).eval()
        scale, shift = torch.ones_like(std), torch.zeros_like(mean)
        published = model.pretrained_cfg
        if not settings.checkpoint_path and len(published["mean"]) == mean.shape[1]:
            own_mean, own_std = (torch.tensor(published[name]).view(1, -1, 1, 1) for name in ("mean", "std"))
            scale, shift = std / own_std, (mean - own_mean) / own_std
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("shift", shift, persistent=False)

    def train(self, mode: bool = True):
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        return self.model(images * self.scale + self.shift)
