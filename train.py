"""Train a backbone: compose a configuration, build what it names, and fit."""

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
from yaml import YAMLError

import backbones
from backbones import InputError
from backbones.errors import first_line
from training.building import Recipe, build_loaders, build_logger, build_task, check_classes, task_class
from training.commandline import ending_well
from training.data import DATASETS
from training.distributed import barrier, broadcast, choose_device, joined, rank, restarted
from training.engine import (
    Checkpoints,
    Reporter,
    RunFolder,
    Session,
    TrainerSettings,
    find_unfinished,
    fit,
    images_per_step,
    is_sharded,
    scale_rates,
)
from training.rehearsal import rehearsals
from training.seeding import seed_everything

CONFIGS = str(Path(__file__).parent / "configs")
GROUPS = tuple(path.name for path in Path(CONFIGS).iterdir() if path.is_dir())
PER_CALL = ("run_dir", "resume", "debug")  # keys that are about one call, and not part of a run's configuration


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


def train_together(cfg: DictConfig, run: RunFolder | None = None) -> None:
    """Train, or rehearse, with the processes that torchrun started, or in the only one."""
    device = choose_device(cfg.trainer.device)
    with joined(device, cfg.trainer.timeout):
        if cfg.trainer.rehearse and run is None:
            rehearse(cfg, device)
        else:
            train(cfg, device, run)


def rehearse(cfg: DictConfig, device: torch.device) -> None:
    """Train as configured with trainer.rehearse=true: every phase of the recipe, in minutes."""
    nano, start = f"{backbones.model_info(cfg.backbone.name)['family']}_nano", None
    for config in rehearsals(OmegaConf.to_container(cfg, resolve=True), nano, device.type == "cpu"):
        if start is not None:
            config["backbone"]["checkpoint_path"] = str(start.best)
        start = train(with_types(OmegaConf.create(config)), device)


def train(cfg: DictConfig, device: torch.device, run: RunFolder | None = None) -> RunFolder:
    """Train as configured: in the run folder given, or in the one that resume=auto finds, or in a new one.

    Every process calls it, and the first one writes.
    """
    config: TrainConfig = OmegaConf.to_object(cfg)
    if not task_class(config).trains:
        raise InputError(f"task={config.task['name']} has nothing to train; evaluate it: python eval.py task=…")
    first = rank() == 0
    loggers = [build_logger(name, settings) for name, settings in config.logger.items()] if first else []
    reporter = Reporter(loggers, quiet=not first)
    going_on = cfg.resume == "auto" or restarted()  # whatever was told when it started at first
    run = run or broadcast(find_run(cfg) if first and going_on else None)
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
    source = train_loader.source
    task = build_task(config, source.classes, getattr(source, "things", None), **start).to(device)
    recipe = config.recipe
    step = images_per_step(config.trainer)
    rates = scale_rates(recipe.optimizer, recipe.schedule, step, recipe.reference_batch_size)
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
    """The run to go on with: that in run_dir, or else the newest unfinished one of the same configuration."""
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
            saved = hydra.compose("config", [with_free_keywords(override) for override in overrides])
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


def with_free_keywords(override: str) -> str:
    """Let any keyword of a backbone or of a task be set, also one that its YAML file does not name."""
    return f"++{override}" if override.startswith(("backbone.", "task.")) else override


@hydra.main(version_base="1.3", config_path=CONFIGS, config_name="train")
def compose_and_train(cfg: DictConfig) -> None:
    with ending_well(cfg.debug):
        train_together(cfg)


def main(arguments: list[str]) -> None:
    """Resume the run that resume=PATH names, or compose a configuration."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors of composing reach `ending_well`
    register_schemas()
    given = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
    with ending_well(given.get("debug", "").lower() == "true"):
        if given.get("resume", "auto") in ("auto", "null"):
            sys.argv[1:] = map(with_free_keywords, arguments)
            compose_and_train()
        else:
            if "run_dir" in given:
                raise InputError("resume=PATH goes on in PATH itself, so run_dir has no place beside it.")
            overrides = [argument for argument in arguments if argument.partition("=")[0] not in PER_CALL]
            train_together(saved_config(Path(given["resume"]), overrides), RunFolder(given["resume"]))


if __name__ == "__main__":
    main(sys.argv[1:])
