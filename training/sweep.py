"""Many evaluations, one table: patterns become jobs, and what has been evaluated outlasts the program."""

import csv
import glob
import io
import itertools
import json
import re
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import backbones
from backbones import InputError
from backbones.errors import first_line
from backbones.registry import published_weights

from .commandline import paragraph
from .data import DATASETS, DataSettings
from .distributed import broadcast, rank, sum_later, world_size
from .engine import Interrupted, RunFolder, find_unfinished
from .engine.curves import METRICS
from .engine.files import write_text
from .engine.stopping import StopSignals
from .report import aligned

SWEEPS = Path("runs/eval")
TITLES = {"images_per_second": "images/s", "top5": "top-5", "published_top1": "published top-1"}
PREPROCESSING = ("crop_pct", "crop_mode", "interpolation", "mean", "std")
VALIDATION_IMAGES = 50_000  # of ImageNet-1k; published figures are of all of these
# What one evaluation may fail of while the others go on. A bug is among these: its traceback is printed.
FAILURES = (InputError, OSError, RuntimeError, TypeError, ValueError, LookupError, ArithmeticError)
Row = dict[str, Any]


@dataclass
class Job:
    """One evaluation.

    Args:
        values: what tells it from the others, by key, such as {"backbone": "swin_t.ms_in1k"}.
        overrides: KEY=VALUE as `eval.py` takes them.
        published: top-1 on ImageNet-1k that the release states for these weights, as a fraction.
    """

    values: dict[str, str]
    overrides: list[str]
    published: float | None = None

    @property
    def name(self) -> str:
        return ", ".join(self.values.values())


def jobs_of(given: dict[str, list[str]]) -> list[Job]:
    """The product of the values of each key; `backbone`, `run` and `checkpoint` may have shell patterns.

    A backbone without weights of the caller's (`checkpoint`, `backbone.checkpoint`, `backbone.checkpoint_path`) means
    its published ImageNet-1k weights, all of them, and the data are prepared as each of these wants it.

    Raises:
        InputError: a pattern that nothing matches.
    """
    weights = {"checkpoint", "backbone.checkpoint", "backbone.checkpoint_path"} & given.keys()
    finders = dict(backbone=_named if weights else _published, run=_files, checkpoint=_files)
    axes = {}
    for key in sorted(given, key="backbone".__ne__):  # first, for what is given has the last word on the data
        parts = [part for value in given[key] for part in finders.get(key, _as_given)(key, value)]
        axes[key] = list({part.name: part for part in parts}.values())
    telling = [key for key, axis in axes.items() if len(axis) > 1 or key in ("backbone", "run")]
    jobs = []
    for product in itertools.product(*axes.values()):
        parts = dict(zip(axes, product))
        overrides = dict(text.split("=", 1) for part in product for text in part.overrides)
        if comes_cropped(overrides.get("data", "")) and "data.crop_pct" not in given:
            overrides.pop("data.crop_pct", None)
        published = parts["backbone"].published if "backbone" in parts else None
        values = {key: parts[key].name for key in telling}
        jobs.append(Job(values, [f"{key}={value}" for key, value in overrides.items()], published))
    return jobs


def _as_given(key: str, value: str) -> Iterator[Job]:
    yield Job({key: value}, [f"{key}={value}"])


def _named(key: str, pattern: str) -> Iterator[Job]:
    names = backbones.list_models(pattern)
    if not names:
        raise InputError(f"No model is named like {pattern!r}; python -m backbones list prints all names.")
    for name in names:
        yield from _as_given(key, name)


def _published(key: str, pattern: str) -> Iterator[Job]:
    found = {full: published_weights(full) for full in backbones.list_models(pattern, pretrained=True)}
    found = {full: own for full, own in found.items() if own["num_classes"] == 1000}
    if not found:
        raise InputError(
            f"No published ImageNet-1k weights are named like {pattern!r}; python -m backbones list --pretrained "
            "prints all. Weights of your own are checkpoint=PATH, where ${backbone.name} stands for the model's name."
        )
    for full, own in found.items():
        overrides = [f"backbone={full.partition('.')[0]}", f"backbone.name={full}", "backbone.pretrained=true"]
        overrides += [f"data.img_size={own['input_size'][1]}"]
        overrides += [f"data.{k}={json.dumps(own[k], separators=(',', ':'))}" for k in PREPROCESSING if k in own]
        yield Job({key: full}, overrides, own["top1"] and own["top1"] / 100)


def _files(key: str, pattern: str) -> Iterator[Job]:
    paths = sorted(glob.glob(pattern, recursive=True)) if glob.has_magic(pattern) else [pattern]
    if key == "run" and glob.has_magic(pattern):
        paths = [path for path in paths if RunFolder(path).best.is_file()]
    if not paths:
        raise InputError(f"There is no {'run with weights' if key == 'run' else key} at {pattern}.")
    for path in paths:
        # Hydra reads checkpoint=…, to which a comma or a space means something.
        plain = key == "run" or re.fullmatch(r"[\w./${}~-]+", path)
        escaped = path.replace("'", r"\'")
        yield Job({key: path}, [f"{key}={path}" if plain else f"{key}='{escaped}'"])


def comes_cropped(data: str) -> bool:
    """Whether the pictures of a data set are cropped already, so that a crop of the classifier's has no place."""
    return getattr(DATASETS.get(data), "crop_pct", DataSettings.crop_pct) != DataSettings.crop_pct


class Sweep:
    """The folder of a table: a folder with eval.json and pictures per job, and results.csv and results.md of them all.

    Args:
        asked: what was asked for, word for word; the same words go on with what they have begun.
        path: the folder; None: that of an unfinished sweep for the same, or a new one under runs/eval.
    """

    def __init__(self, asked: list[str], path: Path | None, jobs: list[Job]):
        text = "".join(f"- {json.dumps(argument)}\n" for argument in asked)
        if path is None:
            self.run = broadcast(_folder(text) if rank() == 0 else None)
        else:
            self.run = RunFolder(path)
            if self.run.config.exists() and self.run.config.read_text() != text:
                raise InputError(
                    f"{self.run.config} says that {path} is the table of something else. Choose another run_dir."
                )
        if rank() == 0:
            self.run.path.mkdir(parents=True, exist_ok=True)
            self.run.write_config(text)
        self.jobs, self.rows = jobs, {}

    def folder(self, job: Job) -> Path:
        number = [other.name for other in self.jobs].index(job.name)
        alike = sum(_as_file(other.name) == _as_file(job.name) for other in self.jobs[:number])
        return self.run.path / (_as_file(job.name) + f"-{alike + 1}" * (alike > 0))

    def done(self, job: Job) -> bool:
        """Whether it has been evaluated, with the weights as they are now."""
        file = self.folder(job) / "eval.json"
        if not file.is_file():
            return False
        checkpoint = Path(json.loads(file.read_text())["checkpoint"] or file)
        return not checkpoint.exists() or checkpoint.stat().st_mtime <= file.stat().st_mtime

    def add(self, job: Job, error: str | None = None) -> None:
        """Set the job's row to what its eval.json says, or to the error, and write the table."""
        row = dict(job.values)
        if error is None:
            result = json.loads((self.folder(job) / "eval.json").read_text())
            row |= {key: value for key, value in result.items() if isinstance(value, str | float | int)} | job.values
            if job.published and (result["data"], result["images"]) == ("imagenet", VALIDATION_IMAGES):
                row |= dict(published_top1=job.published, difference=result["top1"] - job.published)
        self.rows[job.name] = row | dict(error=error, overrides=" ".join(job.overrides))
        rows = [self.rows[job.name] for job in self.jobs if job.name in self.rows]
        text = io.StringIO()
        writer = csv.DictWriter(text, _columns(rows), extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_text(self.run.path / "results.csv", text.getvalue())
        write_text(self.run.path / "results.md", self.table() + "\n")

    def table(self) -> str:
        """The rows so far in Markdown: what tells them apart, and the figures."""
        rows = [self.rows[job.name] for job in self.jobs if job.name in self.rows]
        columns = []
        for name in _columns(rows):
            values = [row.get(name) for row in rows]
            alike = name in ("task", "backbone", "data") and len({*values} - {None}) < 2
            if name not in self.jobs[0].values and (alike or name in ("checkpoint", "overrides")):
                continue
            rate = name not in ("loss", "images_per_second") and any(isinstance(value, float) for value in values)
            columns.append([_title(name, rate), *(_cell(name, value, rate) for value in values)])
        return aligned(columns)

    def run_all(self, evaluate: Callable[[Job, Path, Callable[[], None]], None], debug: bool) -> None:
        """Evaluate what is not evaluated yet, each by `evaluate(job, folder, check)`, which calls `check` at times.

        Raises:
            InputError: at the end, where some could not be evaluated.
            Interrupted: a signal came; what has been evaluated is in the folder.
        """
        first = rank() == 0
        with self.run.locked() if first else nullcontext(), _stopping(self.run.path) as check:
            done = broadcast([self.done(job) for job in self.jobs] if first else None)
            if first:
                print(f"{len(self.jobs)} evaluations, {sum(done)} of them done before, in {self.run.path}", flush=True)
            for job, known in zip(self.jobs, done):
                check()
                error = None if known else _failure(evaluate, job, self.folder(job), check, debug)
                if first:
                    self.add(job, error)
        if not first:
            return
        print(f"\n{self.table()}\n\nThe table: {self.run.path}/results.csv and results.md")
        failed = [name for name, row in self.rows.items() if row["error"]]
        if failed:
            raise InputError(
                f"{len(failed)} of {len(self.jobs)} could not be evaluated, for the reasons in the table: "
                f"{'; '.join(failed)}. The same command tries these alone again."
            )
        self.run.write_json("summary.json", dict(rows=list(self.rows.values())))


def _failure(evaluate: Callable, job: Job, folder: Path, check: Callable[[], None], debug: bool) -> str | None:
    """Evaluate; returns what went wrong."""
    try:
        evaluate(job, folder, check)
    except FAILURES as error:
        if debug or (world_size() > 1 and not isinstance(error, InputError)):  # processes may be out of step
            raise
        if (reason := paragraph(error)) is None:
            traceback.print_exc()
            reason = f"{type(error).__name__}: {first_line(error)}"
        if rank() == 0:
            print(f"{job.name}: {reason}", flush=True)
        return reason


@contextmanager
def _stopping(folder: Path) -> Iterator[Callable[[], None]]:
    """A function that raises Interrupted once a signal has come to any of the processes."""
    with StopSignals() as stop:

        def check() -> None:
            [asked] = sum_later([stop.received is not None])()
            if asked:
                by = stop.received or "a signal to another process"
                raise Interrupted(f"Stopped by {by}; what has been evaluated is in {folder}.", "the same command")

        yield check


def _folder(text: str) -> RunFolder:
    return find_unfinished(SWEEPS, text) or RunFolder.new_by_time(SWEEPS)


def _as_file(name: str) -> str:
    return re.sub(r"[^\w.=-]+", "_", name).strip("._") or "_"


def _columns(rows: list[Row]) -> list[str]:
    """All columns, in order: what was evaluated, the figures, what went wrong, and how to repeat it."""
    names = list(dict.fromkeys(name for row in sorted(rows, key=len, reverse=True) for name in row))
    last = ["error"] * any(row["error"] for row in rows) + ["overrides"]
    return [name for name in names if name not in ("error", "overrides")] + last


def _title(column: str, rate: bool) -> str:
    named = METRICS | TITLES
    return f"{named.get(column, column.replace('_', ' '))}{', %' * rate}"


def _cell(column: str, value: Any, rate: bool) -> str:
    if value is None:
        return "–"
    if rate:
        return f"{100 * value:{'+' if column == 'difference' else ''}.2f}"
    if isinstance(value, float):
        return f"{value:.4f}" if column == "loss" else f"{value:.1f}"
    return str(value).replace("|", "\\|")
