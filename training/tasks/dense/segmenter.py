"""A network for semantic segmentation from pictures to label maps: its losses, and its predictions at any size."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from backbones.errors import InputError

from ...annotation import IGNORED, Target
from .decoders import SegmentationModel
from .model import BackboneLayers
from .preparation import Preparation, padded_maps


@dataclass
class InferenceSettings:
    """How a picture is looked at in evaluation.

    Args:
        slide: side of a square window, in pixels; windows that overlap by a third are looked at one by one, and where
            several are, their logits are averaged. None looks at the picture as a whole.
        scales: factors of the picture's size; with several, probabilities are averaged.
        flip: look at each also from left to right.
    """

    slide: int | None = None
    scales: list[float] = field(default_factory=lambda: [1.0])
    flip: bool = False

    def __post_init__(self):
        if (self.slide is not None and self.slide < 32) or not self.scales or min(self.scales) <= 0:
            raise InputError(
                "task.inference.slide must be null or at least 32 pixels and scales positive numbers, but they are "
                f"{self.slide} and {self.scales}."
            )


class Segmenter(BackboneLayers):
    """Pictures, uint8 (channels, H, W) each, to losses in training, and else to a label map for each.

    Args:
        network: normalised pictures to logits at a fraction of their size, in training perhaps also auxiliary ones.
        data: as `Preparation` reads it.
        aux_weight: of the auxiliary logits' loss.
        class_weights: of the classes' pixels in the losses, (classes,). A class that counts more than another is also
            taken to be likelier, by the same factor, and predictions are corrected for it.
    """

    def __init__(
        self,
        network: SegmentationModel,
        data,
        inference: InferenceSettings,
        aux_weight: float,
        class_weights: Tensor,
    ):
        super().__init__()
        self.network, self.inference, self.aux_weight = network, inference, aux_weight
        self.register_buffer("class_weights", class_weights, persistent=False)
        self.preparation = Preparation(data)

    def forward(self, images: list[Tensor], targets: list[Target] | None = None):
        """Losses by name in training. Else for each picture a `map` (H, W), its pixels' likeliest labels."""
        if not self.training:
            return [{"map": self.probabilities(image).argmax(0)} for image in images]
        batch = self.preparation(images)
        maps = padded_maps([target["map"] for target in targets], *batch.shape[2:], value=IGNORED)
        output = self.network(batch)
        if isinstance(output, Tensor):
            return {"loss": self._loss(output, maps)}
        aux_loss = self.aux_weight * self._loss(output.aux_logits, maps)
        return {"loss": self._loss(output.logits, maps), "aux_loss": aux_loss}

    def probabilities(self, image: Tensor) -> Tensor:
        """Of each class at each pixel of a picture, (classes, H, W)."""
        size, seen = image.shape[1:], []
        for scale in self.inference.scales:
            scaled = self.preparation.resized(image, scale)
            for view in (scaled, scaled.flip(-1)) if self.inference.flip else (scaled,):
                logits = self._logits(view)
                logits = logits if view is scaled else logits.flip(-1)
                logits = logits - self.class_weights.log()[:, None, None]
                seen.append(F.interpolate(logits[None], size, mode="bilinear")[0].float().softmax(0))
        return torch.stack(seen).mean(0) if len(seen) > 1 else seen[0]

    def _logits(self, image: Tensor) -> Tensor:
        """(classes, H, W) of a picture of the same size, seen as a whole or in windows."""
        _, height, width = image.shape
        total, times = 0.0, torch.zeros(height, width, device=self.preparation.mean.device)
        for top, left, bottom, right in self._windows(height, width):
            logits = self._whole(image[:, top:bottom, left:right])
            around = (left, width - right, top, height - bottom)
            total = total + (F.pad(logits, around) if any(around) else logits)
            times[top:bottom, left:right] += 1
        return total / times

    def _windows(self, height: int, width: int) -> Iterator[tuple[int, int, int, int]]:
        """Windows that cover a picture: top, left, bottom, right. The last ones are moved back inside."""
        side = self.inference.slide
        if side is None:
            yield 0, 0, height, width
            return
        stride = side * 2 // 3
        for row in range(max(0, -(-(height - side) // stride)) + 1):
            for column in range(max(0, -(-(width - side) // stride)) + 1):
                bottom, right = min(row * stride + side, height), min(column * stride + side, width)
                yield max(0, bottom - side), max(0, right - side), bottom, right

    def _whole(self, image: Tensor) -> Tensor:
        batch = self.preparation([image])
        logits = F.interpolate(self.network(batch), batch.shape[2:], mode="bilinear")
        return logits[0, :, : image.shape[1], : image.shape[2]]

    def _loss(self, logits: Tensor, maps: Tensor) -> Tensor:
        logits = F.interpolate(logits, maps.shape[1:], mode="bilinear").float()
        # The mean over labelled pixels by weight, and 0 rather than no number where there are none.
        total = F.cross_entropy(logits, maps, self.class_weights, ignore_index=IGNORED, reduction="sum")
        weights = self.class_weights[maps.clamp(min=0)] * (maps != IGNORED)
        return total / weights.sum().clamp(min=torch.finfo().tiny)
