"""What tools work on: a model with its weights, the names of its classes, and a picture as it sees it."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image, ImageOps
from timm.data import ImageNetInfo
from torch import Tensor, nn

from .checkpoints import HEAD, STEM, read_checkpoint, read_metadata
from .errors import InputError, first_line, suggest
from .registry import create_model

INPUTS = 8  # pictures that a receptive field is averaged over
RANDOM = "random, not trained"
RUN_WEIGHTS = "checkpoints/best.safetensors"  # in a run folder, beside config.yaml


@dataclass
class Subject:
    """A model in evaluation mode, and how its pictures are prepared.

    Attributes:
        model: a `Backbone`, or what `features_only` makes of it.
        channels: of its images.
        classes: their names, by label.
        size: rows and columns of the pictures, in pixels.
        crop_pct, squash: share of the picture's shorter side that the crop keeps; whether it keeps that share of both.
        weights: where the weights are from, in words.
    """

    model: nn.Module
    channels: int
    classes: list[str]
    size: tuple[int, int]
    mean: list[float]
    std: list[float]
    crop_pct: float
    squash: bool
    weights: str

    def label(self, name: str) -> int:
        """The label of a class, by its name or number.

        Raises:
            InputError: there is none.
        """
        known = [c.lower() for c in self.classes]
        if name.lower() in known:
            return known.index(name.lower())
        if name.isdecimal() and int(name) < len(known):
            return int(name)
        raise InputError(
            f"The model has no class {name!r}.{suggest(name, self.classes)} Give a name or a number from 0 to "
            f"{len(known) - 1}."
        )


@dataclass
class View:
    """The part of a picture that a model sees.

    Attributes:
        picture: the whole picture; shown: the part, in the picture's own resolution; both upright.
        box: left, top, right and bottom of the part in the picture, in pixels.
        image: what the model gets, (1, channels, H, W), normalised.
    """

    subject: Subject = field(repr=False)
    picture: Image.Image
    box: tuple[float, float, float, float]
    shown: Image.Image
    image: Tensor

    def point(self, x: float | None, y: float | None) -> tuple[float, float]:
        """A point of the picture, in its pixels, as a point of `image`; the middle of what is seen where it is None.

        Raises:
            InputError: it is not in the part that the model sees.
        """
        left, top, right, bottom = self.box
        x, y = ((left + right) / 2 if x is None else x), ((top + bottom) / 2 if y is None else y)
        if not (left <= x < right and top <= y < bottom):
            raise InputError(
                f"The point {x:g} {y:g} is outside of what the model sees of this picture of {self.picture.width} x "
                f"{self.picture.height} pixels: x from {left:.0f} to {right:.0f} and y from {top:.0f} to {bottom:.0f}."
            )
        height, width = self.image.shape[2:]
        return (x - left) / (right - left) * width, (y - top) / (bottom - top) * height

    def crops(self) -> Tensor:
        """Random crops of the picture, half of them mirrored, (INPUTS, channels, H, W), the same at every call."""
        draw = torch.Generator().manual_seed(0)
        width, height = self.box[2] - self.box[0], self.box[3] - self.box[1]
        images = []
        for i in range(INPUTS):
            share, across, down = torch.rand(3, generator=draw).tolist()
            w, h = (min(side, limit) * (0.5 + share / 2) for side, limit in zip((width, height), self.picture.size))
            left, top = across * (self.picture.width - w), down * (self.picture.height - h)
            image = tensor(self.subject, self.picture, (left, top, left + w, top + h))
            images.append(image.flip(3) if i % 2 else image)
        return torch.cat(images)


def load_subject(
    name: str,
    checkpoint: Path | None = None,
    pretrained: bool = False,
    dense: str | None = None,
    features: bool = False,
) -> Subject:
    """A model with the weights of a file or a run folder, with its published ones, or with random ones.

    Weights of a run bring the classes and the preparation of pictures with them, if they are still in the run's folder;
    for others, they are those of the model's published weights.

    Args:
        dense, features: `dense` and `features_only` of `create_model`.

    Raises:
        InputError: the file cannot be read, is of another model, or has no classifier.
    """
    if checkpoint is not None and checkpoint.is_dir():
        checkpoint = checkpoint / RUN_WEIGHTS
    keywords, data = ({}, {}) if checkpoint is None else _of_file(checkpoint)
    settings = data | _of_run(checkpoint, name, keywords)
    torch.manual_seed(0)
    keywords |= dict(pretrained=pretrained, checkpoint_path=checkpoint or "", features_only=features, dense=dense)
    model = create_model(name, **keywords).eval()
    backbone = model.model if features else model
    trained = backbone.num_classes and any(weight.any() for weight in backbone.get_classifier().parameters())
    if not features and not trained:
        raise InputError(
            f"The weights for {name} have no classifier, so that nothing says what they see in a picture. Give weights "
            "that were trained or fine-tuned to classify."
        )
    cfg = model.pretrained_cfg
    known = pretrained or checkpoint is not None
    weights = f"published as {name}" if pretrained else RANDOM
    channels = backbone.in_chans
    mean, std = (settings.get(key, cfg[key]) for key in ("mean", "std"))
    return Subject(
        model,
        channels,
        settings.get("classes") or _class_names(backbone.num_classes, known),
        (settings["img_size"],) * 2 if "img_size" in settings else tuple(cfg["input_size"][1:]),
        *(list(v) if len(v) == channels else [sum(v) / len(v)] * channels for v in (mean, std)),
        settings.get("crop_pct", cfg["crop_pct"]),
        settings.get("crop_mode", cfg.get("crop_mode")) == "squash",
        str(checkpoint) if checkpoint is not None else weights,
    )


def view_of(subject: Subject, file: Path) -> View:
    """Read a picture as the model is to see it.

    Raises:
        InputError: it cannot be read.
    """
    if subject.channels not in (1, 3):
        raise InputError(
            f"The model takes images of {subject.channels} channels, but pictures are read as grey or as colour."
        )
    try:
        with Image.open(file) as opened:
            picture = ImageOps.exif_transpose(opened)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"The picture {file} cannot be read ({first_line(error)}).") from error
    return view_of_picture(subject, picture)


def view_of_picture(subject: Subject, picture: Image.Image) -> View:
    """A picture as the model is to see it."""
    picture = picture.convert("L" if subject.channels == 1 else "RGB")
    box = seen_part(picture.size, subject.size, subject.crop_pct, subject.squash)
    shown = picture.crop(tuple(round(edge) for edge in box))  # black where the crop is larger than the picture
    return View(subject, picture, box, shown, tensor(subject, picture, box))


def seen_part(
    picture: tuple[int, int], size: tuple[int, int], crop_pct: float, squash: bool
) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of what a model sees of a picture, in its pixels; may reach beyond the picture.

    Args:
        picture: its width and height.
        size, crop_pct, squash: as in `Subject`.
    """
    scale = [side / length for side, length in zip(picture, size[::-1])]
    scale = scale if squash else [min(scale)] * 2
    (x, y), (w, h) = [side / 2 for side in picture], [crop_pct * s * length / 2 for s, length in zip(scale, size[::-1])]
    return x - w, y - h, x + w, y + h


def tensor(subject: Subject, picture: Image.Image, box: tuple[float, float, float, float]) -> Tensor:
    """A part of a picture as the model takes it, (1, channels, H, W), normalised."""
    left, top = round(box[0]), round(box[1])
    part = picture.crop((left, top, max(left + 1, round(box[2])), max(top + 1, round(box[3]))))
    pixels = np.array(part.resize(subject.size[::-1], Image.Resampling.BICUBIC), np.float32) / 255
    image = torch.from_numpy(pixels.reshape(*subject.size, -1)).permute(2, 0, 1)[None]
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (subject.mean, subject.std))
    return (image - mean) / std


def _of_file(checkpoint: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Keywords for the model, and the names of the classes, as far as a file of weights says them."""
    state = read_checkpoint(checkpoint)
    keywords = {}
    if f"{HEAD}.weight" in state:
        keywords["num_classes"] = len(state[f"{HEAD}.weight"])
    if f"{STEM}.weight" in state:
        keywords["in_chans"] = state[f"{STEM}.weight"].shape[1]
    classes = json.loads(read_metadata(checkpoint).get("classes", "null"))
    return keywords, dict(classes=classes)


def _of_run(checkpoint: Path | None, name: str, keywords: dict[str, Any]) -> dict[str, Any]:
    """How the run that a file of weights lies in prepares pictures; adds to the keywords for the model."""
    config = checkpoint.parent.parent / "config.yaml" if checkpoint is not None else None
    if config is None or not config.is_file():
        return {}
    try:
        saved = yaml.safe_load(config.read_text())
        data, backbone = saved["data"], saved["backbone"]
        settings = {key: data[key] for key in ("mean", "std", "img_size", "crop_pct", "crop_mode") if key in data}
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise InputError(f"The configuration of the run, {config}, cannot be read ({first_line(error)}).") from error
    if backbone.get("name") != name:
        raise InputError(f"{checkpoint} was trained with {backbone.get('name')}, not with {name}.")
    keywords |= {"img_size": data.get("img_size")} | {
        key: value
        for key, value in backbone.items()
        if key not in ("name", "pretrained", "checkpoint_path", "checkpoint")
    }
    return settings


def _class_names(number: int, known: bool) -> list[str]:
    """ImageNet's names for 1000 classes of weights that were trained; numbers for all else."""
    if known and number == 1000:
        return [text.split(",")[0] for text in ImageNetInfo("imagenet-1k").label_descriptions()]
    return numbered(number)


def numbered(classes: int) -> list[str]:
    """Names of classes of which nothing but the number is known."""
    return [f"class {i}" for i in range(classes)]
