"""What a configuration names, built: loaders, task and loggers."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

import backbones
from backbones import InputError
from backbones.checkpoints import read_metadata
from backbones.errors import first_line, suggest

from .data import AugmentSettings, BadImages, Loader, evaluation_transform, training_transform
from .distributed import rank, world_size
from .engine import LOGGERS, EmaSettings, OptimizerSettings, ScheduleSettings, images_per_step
from .rehearsal import few
from .tasks import TASKS, TeachingSettings


@dataclass
class Recipe(TeachingSettings):
    """How to teach: one section for each part of the program that it concerns.

    Args:
        reference_batch_size: pictures per optimizer step that the learning rates are written for. Other numbers scale
            them all (`optimizer.lr`, `schedule.warmup_lr`, `schedule.min_lr`) linearly; None takes them as they are.
    """

    reference_batch_size: int | None = None
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    schedule: ScheduleSettings = field(default_factory=ScheduleSettings)
    ema: EmaSettings = field(default_factory=EmaSettings)
    augment: AugmentSettings = field(default_factory=AugmentSettings)

    def __post_init__(self):
        if self.reference_batch_size is not None and self.reference_batch_size < 1:
            raise InputError(
                f"recipe.reference_batch_size is {self.reference_batch_size}, but must be at least 1 (or null for "
                "learning rates as they are written)."
            )


def build_loaders(config, device: torch.device) -> tuple[Loader, Loader]:
    """The training and the validation loader of a configuration."""
    data = config.data
    train_source, val_source = few(*data.splits()) if config.trainer.rehearse else data.splits()
    common = dict(
        batch_size=config.trainer.batch_size,
        bad_images=BadImages(data.max_bad_images),
        workers=data.workers,
        device=device,
        timeout=config.trainer.timeout,
        rank=rank(),
        processes=world_size(),
    )
    augment, step = config.recipe.augment, images_per_step(config.trainer)
    if data.label_maps and (augment.degrees or augment.translate or augment.zoom):
        raise InputError("Label maps follow crops and flips alone: with data.label_maps, leave other geometry out.")
    training = dict(seed=config.seed, repeats=augment.repeats, step=step, label_maps=data.label_maps)
    train_loader = Loader(train_source, training_transform(data, augment), **training, **common)
    return train_loader, Loader(val_source, evaluation_transform(data), **common)


def task_class(config) -> type:
    """The class of the task that a configuration names."""
    if config.task["name"] not in TASKS:
        raise InputError(f"There is no task {config.task['name']!r}; there is: {', '.join(TASKS)}.")
    return TASKS[config.task["name"]]


def build_task(config, classes: list[str], **backbone: Any) -> nn.Module:
    """The task around the backbone; `backbone` adds to the configured keywords."""
    kind = task_class(config)
    for keyword in ("num_classes", "features_only", "out_indices", "dense"):
        if keyword in config.backbone:
            raise InputError(f"backbone.{keyword} follows from the task and the data; leave it out.")
    defaults = dict(in_chans=config.data.channels, img_size=config.data.img_size) | kind.backbone_keywords(classes)
    keywords = defaults | config.backbone | backbone
    name = keywords.pop("name")
    try:
        model = backbones.create_model(name, **keywords)
    except InputError:
        raise
    except (TypeError, ValueError, LookupError, ArithmeticError, RuntimeError) as error:
        raise InputError(f"{name} cannot be built with {keywords}: {first_line(error)}.") from error
    if config.data.img_size < model.min_size:
        raise InputError(f"{name} takes pictures of at least {model.min_size} pixels, but data.img_size is smaller.")
    settings = getattr(config, "recipe", TeachingSettings())
    options = {key: value for key, value in config.task.items() if key != "name"}
    try:
        return kind(model, classes, config.data.mean, config.data.std, settings, **options)
    except TypeError as error:
        raise InputError(f"The task cannot be built with {config.task}: {first_line(error)}.") from error


def check_classes(checkpoint: Path, classes: list[str]) -> None:
    """Raise InputError where a checkpoint says that it was trained for other classes, or the same in another order."""
    saved = json.loads(read_metadata(checkpoint).get("classes", "null"))
    if saved is not None and saved != classes:
        raise InputError(
            f"The checkpoint {checkpoint} was trained for other classes ({', '.join(saved[:5])}, …) than the data has "
            f"({', '.join(classes[:5])}, …). Use it with data of the same class names."
        )


def build_logger(name: str, settings: dict[str, Any]):
    if name not in LOGGERS:
        raise InputError(f"There is no logger {name!r}.{suggest(name, list(LOGGERS))}")
    return LOGGERS[name](**settings)
