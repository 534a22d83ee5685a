"""Evaluate a run, or any backbone and checkpoint, on a data set or on one picture."""

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import MISSING, DictConfig, OmegaConf
from PIL import Image

from backbones import InputError
from train import CONFIGS, register_schemas, saved_config, with_free_keywords
from training.building import (
    Recipe,
    check_classes,
    evaluation_picture,
    evaluation_samples,
    evaluation_source,
    load_task,
    saved_classes,
    splits_of,
    task_class,
)
from training.commandline import ending_well
from training.data import BadImages, DataSettings, Loader
from training.data.dense import DenseSettings
from training.distributed import choose_device, gather, joined, rank, world_size
from training.engine import Precision, Reporter, RunFolder, TrainerSettings, evaluate
from training.sweep import Job, Sweep, comes_cropped, jobs_of
from training.tasks import Scoring

PER_CALL = ("run", "checkpoint", "image", "run_dir", "debug")
PATTERNS = ("backbone", "run", "checkpoint")  # keys whose values may have * and ? with -m
MULTIRUN, HELP = {"-m", "--multirun"}, {"-h", "--help", "--hydra-help"}


@dataclass
class EvalConfig:
    """Names and types of everything that `configs/eval.yaml` and the command line can set."""

    backbone: dict[str, Any] = MISSING
    data: Any = MISSING
    task: dict[str, Any] = MISSING
    recipe: Recipe = field(default_factory=Recipe)
    trainer: TrainerSettings = field(default_factory=TrainerSettings)
    checkpoint: str | None = None
    image: str | None = None
    run_dir: str | None = None
    debug: bool = False


def evaluate_run(folder: Path, overrides: list[str], given: dict[str, str]) -> None:
    """Evaluate a run's best weights, or another checkpoint, on its validation set, on other data, or on one picture."""
    report(*config_of_run(folder, overrides, given), given.get("image"), Path(given.get("run_dir", folder)))


def config_of_run(folder: Path, overrides: list[str], given: dict[str, str]) -> tuple:
    """What to evaluate of a run, its configuration with overrides on top, and the checkpoint."""
    run = RunFolder(folder)
    of_data = [text for text in overrides if "data" in given and text.startswith(("data=", "data."))]
    config = OmegaConf.to_object(saved_config(folder, [text for text in overrides if text not in of_data]))
    config.recipe = Recipe()  # how it was taught does not matter, and a teacher need not be built
    if of_data:
        config.data = other_data(config.data, given["data"], of_data)
    checkpoint = Path(given.get("checkpoint", run.best))
    if checkpoint == run.best and not run.best.is_file():
        raise InputError(f"The run in {folder} has no weights yet: {run.best} does not exist. Let it finish an epoch.")
    return config, checkpoint


def config_of(cfg: DictConfig) -> tuple:
    """What to evaluate as composed, and the checkpoint; None: the weights that the backbone's own keywords name."""
    if OmegaConf.is_missing(cfg, "backbone") or OmegaConf.is_missing(cfg, "data"):
        raise InputError("Name what to evaluate: run=PATH, or backbone=NAME checkpoint=PATH data=NAME.")
    config = OmegaConf.to_object(cfg)
    own = (config.backbone.get(key) for key in ("checkpoint", "checkpoint_path", "pretrained"))
    if not (config.checkpoint or any(own)):
        raise InputError("Name the weights to evaluate: checkpoint=PATH, or backbone.pretrained=true.")
    return config, Path(config.checkpoint) if config.checkpoint else None


def other_data(learned: DataSettings, name: str, overrides: list[str]) -> DataSettings:
    """Another data set, for a network that learned from `learned`: its pictures are prepared as those were."""
    common = DenseSettings if isinstance(learned, DenseSettings) else DataSettings
    kept = {field.name: getattr(learned, field.name) for field in fields(common) if field.name != "name"}
    if comes_cropped(name):
        del kept["crop_pct"]
    kept = [f"data.{key}={json.dumps(value)}" for key, value in kept.items()]
    with hydra.initialize_config_dir(CONFIGS, version_base="1.3"):
        return OmegaConf.to_object(hydra.compose("eval", kept + overrides).data)


def report(config, checkpoint: Path | None, image: str | None, folder: Path | None) -> None:
    """Evaluate a configured backbone, and say and write how it did.

    Args:
        checkpoint: its weights; None: those that the backbone's own keywords name.
        folder: where eval.json and the pictures go; None: a new one under runs/eval.
    """
    device = choose_device(config.trainer.device)
    with joined(device, config.trainer.timeout):
        report_together(config, checkpoint, image, folder, device)


def report_together(
    config, checkpoint: Path | None, image: str | None, folder: Path | None, device, check: Callable = lambda: None
) -> None:
    """`report` in one of the processes that torchrun started, or in the only one; the first of them writes.

    `check` is called after each batch; what it raises ends the evaluation.
    """
    first = rank() == 0
    reporter = Reporter(quiet=not first)
    kind = task_class(config)
    # A checkpoint of this project names its classes, so a picture needs no data; nearest neighbours are of the data.
    classes, things = saved_classes(checkpoint or "") if kind.trains else (None, None)
    if image is None or classes is None:
        train_source, source = (None, evaluation_source(config)) if kind.trains else splits_of(config)
        if checkpoint is not None and kind.trains:
            check_classes(checkpoint, source.classes)
        things = getattr(source, "things", None)
    task = load_task(config, checkpoint, classes or source.classes, things, device)
    precision = Precision(config.trainer.precision, device)
    bad_images = BadImages(config.data.max_bad_images)

    def loader_of(source, **shared: int) -> Loader:
        return Loader(
            evaluation_samples(config, source),
            config.trainer.batch_size,
            bad_images,
            config.data.workers,
            device=device,
            timeout=config.trainer.timeout,
            **shared,
        )

    if not kind.trains:
        reporter.note(f"Features of {len(train_source)} training pictures are taken …")
        with precision.autocast():
            task.memorise(loader_of(train_source).epoch())
    if image is not None:
        if first:
            classify(task, config, image) if kind.target is None else find(task, config, Path(image), folder)
        return
    if kind.target is None:
        task.scoring = Scoring(source)

    if first:
        folder = output_folder(folder)
    bad_images.reasons.clear()
    started = time.perf_counter()
    loader = loader_of(source, rank=rank(), processes=world_size())
    metrics = evaluate(task, loader, precision, reporter, check=check)
    seconds = time.perf_counter() - started
    unreadable = sorted({name for each in gather(list(bad_images.reasons)) for name in each})
    if not first:
        return
    images = len(source) - len(unreadable)
    result = dict(
        task=config.task["name"],
        backbone=config.backbone["name"],
        data=config.data.name,
        **metrics,
        images=images,
        unreadable=unreadable,
        images_per_second=images / seconds,
        checkpoint=None if checkpoint is None else str(checkpoint),
    )
    RunFolder(folder).write_json("eval.json", result)
    task.write_pictures(folder, source)
    reporter.note(
        f"{result['backbone']} on {images} pictures of {result['data']}: {task.describe(metrics)}, "
        f"{result['images_per_second']:.0f} images/s. eval.json and pictures are in {folder}"
    )


def output_folder(folder: Path | None) -> Path:
    """The folder, or a new one under runs/eval; it is there."""
    folder = folder or RunFolder.new_by_time(Path("runs/eval")).path
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def classify(task, config, file: str) -> None:
    """Print the likeliest classes of one picture."""
    for name, probability in task.predict(evaluation_picture(config, file)):
        print(f"{probability:7.2%}  {name}")


def find(task, config, file: Path, folder: Path | None) -> None:
    """Write what is found in one picture: drawn in, as JSON, and where there is a map, its numbers as a PNG."""
    image = evaluation_picture(config, file)
    prediction = task.predict(image.to(choose_device(config.trainer.device)))
    folder = output_folder(folder)
    names = [f"{file.stem}_{config.task['name']}.png", f"{file.stem}_{config.task['name']}.json"]
    task.drawn(image, prediction).save(folder / names[0])
    found = dict(image=str(file), height=image.shape[1], width=image.shape[2], found=task.listed(prediction))
    RunFolder(folder).write_json(names[1], found)
    if (numbers := task.map_of(prediction)) is not None:
        names.append(f"{file.stem}_{config.task['name']}_map.png")
        Image.fromarray(numbers.numpy()).save(folder / names[2])
    for entry in found["found"][:20]:
        print("  ".join(f"{key} {value}" for key, value in entry.items() if key != "mask"))
    print(f"{len(found['found'])} found. {', '.join(names)} are in {folder}")


@hydra.main(version_base="1.3", config_path=CONFIGS, config_name="eval")
def compose_and_evaluate(cfg: DictConfig) -> None:
    with ending_well(cfg.debug):
        config, checkpoint = config_of(cfg)
        report(config, checkpoint, config.image, Path(config.run_dir) if config.run_dir else None)


def values_given(arguments: list[str]) -> dict[str, list[str]]:
    """The values of each key, as `jobs_of` takes them.

    Raises:
        InputError: an argument that says nothing of many evaluations.
    """
    for argument in arguments:
        if "=" not in argument or argument.startswith(("hydra", "image=")):
            raise InputError(f"With -m, which makes a table of many evaluations, {argument} has no place.")
    given = {}
    for override in OverridesParser.create().parse_overrides(arguments):
        key, _, text = override.input_line.partition("=")
        value = [override.value()] if isinstance(override.value(), str) and key in PATTERNS else [text]
        given[key] = list(override.sweep_string_iterator()) if override.is_sweep_override() else value
    return given


def evaluate_all(arguments: list[str]) -> None:
    """Evaluate every combination of the values given, patterns among them, into one table (`training.sweep`)."""
    given = values_given(arguments)
    asked = [argument for argument in arguments if argument.partition("=")[0] not in ("run_dir", "debug")]
    [run_dir], [debug] = (given.pop(key, [default]) for key, default in (("run_dir", None), ("debug", "false")))
    device = choose_device(given.get("trainer.device", ["auto"])[0])

    def evaluate_one(job: Job, folder: Path, check: Callable) -> None:
        of_one = dict(text.split("=", 1) for text in job.overrides)
        if "run" in of_one:
            overrides = [text for text in job.overrides if text.partition("=")[0] not in PER_CALL]
            config, checkpoint = config_of_run(Path(of_one["run"]), overrides, of_one)
        else:
            with hydra.initialize_config_dir(CONFIGS, version_base="1.3"):
                config, checkpoint = config_of(hydra.compose("eval", list(map(with_free_keywords, job.overrides))))
        report_together(config, checkpoint, None, folder, device, check)

    with joined(device, float(given.get("trainer.timeout", [TrainerSettings.timeout])[0])):
        sweep = Sweep(asked, Path(run_dir) if run_dir else None, jobs_of(given))
        sweep.run_all(evaluate_one, debug.lower() == "true")


def main(arguments: list[str]) -> None:
    """Evaluate many into one table, or the run that run=PATH names, or compose a configuration."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors of composing reach `ending_well`
    register_schemas(eval=EvalConfig)
    given = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
    with ending_well(given.get("debug", "").lower() == "true"):
        if MULTIRUN & set(arguments) and not HELP & set(arguments):
            evaluate_all([argument for argument in arguments if argument not in MULTIRUN])
        elif "run" in given:
            overrides = [argument for argument in arguments if argument.partition("=")[0] not in PER_CALL]
            evaluate_run(Path(given["run"]), overrides, given)
        else:
            sys.argv[1:] = map(with_free_keywords, arguments)
            compose_and_evaluate()


if __name__ == "__main__":
    main(sys.argv[1:])
