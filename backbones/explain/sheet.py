"""The sheet: what a model does with a picture, for a person who has never seen such a thing."""

from pathlib import Path

import torch
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from ..errors import InputError, first_line
from ..subject import INPUTS, RANDOM, Subject, View
from . import panels
from .attention import Attention, attention_of
from .maps import feature_norms, grad_cam, receptive_field

KINDS = 2  # of attention, that are drawn of a stage
COLUMN, ROW = 4.1, 4.55  # inches
HEADINGS = (
    "1  What the network is shown, what it answers, and why",
    "2  Where the token under the query point looks, in each stage (the last block of each kind; mean of its heads)",
    "3  How large the features are: the length of each token's vector, in each stage",
)


def draw_sheet(subject: Subject, view: View, point: tuple[float, float], label: int | None, name: str) -> Figure:
    """One sheet on a picture: the answer and its reasons, attention, receptive field, and sizes of features.

    Args:
        point: of the query, x and y, in pixels of the model's image.
        label: of the class that Grad-CAM is for; None: the likeliest.
        name: of model and picture, for the headline.
    """
    attention = _rows_of(subject, attention_of(subject.model, view.image, point))
    heights = [0.16, 1, len(attention), 1, 0.09]
    columns = max(4, len(subject.model.stages))
    figure = _figure(columns, sum(heights))
    head, *rows, foot = figure.subfigures(5, 1, height_ratios=heights)
    head.text(0.01, 0.72, name, fontsize=20, weight="bold", va="center")
    _, channels, height, width = view.image.shape
    size = f"the model sees {width} × {height} pixels{' in grey' if channels == 1 else ''}"
    weights = subject.weights
    weights += " (this shows where tokens can look, and no more)" if weights == RANDOM else ""
    head.text(0.01, 0.18, f"Weights: {weights}.  Picture: {size}.", fontsize=12.5, va="center")
    for row, heading in zip(rows, HEADINGS):
        row.suptitle(heading, x=0.01, ha="left", fontsize=14.5, weight="bold", color="#1f4e79")
    _draw_answer(rows[0], subject, view, point, label)
    _draw_attention(rows[1], subject, view, point, attention)
    for stage, (axes, norms) in enumerate(
        zip(_panels(rows[2], 1, columns)[0], feature_norms(subject.model, view.image))
    ):
        info = subject.model.feature_info[stage]
        panels.draw_norms(axes, view, norms, stage, info["num_chs"], info["reduction"])
    _draw_legend(foot)
    return figure


def draw_strip(subject: Subject, view: View, point: tuple[float, float]) -> Figure:
    """The attention of a sheet alone, with the legend."""
    attention = _rows_of(subject, attention_of(subject.model, view.image, point))
    figure = _figure(len(subject.model.stages), len(attention) + 0.09)
    body, foot = figure.subfigures(2, 1, height_ratios=[len(attention), 0.09])
    _draw_attention(body, subject, view, point, attention)
    _draw_legend(foot)
    return figure


def check_format(path: Path) -> None:
    """Raise InputError where matplotlib cannot write files that are named like this."""
    known = sorted(Figure().canvas.get_supported_filetypes())
    if path.suffix[1:].lower() not in known:
        raise InputError(
            f"The sheet cannot be written as {path}. End its name in .png, or in one of: {', '.join(known)}."
        )


def save(figure: Figure, path: Path) -> None:
    """Write a figure; raises InputError where that is not possible."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=80, facecolor="white")
    except OSError as error:
        raise InputError(f"The sheet {path} cannot be written: {first_line(error)}.") from error


def _rows_of(subject: Subject, found: list[Attention]) -> list[list[Attention | None]]:
    """Rows with a panel per stage: the last block of each kind of attention of the stage, None where there is none."""
    columns = []
    for stage in range(len(subject.model.stages)):
        last = {}
        for entry in found:
            if entry.stage == stage:
                last.pop(entry.title, None)
                last[entry.title] = entry
        kinds = sorted(list(last.values())[-KINDS:], key=lambda entry: entry.block)
        columns.append(kinds + [None] * (KINDS - len(kinds)))
    rows = [list(row) for row in zip(*columns)]
    return [row for row in rows if any(row)]


def _draw_answer(
    figure: SubFigure, subject: Subject, view: View, point: tuple[float, float], label: int | None
) -> None:
    model = subject.model
    with torch.no_grad():
        probabilities = model(view.image).float().softmax(1)[0]
    label = int(probabilities.argmax()) if label is None else label
    picture, answer, cam, field = _panels(figure, 1, 4)[0]
    panels.draw_picture(picture, view, point, "The picture; the cross is the query point")
    panels.draw_answer(answer, subject, probabilities, label)
    panels.draw_cam(cam, view, grad_cam(model, view.image, label), subject.classes[label])
    panels.draw_field(field, view, receptive_field(model, view.crops()), INPUTS)


def _draw_attention(
    figure: SubFigure, subject: Subject, view: View, point: tuple[float, float], rows: list[list[Attention | None]]
) -> None:
    model = subject.model
    for r, (line, entries) in enumerate(zip(_panels(figure, len(rows), len(model.stages)), rows)):
        for stage, (axes, entry) in enumerate(zip(line, entries)):
            if entry is None:
                if r == 0:
                    panels.draw_nothing(
                        axes, f"Stage {stage + 1} has no attention:\nits blocks mix tokens by convolution."
                    )
                else:
                    axes.set_axis_off()
            elif entry.of_channels:
                panels.draw_channels(axes, entry)
            else:
                panels.draw_attention(axes, view, entry, point, model.feature_info[stage]["reduction"])


def _draw_legend(figure: SubFigure) -> None:
    cross = Line2D([], [], marker="P", color="white", markeredgecolor="black", markersize=11, linestyle="none")
    seen = [Patch(facecolor=panels.colour(share)) for share in (0.0, 0.5, 1.0)]
    unseen = Patch(facecolor="#bbbbbb")
    labels = [
        "query point",
        "not seen by its token",
        "seen: small weight",
        "middle",
        "large (scales beside the panels)",
    ]
    figure.legend([cross, unseen, *seen], labels, loc="center", ncols=5, fontsize=12, frameon=False)


def _figure(columns: int, rows: float) -> Figure:
    figure = Figure(figsize=(COLUMN * columns, ROW * rows), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.08)
    return figure


def _panels(figure: SubFigure, rows: int, columns: int) -> list[list]:
    return figure.subplots(rows, columns, squeeze=False).tolist()
