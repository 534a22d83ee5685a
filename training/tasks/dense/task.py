"""What the tasks that find where things are have in common."""

import json
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from backbones.errors import InputError, first_line

from ...annotation import Target
from ...distributed import broadcast, gather, rank
from .metrics import first_of_each
from .overlays import picture_of, sheet

SHOWN = 6  # pictures on the sheet of every epoch: the first of the validation set


class DenseTask(nn.Module, ABC):
    """A model that gets pictures with targets, and how what it predicts is counted.

    A subclass says how a picture is recorded, what the records amount to, and how a prediction is drawn.

    Args:
        model: pictures, uint8 (channels, H, W) each, and their targets to losses by name; in evaluation mode pictures
            to a prediction for each.
        classes: names of the labels.
        things: whether the objects of a label are counted, of segments.
    """

    trains = True  # rather than being evaluated alone
    whole_checkpoint = True  # its checkpoints are to be loaded by `load_weights`, rather than by the backbone
    target: str  # the kind of targets that it learns from
    metric: str  # what the best checkpoint is best in

    def __init__(self, model: nn.Module, classes: list[str], things: list[bool] | None = None):
        super().__init__()
        self.model, self.classes, self.things = model, classes, things
        self.start_evaluation()

    def start_epoch(self, epoch: int, epochs: int) -> None:
        """All epochs are alike."""

    def training_step(self, batch) -> dict[str, Tensor]:
        """The losses of a batch; their sum is minimised."""
        return self.model(batch.images, batch.targets)

    def start_evaluation(self) -> None:
        """Forget the predictions of the last evaluation."""
        self._records: list = []
        self._shown: dict[int, tuple[Tensor, Target, dict[str, Tensor]]] = {}

    def evaluation_step(self, batch) -> None:
        """Predict a batch and remember the outcome."""
        predictions = self.model(batch.images)
        for image, target, index, prediction in zip(
            batch.images, batch.targets, batch.indices.tolist(), predictions, strict=True
        ):
            self._records.append(self.record(index, prediction, target))
            if index < SHOWN:
                self._shown[index] = image.cpu(), _on_cpu(target), _on_cpu(prediction)

    @abstractmethod
    def record(self, index: int, prediction: dict[str, Tensor], target: Target) -> Any:
        """What is to be remembered of a picture; it has an `index`."""

    @abstractmethod
    def measure(self, records: list) -> dict[str, float]:
        """The metrics of all pictures, fractions in [0, 1]; may keep more for `write_pictures`."""

    def compute_metrics(self) -> dict[str, float]:
        """The metrics of every picture that a process saw; each counts once."""
        records = first_of_each(record for each in gather(self._records) for record in each)
        for shown in gather(self._shown):
            self._shown |= shown
        if not records:
            raise InputError("There was no picture to evaluate on: the validation set has none that can be read.")
        return broadcast(self.measure(records) if rank() == 0 else None)

    def draw_samples(self, path: Path, source) -> dict[str, Path]:
        """The first validation pictures as they are, and as they were predicted, in one picture."""
        path.parent.mkdir(exist_ok=True)
        rows = [
            (source.name(index), picture_of(image), self.drawn(image, target), self.drawn(image, prediction))
            for index, (image, target, prediction) in sorted(self._shown.items())
        ]
        return {"samples": sheet(path, rows)}

    @abstractmethod
    def write_pictures(self, folder: Path, source) -> dict[str, Path]:
        """Pictures and tables of the last evaluation; the pictures by name."""

    @abstractmethod
    def drawn(self, image: Tensor, found: dict[str, Tensor]) -> Image.Image:
        """A picture, uint8 (channels, H, W), with a target or a prediction drawn in."""

    @abstractmethod
    def listed(self, prediction: dict[str, Tensor]) -> list[dict[str, Any]]:
        """What was found, as JSON can hold it."""

    def map_of(self, prediction: dict[str, Tensor]) -> Tensor | None:
        """A number for every pixel, (H, W), uint8 or uint16, if that is what was predicted."""
        return None

    @torch.inference_mode()
    def predict(self, image: Tensor) -> dict[str, Tensor]:
        """What is in one picture, uint8 (channels, H, W)."""
        [prediction] = self.model([image])
        return _on_cpu(prediction)

    def metadata(self) -> dict[str, str]:
        """What to keep with the weights, to look at a picture without the data."""
        return {"classes": json.dumps(self.classes), "things": json.dumps(self.things)}

    def check_weights(self) -> None:
        """They are loaded as a whole."""

    def load_weights(self, state: dict[str, Tensor]) -> None:
        """Take the tensors of a checkpoint of this task.

        Raises:
            InputError: they are those of another model.
        """
        try:
            self.model.load_state_dict(state)
        except RuntimeError as error:
            raise InputError(
                f"The checkpoint is of another model than this task builds ({first_line(error)}). Evaluate a run with "
                "run=PATH, which knows its own settings, or name the same backbone, task and head as in training."
            ) from error


def _on_cpu(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.cpu() for name, value in tensors.items()}
