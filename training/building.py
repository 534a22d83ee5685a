"""What a configuration names, built: loaders, task and loggers."""

import json
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import backbones
from backbones import InputError
from backbones.checkpoints import read_checkpoint, read_metadata
from backbones.errors import first_line, suggest

from .data import (
    DATASETS,
    AugmentSettings,
    BadImageError,
    BadImages,
    LabelledPictures,
    Loader,
    evaluation_transform,
    training_transform,
)
from .data.dense import AnnotatedPictures, DenseAugmentSettings, DenseSettings, upright
from .data.dense import training_transform as dense_training_transform
from .distributed import rank, world_size
from .engine import LOGGERS, EmaSettings, OptimizerSettings, RunFolder, ScheduleSettings, images_per_step
from .rehearsal import few
from .tasks import TASKS, TeachingSettings
from .tasks.dense import add_lora, freeze_stages


@dataclass
class Recipe(TeachingSettings):
    """How to teach: one section for each part of the program that it concerns.

    `augment` is for pictures with labels, `dense` for those with boxes, masks or maps.

    Args:
        reference_batch_size: pictures per optimizer step that the learning rates are written for. Other numbers scale
            them all (`optimizer.lr`, `schedule.warmup_lr`, `schedule.min_lr`) linearly; None takes them as they are.
    """

    reference_batch_size: int | None = None
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    schedule: ScheduleSettings = field(default_factory=ScheduleSettings)
    ema: EmaSettings = field(default_factory=EmaSettings)
    augment: AugmentSettings = field(default_factory=AugmentSettings)
    dense: DenseAugmentSettings = field(default_factory=DenseAugmentSettings)

    def __post_init__(self):
        if self.reference_batch_size is not None and self.reference_batch_size < 1:
            raise InputError(
                f"recipe.reference_batch_size is {self.reference_batch_size}, but must be at least 1 (or null for "
                "learning rates as they are written)."
            )


def build_loaders(config, device: torch.device) -> tuple[Loader, Loader]:
    """The training and the validation loader of a configuration."""
    data, augment = config.data, config.recipe.augment
    train_source, val_source = few(*splits_of(config)) if config.trainer.rehearse else splits_of(config)
    common = dict(
        batch_size=config.trainer.batch_size,
        bad_images=BadImages(data.max_bad_images),
        workers=data.workers,
        device=device,
        timeout=config.trainer.timeout,
        rank=rank(),
        processes=world_size(),
    )
    training = dict(seed=config.seed, step=images_per_step(config.trainer))
    if (kind := task_class(config).target) is not None:
        samples = AnnotatedPictures(train_source, dense_training_transform(data, config.recipe.dense, kind))
        train_loader = Loader(samples, wide=train_source.wide, **training, **common)
    else:
        if data.label_maps and (augment.degrees or augment.translate or augment.zoom):
            raise InputError("Label maps follow crops and flips alone: with data.label_maps, leave other geometry out.")
        samples = LabelledPictures(train_source, training_transform(data, augment), data.label_maps)
        train_loader = Loader(samples, repeats=augment.repeats, **training, **common)
    return train_loader, Loader(evaluation_samples(config, val_source), **common)


def splits_of(config) -> tuple:
    """The training and the validation split of the data, with what the task needs to know of each picture."""
    return config.data.splits(*_wanted(config))


def evaluation_source(config):
    """What to evaluate on."""
    return config.data.evaluation(*_wanted(config))


def _wanted(config) -> tuple[str, ...]:
    """What the data are asked for: nothing, for a class of each picture, else a kind of target."""
    check_data(config)
    kind = task_class(config).target
    return () if kind is None else (kind,)


def evaluation_samples(config, source) -> LabelledPictures | AnnotatedPictures:
    """The pictures of a source as they are evaluated."""
    if task_class(config).target is None:
        return LabelledPictures(source, evaluation_transform(config.data))
    return AnnotatedPictures(source)


def evaluation_picture(config, file: str | Path) -> Tensor:
    """A picture of one's own as it is evaluated, turned as its EXIF data say, uint8 (channels, H, W)."""
    try:
        picture = upright(file, config.data.channels)
        if task_class(config).target is None:
            return evaluation_transform(config.data)(picture)
        return torch.from_numpy(picture.pixels()).permute(2, 0, 1)
    except BadImageError as error:
        raise InputError(f"The picture {file} cannot be read ({error}).") from error


def check_data(config) -> None:
    """Raise InputError where the data do not say of their pictures what the task needs to know."""
    dense = task_class(config).target is not None
    if dense != isinstance(config.data, DenseSettings):
        fitting = [name for name, kind in DATASETS.items() if issubclass(kind, DenseSettings) == dense]
        raise InputError(
            f"task={config.task['name']} needs {'boxes, masks or maps' if dense else 'labels'}, which "
            f"data={config.data.name} does not have. Choose data={', '.join(fitting[:-1])} or {fitting[-1]}."
        )


def task_class(config) -> type:
    """The class of the task that a configuration names."""
    if config.task["name"] not in TASKS:
        raise InputError(f"There is no task {config.task['name']!r}; there is: {', '.join(TASKS)}.")
    return TASKS[config.task["name"]]


def build_task(config, classes: list[str], things: list[bool] | None = None, **backbone: Any) -> nn.Module:
    """The task around the backbone; `backbone` adds to the configured keywords."""
    kind, data = task_class(config), config.data
    options = {key: value for key, value in config.task.items() if key != "name"}
    if kind.target is None:
        defaults = dict(img_size=data.img_size) | kind.backbone_keywords(classes)
        model = build_backbone(config, defaults, backbone)
        if data.img_size < model.min_size:
            raise InputError(
                f"{config.backbone['name']} takes pictures of at least {model.min_size} pixels, but data.img_size is "
                "smaller."
            )
        build = partial(kind, model, classes, data.mean, data.std, config.recipe, **options)
    else:
        model = build_backbone(config, dict(features_only=True, dense=kind.dense), backbone)
        freeze_stages(model, options.pop("frozen_stages", 0))
        if (rank := options.pop("lora_rank", None)) is not None:
            add_lora(model, rank)
        build = partial(kind.build, model, classes, things, data, **options)
    try:
        return build()
    except TypeError as error:
        raise InputError(f"The task cannot be built with {config.task}: {first_line(error)}.") from error


def load_task(
    config, checkpoint: Path | None, classes: list[str], things: list[bool] | None, device: torch.device
) -> nn.Module:
    """The task with the weights of a file, in evaluation mode; None: with those that the backbone's keywords name."""
    kind = task_class(config)
    weights = {} if checkpoint is None else dict(checkpoint_path=checkpoint, pretrained=False)
    if kind.whole_checkpoint:
        if checkpoint is None:
            raise InputError(f"task={config.task['name']} evaluates what it trained: give run=PATH.")
        weights = dict(checkpoint_path="", pretrained=False)
    task = build_task(config, classes, things, **weights).to(device).eval()
    if kind.whole_checkpoint:
        task.load_weights(read_checkpoint(checkpoint))
    task.check_weights()
    return task


def build_backbone(config, defaults: dict[str, Any], more: dict[str, Any]) -> nn.Module:
    """The backbone with its configured keywords, those that follow from the task, and `more`."""
    for keyword in ("num_classes", "features_only", "out_indices", "dense"):
        if keyword in config.backbone:
            raise InputError(f"backbone.{keyword} follows from the task and the data; leave it out.")
    keywords = dict(in_chans=config.data.channels) | defaults | config.backbone | more
    name, checkpoint = keywords.pop("name"), keywords.pop("checkpoint", None)
    if checkpoint and "checkpoint_path" not in more:
        keywords["checkpoint_path"] = weights_file(Path(checkpoint))
    try:
        return backbones.create_model(name, **keywords)
    except InputError:
        raise
    except (TypeError, ValueError, LookupError, ArithmeticError, RuntimeError) as error:
        raise InputError(f"{name} cannot be built with {keywords}: {first_line(error)}.") from error


def weights_file(path: Path) -> Path:
    """A file of weights, or that of the best weights in a run folder."""
    best = RunFolder(path).best
    if path.is_dir() and not best.is_file():
        raise InputError(f"backbone.checkpoint is the folder {path}, but there are no weights of a run: no {best}.")
    return best if path.is_dir() else path


def saved_classes(checkpoint: Path | str) -> tuple[list[str] | None, list[bool] | None]:
    """Names of the labels, and of segments whether they are counted, as far as a checkpoint says them."""
    saved = read_metadata(checkpoint)
    return json.loads(saved.get("classes", "null")), json.loads(saved.get("things", "null"))


def check_classes(checkpoint: Path, classes: list[str]) -> None:
    """Raise InputError where a checkpoint says that it was trained for other classes, or the same in another order."""
    saved, _ = saved_classes(checkpoint)
    if saved is not None and saved != classes:
        raise InputError(
            f"The checkpoint {checkpoint} was trained for other classes ({', '.join(saved[:5])}, …) than the data has "
            f"({', '.join(classes[:5])}, …). Use it with data of the same class names."
        )


def build_logger(name: str, settings: dict[str, Any]):
    if name not in LOGGERS:
        raise InputError(f"There is no logger {name!r}.{suggest(name, list(LOGGERS))}")
    return LOGGERS[name](**settings)
