"""Published accuracy against measured speed and size, from a table of `python -m benchmarks models`."""

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import LogLocator, NullLocator
from matplotlib.transforms import Bbox

from .errors import InputError, first_line
from .registry import list_families, model_info

# Paul Tol's qualitative scheme "muted", which the colour-blind tell apart; the shapes tell without any colour.
COLOURS = ("#CC6677", "#332288", "#DDCC77", "#117733", "#88CCEE", "#882255", "#44AA99", "#999933", "#AA4499")
SHAPES = "osD^vP*Xh"
MARK = 6  # half the side of a mark, in pixels
SETTINGS = (
    "machine",
    "threads",
    "clock",
    "device",
    "mode",
    "dtype",
    "compile",
    "batch",
)  # that a picture can have one of
# Column of the table, title, axis.
PANELS = (
    ("images_per_second", "Speed: further right is faster", "images per second (measured)"),
    ("parameters_m", "Size: further left is smaller", "parameters, millions"),
    ("gmacs", "Arithmetic: further left is less", "multiply-adds per image, billions"),
)


@dataclass
class Point:
    """A model at an image size with published weights.

    Args:
        pretrained: on ImageNet-22k, before ImageNet-1k.
        row: what was measured, by column of the table.
    """

    name: str
    family: str
    top1: float
    pretrained: bool
    row: dict[str, str]

    @property
    def series(self) -> tuple[str, bool, str]:
        """What a line joins: sizes of one architecture, trained and measured alike."""
        return self.name.split("_")[0], self.pretrained, self.row["size"]


def plot(table: Path, output: Path, only: dict[str, str]) -> str:
    """Draw a table's models; returns what to tell the person who asked for it.

    Args:
        only: column to value of the rows to take, where the table has been measured with several settings.

    Raises:
        InputError: no such table, nothing in it to draw, or rows that cannot be in one picture.
    """
    rows = read_rows(table, only)
    points, unpublished = points_of(rows)
    if not points:
        raise InputError(f"No model in {table} has published ImageNet-1k weights at the size that was measured.")
    figure = draw(points, rows[0])
    try:
        figure.savefig(output, dpi=110)
    except ValueError as error:  # a format that matplotlib does not know
        raise InputError(f"The picture {output} cannot be written: {first_line(error)}.") from error
    left_out = f" Without published top-1 at that size: {', '.join(unpublished)}." if unpublished else ""
    return f"{len({point.name for point in points})} models are in {output}.{left_out}"


def read_rows(table: Path, only: dict[str, str]) -> list[dict[str, str]]:
    """The rows of our side that were measured, all with the same settings."""
    if not table.is_file():
        raise InputError(f"There is no table at {table}; python -m benchmarks models --output {table} measures one.")
    with table.open(newline="") as file:
        reader = csv.DictReader(file)
        needed = {*SETTINGS, "model", "side", "size", *(column for column, _, _ in PANELS), *only}
        absent = sorted(needed - set(reader.fieldnames or ()))
        if absent:
            raise InputError(f"{table} has no column {', '.join(absent)}; python -m benchmarks models writes tables.")
        rows = [row for row in reader if row["side"] == "ours" and row["images_per_second"]]
    rows = [row for row in rows if all(row[column] == value for column, value in only.items())]
    if not rows:
        raise InputError(f"{table} has no measured row of ours{f' with {only}' if only else ''}.")
    for column in SETTINGS:
        values = sorted({row[column] for row in rows})
        if len(values) > 1:
            raise InputError(
                f"The rows of {table} differ in {column}: {', '.join(values)}. Choose by --only '{column}={values[0]}'."
            )
    return rows


def points_of(rows: list[dict[str, str]]) -> tuple[list[Point], list[str]]:
    """The best published weights of each row's model and size, with and without ImageNet-22k; and models without."""
    points, unpublished = [], []
    for row in rows:
        info, best = model_info(row["model"]), {}
        for tag, own in info["tags"].items():
            if own["top1"] and str(own["input_size"][-1]) == row["size"]:
                best["in22k" in tag] = max(own["top1"], best.get("in22k" in tag, 0))
        points += [Point(row["model"], info["family"], top1, pretrained, row) for pretrained, top1 in best.items()]
        if not best:
            unpublished.append(row["model"])
    return points, unpublished


def draw(points: list[Point], measured: dict[str, str]) -> Figure:
    """A panel each for speed, parameters and multiply-adds; `measured` says with what the speed was."""
    figure = Figure(figsize=(17, 8), layout="constrained")
    all_axes: Sequence[Axes] = figure.subplots(1, len(PANELS), sharey=True)
    styles = dict(zip(list_families(), zip(COLOURS, SHAPES, strict=True)))
    for axes, (column, title, unit) in zip(all_axes, PANELS):
        axes.set_title(title)
        axes.set_xlabel(unit)
        axes.set_xscale("log")
        axes.margins(0.14, 0.08)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5, 7)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_locator(NullLocator())
        axes.grid(color="0.9", zorder=0)
        for series in dict.fromkeys(point.series for point in points):
            line = sorted((p for p in points if p.series == series), key=lambda p: float(p.row[column]))
            colour, shape = styles[line[0].family]
            x, y = [float(p.row[column]) for p in line], [p.top1 for p in line]
            inside = "white" if line[0].pretrained else colour
            axes.plot(x, y, color=colour, linewidth=1, alpha=0.5, zorder=2)
            axes.plot(
                x, y, color=colour, marker=shape, markersize=7, markerfacecolor=inside, linestyle="none", zorder=3
            )
    all_axes[0].set_ylabel("top-1 accuracy on ImageNet-1k, % (as published)")

    families = [family for family in styles if any(point.family == family for point in points)]
    handles = [
        Line2D([], [], color=styles[name][0], marker=styles[name][1], markersize=7, linewidth=1, label=name)
        for name in families
    ]
    if any(point.pretrained for point in points):
        hollow = dict(color="0.3", marker="o", linestyle="none", markersize=7, markerfacecolor="white")
        handles.append(Line2D([], [], **hollow, label="hollow: pre-trained on ImageNet-22k"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    work = {"inference": "forward passes", "training": "training steps"}[measured["mode"]]
    compiled = "" if measured["compile"] == "none" else f", torch.compile ({measured['compile']})"
    clock = {"wall": "", "processor": ", time of the processor"}[measured["clock"]]
    figure.suptitle(
        "Image classifiers: accuracy against speed, size and arithmetic\n"
        "Up is more accurate; a line joins the sizes of one architecture. "
        f"Speed: {work} in {measured['dtype']}{compiled}, batch {measured['batch']}, "
        f"on {measured['machine']}, threads: {measured['threads']}{clock}",
        fontsize=12,
    )
    figure.draw_without_rendering()  # the labels need to know where everything is
    for axes, (column, _, _) in zip(all_axes, PANELS):
        label(axes, [(float(p.row[column]), p.top1, p.name) for p in points])
    return figure


def label(axes: Axes, places: list[tuple[float, float, str]]) -> None:
    """Write names beside places, each in the nearest spot where it covers no name, no mark and no edge."""
    figure = axes.figure
    # In pixels, as are all boxes here.
    marks = axes.transData.transform([place[:2] for place in places])
    taken = [Bbox.from_bounds(x - MARK, y - MARK, 2 * MARK, 2 * MARK) for x, y in marks]
    spots = [(distance, math.radians(angle)) for distance in range(8, 160, 4) for angle in range(0, 360, 15)]
    for (x, y), place in sorted(zip(marks.tolist(), places), key=lambda pair: (-pair[0][1], pair[0][0])):
        text = figure.text(0, 0, place[2], fontsize=8)
        width, height = text.get_window_extent().size + 2  # and a pixel around
        text.remove()
        for distance, angle in spots:
            right, up = (distance + width / 2) * math.cos(angle), (distance + height / 2) * math.sin(angle)
            box = Bbox.from_bounds(x + right - width / 2, y + up - height / 2, width, height)
            inside = axes.bbox.x0 < box.x0 and box.x1 < axes.bbox.x1 and axes.bbox.y0 < box.y0 and box.y1 < axes.bbox.y1
            if inside and not any(box.overlaps(other) for other in taken):
                break
        taken.append(box)
        axes.annotate(
            place[2],
            place[:2],
            (right * 72 / figure.dpi, up * 72 / figure.dpi),
            textcoords="offset points",
            fontsize=8,
            ha="center",
            va="center",
            path_effects=[withStroke(linewidth=2.5, foreground="white")],  # against the lines below
            arrowprops=dict(arrowstyle="-", color="0.6", linewidth=0.6) if distance > 16 else None,
        ).set_in_layout(False)
