"""Train a backbone: compose a configuration, build what it names, and fit."""

import json
import os
import sys
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hydra
import torch
from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf
from torch import nn
from yaml import YAMLError

import backbones
from backbones import InputError
from backbones.checkpoints import read_metadata
from backbones.errors import first_line, suggest
from training.commandline import ending_well
from training.data import (
    DATASETS,
    AugmentSettings,
    BadImages,
    Loader,
    evaluation_transform,
    training_transform,
)
from training.distributed import barrier, broadcast, choose_device, joined, rank, restarted, world_size
from training.engine import (
    LOGGERS,
    Checkpoints,
    EmaSettings,
    OptimizerSettings,
    Reporter,
    RunFolder,
    ScheduleSettings,
    Session,
    TrainerSettings,
    find_unfinished,
    fit,
    is_sharded,
    scale_rates,
)
from training.rehearsal import few, rehearsals
from training.seeding import seed_everything
from training.tasks import TASKS, TeachingSettings

CONFIGS = str(Path(__file__).parent / "configs")
GROUPS = tuple(path.name for path in Path(CONFIGS).iterdir() if path.is_dir())
PER_CALL = ("run_dir", "resume", "debug")  # keys that are about one call, and not part of a run's configuration


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


@dataclass
class TrainConfig:
    """Names and types of everything that `configs/` and the command line can set."""

    name: str = MISSING
    backbone: dict[str, Any] = MISSING
    data: Any = MISSING
    task: dict[str, Any] = MISSING
    recipe: Recipe = field(default_factory=Recipe)
    trainer: TrainerSettings = field(default_factory=TrainerSettings)
    logger: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    run_dir: str | None = None
    resume: str | None = None
    debug: bool = False

    def __post_init__(self):
        if self.seed < 0:
            raise InputError(f"seed is {self.seed}, but must not be negative.")


def register_schemas(**more: type) -> None:
    """Give the files of `configs/` their types, as choices of the group `schema`."""
    nodes = dict(train=TrainConfig, recipe=Recipe, trainer=TrainerSettings, **DATASETS, **more)
    for name, node in nodes.items():
        ConfigStore.instance().store(group="schema", name=name, node=node)


def rehearse(cfg: DictConfig) -> None:
    """Train as configured with trainer.rehearse=true: every phase of the recipe, in minutes."""
    nano = f"{backbones.model_info(cfg.backbone.name)['family']}_nano"
    start, on_cpu = None, choose_device(cfg.trainer.device).type == "cpu"
    for config in rehearsals(OmegaConf.to_container(cfg, resolve=True), nano, on_cpu):
        if start is not None:
            config["backbone"]["checkpoint_path"] = str(start.best)
        start = train(with_types(OmegaConf.create(config)))


def train(cfg: DictConfig, run: RunFolder | None = None) -> RunFolder:
    """Train as configured: in the run folder given, or in the one that resume=auto finds, or in a new one."""
    config: TrainConfig = OmegaConf.to_object(cfg)
    device = choose_device(config.trainer.device)
    if not task_class(config).trains:
        raise InputError(f"task={config.task['name']} has nothing to train; evaluate it: python eval.py task=…")
    with joined(device, config.trainer.timeout):
        return train_together(cfg, config, device, run)


def train_together(cfg: DictConfig, config: TrainConfig, device: torch.device, run: RunFolder | None) -> RunFolder:
    """`train` in one of the processes that torchrun started, or in the only one; the first of them writes."""
    first = rank() == 0
    loggers = [build_logger(name, settings) for name, settings in config.logger.items()] if first else []
    reporter = Reporter(loggers, quiet=not first)
    run = run or broadcast(find_run(cfg) if first else None)
    sharded = is_sharded(config.trainer)
    resuming = run is not None and Checkpoints(run.checkpoints, sharded).exist()
    if run is not None and run.metrics.exists() and not resuming:
        raise InputError(
            f"The run in {run.path} has finished epochs, but {run.checkpoints} holds no checkpoint to go on from. "
            "Put it back, or start a new run in another run_dir."
        )
    train_loader, val_loader = build_loaders(config, device)
    seed_everything(config.seed, "weights")
    # A resumed run has its weights; those it once started from may be gone.
    start = dict(pretrained=False, checkpoint_path="") if resuming else {}
    task = build_task(config, train_loader.source.classes, **start).to(device)
    recipe = config.recipe
    images_per_step = config.trainer.batch_size * config.trainer.accumulation_steps * world_size()
    rates = scale_rates(recipe.optimizer, recipe.schedule, images_per_step, recipe.reference_batch_size)
    session = Session(
        task.model,
        device,
        len(train_loader),
        config.seed,
        config.trainer,
        *rates,
        recipe.ema,
    )

    # Only now that most of what can be wrong has been found is there a folder.
    if run is None:
        run = broadcast(RunFolder.create(config.run_dir, config.name, config_text(cfg)) if first else None)
    checkpoints = Checkpoints(run.checkpoints, sharded)
    with run.locked() if first else nullcontext():
        reporter.note(f"{config.backbone['name']} on {config.data.name}, in {run.path}")
        if resuming:
            check_classes(run.best, train_loader.source.classes)
            session.restore(checkpoints)
            reporter.note(f"Resumed at epoch {session.progress.epoch + 1}, step {session.progress.step}.")
        barrier()  # until every process has read what the first one is about to change
        if first:
            run.write_config(config_text(cfg))
            run.summary.unlink(missing_ok=True)  # a finished run that goes on is unfinished
            reporter.start(OmegaConf.to_container(cfg, resolve=True), run.path)
        result = fit(task, train_loader, val_loader, session, run, checkpoints, reporter)
        summary = dict(task=config.task["name"], backbone=config.backbone["name"], data=config.data.name) | result
        if first:
            run.write_json("summary.json", summary)
        reporter.finish(summary)
    pictures = ", ".join(path.name for path in sorted(run.path.glob("*.png")))
    reporter.note(
        f"Best weights: {task.describe(summary)}\n"
        f"Results:      {run.path}/ (summary.json, metrics.csv, {pictures})\n"
        f"Weights:      {run.best}\n"
        f"Try a file:   python eval.py run={run.path} image=FILE"
    )
    return run


def find_run(cfg: DictConfig) -> RunFolder | None:
    """With resume=auto: the run in run_dir, or else the newest unfinished one of the same configuration.

    A process that torchrun starts again after a failure goes on, whatever it was told at first.
    """
    if cfg.resume != "auto" and not restarted():
        return None
    if cfg.run_dir is None:
        run = find_unfinished(Path("runs") / cfg.name, config_text(cfg))
    else:
        run = RunFolder(cfg.run_dir)
        run = run if run.config.exists() else None
        if run is not None and run.config.read_text() != config_text(cfg):
            raise InputError(
                f"The run in {cfg.run_dir} has another configuration (see its config.yaml), so resume=auto does not "
                f"continue it. Use resume={cfg.run_dir} to go on as it began, or another run_dir."
            )
    if run is None:
        print("There is no unfinished run of this configuration; a new one begins.")
    return run


def config_text(cfg: DictConfig) -> str:
    """What config.yaml says: the configuration, resolved, without what is about this call alone."""
    kept = OmegaConf.masked_copy(cfg, [key for key in cfg if key not in PER_CALL])
    OmegaConf.resolve(kept)
    return OmegaConf.to_yaml(kept)


def saved_config(folder: Path, overrides: list[str]) -> DictConfig:
    """The configuration of a run, with KEY=VALUE overrides on top, typed as it was when composed.

    Raises:
        InputError: there is no run in the folder.
    """
    if not RunFolder(folder).config.is_file():
        raise InputError(f"There is no run in {folder}: it has no config.yaml.")
    for override in overrides:
        if override.lstrip("+~").partition("=")[0] in GROUPS:
            raise InputError(f"A run keeps its choices, so {override} has no place here; only KEY.KEY=VALUE has.")
    try:
        with hydra.initialize_config_dir(str(folder.resolve()), version_base="1.3"):
            saved = hydra.compose("config", [with_free_backbone(override) for override in overrides])
    except YAMLError as error:
        raise InputError(f"{folder / 'config.yaml'} is damaged ({first_line(error)}).") from error
    return with_types(saved)


def with_types(config: DictConfig) -> DictConfig:
    """A configuration from a file or a dictionary with the types that a composed one has."""
    schema = OmegaConf.structured(TrainConfig)
    if config.data.name not in DATASETS:
        raise InputError(f"There is no data set {config.data.name!r}; data.name must be one of {', '.join(DATASETS)}.")
    schema.data = OmegaConf.structured(DATASETS[config.data.name])
    return OmegaConf.merge(schema, config)


def build_loaders(config: TrainConfig, device: torch.device) -> tuple[Loader, Loader]:
    """The training and the validation loader."""
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
    augment, step = config.recipe.augment, config.trainer.batch_size * config.trainer.accumulation_steps * world_size()
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


def with_free_backbone(override: str) -> str:
    """Let any keyword of a backbone be set, also one that its YAML file does not name."""
    return f"++{override}" if override.startswith("backbone.") else override


@hydra.main(version_base="1.3", config_path=CONFIGS, config_name="train")
def compose_and_train(cfg: DictConfig) -> None:
    with ending_well(cfg.debug):
        rehearse(cfg) if cfg.trainer.rehearse else train(cfg)


def main(arguments: list[str]) -> None:
    """Resume the run that resume=PATH names, or compose a configuration."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors of composing reach `ending_well`
    register_schemas()
    given = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
    with ending_well(given.get("debug", "").lower() == "true"):
        if given.get("resume", "auto") in ("auto", "null"):
            sys.argv[1:] = map(with_free_backbone, arguments)
            compose_and_train()
        else:
            if "run_dir" in given:
                raise InputError("resume=PATH goes on in PATH itself, so run_dir has no place beside it.")
            overrides = [argument for argument in arguments if argument.partition("=")[0] not in PER_CALL]
            train(saved_config(Path(given["resume"]), overrides), RunFolder(given["resume"]))


if __name__ == "__main__":
    main(sys.argv[1:])
