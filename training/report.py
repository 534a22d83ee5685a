"""Several runs side by side: what their folders say, as a table and as one picture."""

import csv
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from backbones.errors import InputError, first_line

from .engine import RunFolder
from .engine.curves import METRICS, History, comparison_picture, main_metric


@dataclass
class Run:
    """What a run folder holds so far.

    Attributes:
        facts: backbone, data and planned epochs, of config.yaml.
        history: rows of metrics.csv, without the cells that are empty.
        summary: summary.json; empty while the run is unfinished.
    """

    path: Path
    facts: dict[str, Any]
    history: History
    summary: dict[str, Any]

    @classmethod
    def read(cls, path: Path) -> "Run":
        """Raises InputError where there is no run, or a file of it is damaged."""
        folder = RunFolder(path)
        if not folder.config.is_file():
            raise InputError(
                f"There is no run in {path}: it has no config.yaml. Name run folders, such as runs/NAME/TIME or "
                "runs/NAME/*."
            )
        history = _read(folder.metrics, _rows) if folder.metrics.exists() else []
        summary = _read(folder.summary, json.loads) if folder.summary.exists() else {}
        return cls(path, _read(folder.config, _facts), history, summary)

    def row(self, name: str) -> dict[str, Any]:
        """The run's figures, by column; None for what it has not got.

        Rates are fractions of [0, 1], and of the epoch that has the highest or of the last; losses are the last
        epoch's.
        """
        metric = main_metric(self.history)
        rates = [row[metric] for row in self.history if metric in row]
        averages = [row[f"ema_{metric}"] for row in self.history if f"ema_{metric}" in row]
        last = self.history[-1] if self.history else {}
        seconds = sum(row["seconds"] for row in self.history)
        images = sum(row["images_per_second"] * row["seconds"] for row in self.history)
        return {
            "run": name,
            **self.facts,
            "epochs": len(self.history),
            "finished": bool(self.summary),
            "metric": metric,
            "best": max(rates, default=None),
            "last": rates[-1] if rates else None,
            "ema_best": max(averages, default=None),
            "ema_last": averages[-1] if averages else None,
            "loss": last.get("loss"),
            "train_loss": last.get("train_loss"),
            "images_per_second": images / seconds if seconds else None,
            **{key: self.summary.get(key) for key in ("wall_seconds", "peak_memory_bytes", "parameters")},
        }


# Heading of a column of the table, and how a row fills it.
COLUMNS: dict[str, Callable[[dict[str, Any]], str]] = {
    "run": lambda row: row["run"],
    "backbone": lambda row: row["backbone"],
    "data": lambda row: row["data"],
    "epochs": lambda row: f"{row['epochs']}" if row["finished"] else f"{row['epochs']} of {row['planned']}",
    "metric": lambda row: METRICS[row["metric"]],
    "best, %": lambda row: _number(row["best"], ".2f", 100),
    "last, %": lambda row: _number(row["last"], ".2f", 100),
    "EMA best, %": lambda row: _number(row["ema_best"], ".2f", 100),
    "EMA last, %": lambda row: _number(row["ema_last"], ".2f", 100),
    "loss": lambda row: _number(row["loss"], ".4f"),
    "train loss": lambda row: _number(row["train_loss"], ".4f"),
    "images/s": lambda row: _number(row["images_per_second"], ".1f"),
    "time, s": lambda row: _number(row["wall_seconds"], ".0f"),
    "memory, MiB": lambda row: _number(row["peak_memory_bytes"], ".0f", 2**-20),
    "parameters, M": lambda row: _number(row["parameters"], ".2f", 1e-6),
}


def report(paths: Iterable[Path], picture: Path) -> list[dict[str, Any]]:
    """Draw the runs in these folders into one picture, and return a row of figures for each.

    Raises:
        InputError: a folder without a run, a damaged file, no run with an epoch to draw, a picture of an unknown
            format.
        OSError: the picture cannot be written.
    """
    runs = [Run.read(path) for path in {path.resolve(): path for path in paths}.values()]
    # A run is called by the part of its path that tells it from the others.
    parent = os.path.commonpath([run.path.resolve().parent for run in runs])
    named = {str(run.path.resolve().relative_to(parent)): run for run in runs}
    histories = {name: run.history for name, run in named.items() if run.history}
    if not histories:
        raise InputError(
            f"There is nothing to draw yet: no epoch is on record in {', '.join(str(run.path) for run in runs)}. "
            "metrics.csv gets a row at the end of each epoch."
        )
    picture.parent.mkdir(parents=True, exist_ok=True)
    try:
        comparison_picture(picture, histories)
    except ValueError as error:  # a format that matplotlib does not know
        raise InputError(f"The picture {picture} cannot be written: {first_line(error)}.") from error
    return [run.row(name) for name, run in named.items()]


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as aligned text that is a table in Markdown, too; without the columns in which no run has a figure."""
    columns = [[heading, *map(cell, rows)] for heading, cell in COLUMNS.items()]
    columns = [column for column in columns if any(text != "–" for text in column[1:])]
    return aligned(columns)


def aligned(columns: list[list[str]]) -> str:
    """Columns, each a heading and its cells, as aligned text that is a table in Markdown, too."""
    lines = []
    for line in zip(*columns):
        padded = (f"{text:<{max(map(len, column))}}" for text, column in zip(line, columns))
        lines.append(f"| {' | '.join(padded)} |")
    lines.insert(1, "".join(f"|{'-' * (max(map(len, column)) + 2)}" for column in columns) + "|")
    return "\n".join(lines)


def _number(value: float | None, form: str, scale: float = 1) -> str:
    return "–" if value is None else f"{scale * value:{form}}"


def _facts(text: str) -> dict[str, Any]:
    config = yaml.safe_load(text)
    return dict(backbone=config["backbone"]["name"], data=config["data"]["name"], planned=config["trainer"]["epochs"])


def _rows(text: str) -> History:
    rows = [{name: float(cell) for name, cell in row.items() if cell} for row in csv.DictReader(text.splitlines())]
    for name in ("epoch", "seconds", "images_per_second"):
        if not all(name in row for row in rows):
            raise ValueError(f"a row has no {name}")
    return rows


def _read(path: Path, parse: Callable[[str], Any]) -> Any:
    try:
        return parse(path.read_text())
    except (OSError, ValueError, TypeError, LookupError, yaml.YAMLError) as error:
        raise InputError(
            f"{path} is damaged ({first_line(error)}). Leave that run out, or restore the file."
        ) from error
