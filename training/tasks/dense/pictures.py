"""Pictures and tables of how well boxes, masks and maps are found."""

import csv
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from ..pictures import confusion_picture
from .overlays import COLOURS

LINES = COLOURS[:-1]  # yellow is hard to see on white
MOST_BARS = 40


def precision_recall_picture(path: Path, curves: dict[str, np.ndarray], kind: str) -> Path:
    """Draw precision over recall at IoU 0.5, of each class and on average; of many classes, the worst are named.

    Args:
        curves: name of a class to its precisions (101,) at recalls from 0 to 1.
        kind: "boxes" or "masks".
    """
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    recalls = np.linspace(0, 1, 101)
    worst = sorted(curves, key=lambda name: curves[name].mean())[: len(LINES)]
    named = worst if len(curves) > len(LINES) else list(curves)
    for name in curves.keys() - set(named):
        axes.plot(recalls, curves[name], color="0.85", linewidth=0.8, zorder=1)
    for colour, name in zip(LINES, named):
        axes.plot(recalls, curves[name], color=colour, linewidth=1.5, label=f"{name} ({curves[name].mean():.1%})")
    if curves:
        mean = np.mean(list(curves.values()), axis=0)
        axes.plot(recalls, mean, color="black", linewidth=2.5, label=f"mean of {len(curves)} ({mean.mean():.1%})")
        title = "class (AP50)" if len(named) == len(curves) else f"{len(named)} worst classes (AP50)"
        axes.legend(title=title, loc="center left", bbox_to_anchor=(1.01, 0.5))
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02), title=f"{kind.capitalize()} at IoU 0.5")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    return path


def class_bars(path: Path, rows: list[dict], metric: str, title: str) -> Path:
    """Draw a metric of each class, the worst first, and at most MOST_BARS.

    Args:
        rows: as in `Scores.per_class`.
        metric: the column to draw, a fraction in [0, 1].
        title: what to call it.
    """
    worst = sorted(rows, key=lambda row: row[metric])[:MOST_BARS]
    figure = Figure(figsize=(7, 1.3 + 0.25 * max(len(worst), 2)), layout="constrained")
    axes = figure.subplots()
    values = [100 * row[metric] for row in worst]
    bars = axes.barh(range(len(worst)), values, color=COLOURS[0], height=0.7)
    axes.set_yticks(range(len(worst)), [row["class"] for row in worst])
    axes.bar_label(bars, fmt="%.1f", padding=4, fontsize=9, bbox=dict(facecolor="white", edgecolor="none", pad=0.5))
    mean = 100 * np.mean([row[metric] for row in rows]) if rows else 0
    limit = max(1.15 * max([mean, *values]), 1)
    shown = f"{title} of {len(rows)} classes, mean {mean:.1f} %"
    shown += f": the {len(worst)} worst" if len(worst) < len(rows) else ""
    axes.set(xlabel="%", title=shown, xlim=(0, limit), ylim=(len(worst) - 0.4, -0.6))
    axes.axvline(mean, color="black", linestyle="--", linewidth=1)
    figure.savefig(path, dpi=120)
    return path


def pixel_confusion_picture(path: Path, confusion: Tensor, classes: list[str]) -> Path:
    """Draw numbers of pixels (true, predicted) in percent of each true class, as there is no room for millions."""
    shares = 100 * confusion.double() / confusion.sum(1, keepdim=True).clamp(min=1)
    return confusion_picture(path, shares.round(), classes)


def write_class_table(path: Path, rows: list[dict]) -> Path:
    """Write rows as in `Scores.per_class` as CSV; fractions to four places."""
    with path.open("w", newline="", encoding="utf-8") as file:
        if rows:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            for row in rows:
                writer.writerow({k: f"{v:.4f}" if isinstance(v, float) else v for k, v in row.items()})
    return path
