"""The networks of the demo: found in run folders or named, and asked about one picture."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import yaml
from PIL import Image
from torch import Tensor, nn

from backbones import InputError
from backbones.backbone import Backbone
from backbones.errors import first_line
from backbones.explain import Attention, attention_of, grad_cam
from backbones.subject import load_subject, seen_part

from ..building import Recipe, evaluation_picture, evaluation_source, load_task, saved_classes
from ..data import DATASETS, BadImageError, ImageFolder
from ..data.dense import upright
from ..distributed import choose_device
from ..engine import RunFolder
from ..report import Run
from ..tasks import Classification, TeachingSettings
from ..tasks.dense.detection import CONFIDENT

MOST_FOUND = 50  # that are listed


@dataclass
class Seen:
    """A picture, and what a classifier makes of it.

    Attributes:
        picture: the whole picture, upright, in colour.
        box: left, top, right and bottom of the part that the network sees, in pixels of the picture; may reach beyond.
        image: what the network gets, (1, channels, H, W), normalised.
        likeliest: up to five labels with their probabilities, the likeliest first.
    """

    picture: Image.Image
    box: tuple[float, float, float, float]
    image: Tensor
    likeliest: list[tuple[int, float]]

    @property
    def middle(self) -> tuple[float, float]:
        left, top, right, bottom = self.box
        return (left + right) / 2, (top + bottom) / 2

    def sees(self, point: tuple[float, float]) -> bool:
        left, top, right, bottom = self.box
        return left <= point[0] < right and top <= point[1] < bottom


class Network:
    """A task with its weights.

    Args:
        config: its `data` say how pictures are prepared.
        facts: what the network is, in words.
        of_run: whether `config` is a run's, whose data can be asked for pictures.
    """

    def __init__(self, config, task: nn.Module, facts: str, of_run: bool):
        self.config, self.task, self.facts, self.of_run = config, task, facts, of_run

    @cached_property
    def validation(self):
        """The validation set. Raises InputError where the data are gone."""
        return evaluation_source(self.config)

    def sample(self, folder: Path) -> tuple[Path, str]:
        """Write a random picture of the validation set into a folder; returns its file, and what it is.

        Raises:
            InputError: the data are gone, or damaged.
        """
        source = self.validation
        index = random.randrange(len(source))
        label = f": “{source.classes[source.target(index)]}”" if self.task.target is None else ""
        try:
            source.picture(index).image().save(folder / f"{index}.png")
        except BadImageError as error:
            raise InputError(f"The validation picture {source.name(index)} cannot be read ({error}).") from error
        return folder / f"{index}.png", f"Validation picture{label} ({source.name(index)})"


class Classifier(Network):
    """A network that answers with labels, and can be asked where it looks."""

    @property
    def backbone(self) -> Backbone:
        """The network itself, or what is frozen in a probe."""
        return getattr(self.task.model, "frozen", self.task.model)

    @property
    def has_cam(self) -> bool:
        """Whether labels have a gradient at the backbone's maps, which a probe cuts off."""
        return self.backbone is self.task.model

    def see(self, file: str | Path) -> Seen:
        """Raises InputError where the picture cannot be read."""
        pixels, data = evaluation_picture(self.config, file), self.config.data
        picture = opened(file)
        box = seen_part(picture.size, pixels.shape[1:], data.crop_pct, data.crop_mode == "squash")
        image = self.task.normalise(pixels[None])
        with torch.no_grad():
            probabilities = self.task.logits(image)[0].softmax(0)
        values, labels = probabilities.topk(min(5, len(probabilities)))
        return Seen(picture, box, image, list(zip(labels.tolist(), values.tolist())))

    def attention(self, seen: Seen, point: tuple[float, float]) -> list[Attention]:
        """Where the token under a point of the picture looks, in every block whose attention is between places."""
        left, top, right, bottom = seen.box
        height, width = seen.image.shape[2:]
        point = (point[0] - left) / (right - left) * width, (point[1] - top) / (bottom - top) * height
        return [found for found in attention_of(self.backbone, seen.image, point) if not found.of_channels]

    def cam(self, seen: Seen, label: int) -> Tensor:
        """What speaks for a label, (h, w) of the last stage's map."""
        return grad_cam(self.backbone, seen.image, label)

    def pixels(self, stage: int) -> int:
        """Side of a token, in pixels of what the network gets."""
        return self.backbone.feature_info[stage]["reduction"]


class Finder(Network):
    """A network that finds where things are."""

    def find(self, file: str | Path) -> tuple[Image.Image, list[dict[str, Any]]]:
        """The picture with what is found drawn in, and a list of that. Raises InputError where it cannot be read."""
        image = evaluation_picture(self.config, file)
        prediction = self.task.predict(image.to(choose_device("auto")))
        listed = [entry for entry in self.task.listed(prediction) if entry.get("score", 1) >= CONFIDENT]
        rows = [{name: value for name, value in entry.items() if name != "mask"} for entry in listed[:MOST_FOUND]]
        return self.task.drawn(image, prediction), rows


def opened(file: str | Path) -> Image.Image:
    """The picture in a file, upright and in colour. Raises InputError where there is none."""
    try:
        return upright(file, 3).image()
    except BadImageError as error:
        raise InputError(f"The picture {file} cannot be read ({error}).") from error


def networks_of_runs(paths: list[Path]) -> dict[str, Callable[[], Network]]:
    """What loads the network of each run, by the run's path.

    Args:
        paths: run folders, or folders with such anywhere in them.

    Raises:
        InputError: there is no run with weights at a path.
    """
    found = {}
    for path in paths:
        inside = sorted(file.parent for file in path.rglob("config.yaml"))
        runs = [folder for folder in inside if RunFolder(folder).best.is_file()]
        if not runs:
            raise InputError(
                f"There is no run with weights in {path}. Name a run that has finished an epoch, such as "
                "runs/NAME/TIME, or a folder of runs."
            )
        found |= {str(run): partial(load_run, run) for run in runs}
    return found


def load_run(folder: Path) -> Network:
    """The network of a run with its best weights. Raises InputError where a file of the run is damaged."""
    run, summary = RunFolder(folder), Run.read(folder).summary
    try:
        saved = yaml.safe_load(run.config.read_text())
        data = DATASETS[saved["data"]["name"]](**saved["data"])
        config = SimpleNamespace(backbone=saved["backbone"], task=saved["task"], data=data, recipe=Recipe())
    except (LookupError, TypeError) as error:
        raise InputError(f"{run.config} is of another version, or damaged ({first_line(error)}).") from error
    classes, things = saved_classes(run.best)
    task = load_task(config, run.best, classes, things, choose_device("auto"))
    facts = [config.backbone["name"], config.task["name"], f"{len(classes)} classes of {data.name}"]
    facts.append(task.describe(summary) if summary else "not finished")
    kind = Classifier if task.target is None else Finder
    return kind(config, task, " · ".join(facts), of_run=True)


def load_backbone(name: str, checkpoint: Path | None, pretrained: bool) -> Classifier:
    """A classifier of the zoo with the weights of a file, with its published ones, or with random ones."""
    subject = load_subject(name, checkpoint, pretrained)
    data = ImageFolder(
        img_size=subject.size[0],
        channels=subject.channels,
        mean=subject.mean,
        std=subject.std,
        crop_pct=subject.crop_pct,
        crop_mode="squash" if subject.squash else "center",
    )
    config = SimpleNamespace(task=dict(name="classification"), data=data)
    task = Classification(subject.model, subject.classes, data.mean, data.std, TeachingSettings())
    facts = f"{name} · {len(subject.classes)} classes · weights: {subject.weights}"
    return Classifier(config, task.to(choose_device("auto")).eval(), facts, of_run=False)
