"""Pictures of how trainings went."""

import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

LABELS = {"loss": "validation", "train_loss": "training (augmented)", "ema_loss": "validation, average"}
STYLES = {"": dict(), "train_": dict(linestyle="--", linewidth=1, alpha=0.6), "ema_": dict(linestyle=":")}
# What tasks are measured by, the most telling first: columns of metrics.csv, fractions in [0, 1].
METRICS = {"top1": "top-1", "box_ap": "box AP", "mask_ap": "mask AP", "pq": "PQ", "miou": "mIoU"}

History = list[dict[str, float]]


def main_metric(history: History) -> str:
    """The column by which a run of this kind is judged, also where it has no rows yet."""
    return next((name for name in METRICS if any(name in row for row in history)), "top1")


def curves_picture(path: Path, history: History) -> Path:
    """Draw loss, rates and learning rate over the epochs of `history`, the rows of metrics.csv."""
    names = [name for name, value in history[-1].items() if isinstance(value, float)]
    panels = (
        [name for name in names if name.endswith("loss")],
        [name for name in names if name.removeprefix("ema_").startswith(("top", *METRICS))],
        ["lr"],
    )
    metrics = panels[1]
    alone = METRICS.get(metrics[0], "validation") if len(metrics) == 1 else "validation"  # a legend names several
    figure, all_axes = _panels("validation accuracy, %" if "top1" in names else f"{alone}, %")
    for axes, columns in zip(all_axes, panels):
        for name in columns:
            _plot(axes, history, name, label=LABELS.get(name, name))
        if len(columns) > 1:
            axes.legend()
    figure.savefig(path, dpi=120)
    return path


def comparison_picture(path: Path, runs: dict[str, History]) -> Path:
    """Draw the curves of several runs into one picture, a colour each.

    Args:
        path: the file, of any format that matplotlib writes.
        runs: rows of metrics.csv by the name of the run; rows may lack columns.
    """
    metrics = {name: main_metric(history) for name, history in runs.items()}
    titles = dict.fromkeys(METRICS[metric] for metric in metrics.values())
    labels = [_legend_text(name) for name in runs]
    columns = max(1, min(4, 150 // (8 + max(map(len, labels)))))
    figure, all_axes = _panels(f"{' / '.join(titles)}, %", height=4.4 + 0.21 * math.ceil(len(runs) / columns))
    all_axes[0].set_yscale("log")  # runs differ most where their losses are small
    all_axes[0].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    all_axes[0].yaxis.set_major_formatter("{x:g}")
    all_axes[0].yaxis.set_minor_locator(NullLocator())
    for axes, title in zip(all_axes, ("Loss", "On the validation data", "Learning rate")):
        axes.set_title(title)
    colours = matplotlib.color_sequences["tab10" if len(runs) <= 10 else "tab20"]
    used = dict.fromkeys(STYLES, False)
    for i, (name, history) in enumerate(runs.items()):
        for prefix, style in STYLES.items():
            drawn = _plot(all_axes[0], history, f"{prefix}loss", color=colours[i % len(colours)], **style)
            _plot(all_axes[1], history, prefix + metrics[name], color=colours[i % len(colours)], **style)
            used[prefix] |= drawn
        _plot(all_axes[2], history, "lr", color=colours[i % len(colours)])
    kinds = [prefix for prefix in STYLES if used[prefix]]
    handles = [Line2D([], [], color="0.3", label=LABELS[f"{kind}loss"], **STYLES[kind]) for kind in kinds]
    all_axes[0].legend(handles=handles)
    handles = [Line2D([], [], color=colours[i % len(colours)], label=label) for i, label in enumerate(labels)]
    figure.legend(handles=handles, loc="outside lower center", ncols=columns)
    figure.savefig(path, dpi=120)
    return path


def _panels(rates: str, height: float = 4) -> tuple[Figure, Sequence[Axes]]:
    """A figure with axes for loss, rates and learning rate over the epochs."""
    figure = Figure(figsize=(13, height), layout="constrained")
    all_axes = figure.subplots(1, 3)
    for axes, label in zip(all_axes, ("loss", rates, "learning rate")):
        axes.set(xlabel="epoch", ylabel=label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(alpha=0.3)
    return figure, all_axes


def _legend_text(name: str) -> str:
    """A run's name, at most as long as a line, in which matplotlib sees no formula and no private label."""
    return " " + (name if len(name) <= 120 else f"…{name[-119:]}").replace("$", r"\$")


def _plot(axes: Axes, history: History, column: str, **style) -> bool:
    """Draw a column over the epochs that have it, rates in percent; returns whether any has."""
    scale = 1 if column.endswith(("loss", "lr")) else 100
    points = [(row["epoch"], scale * row[column]) for row in history if column in row]
    if points:
        axes.plot(*zip(*points), marker="." if len(points) < 30 else None, **style)
    return bool(points)
