"""Pictures of how a classifier errs."""

from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

MOST_CLASSES = 30  # that a person can still read in one confusion matrix


def confusion_picture(path: Path, confusion: Tensor, classes: list[str]) -> Path:
    """Draw counts (true, predicted) as shares of each true class; of many classes, those most confused."""
    counts = confusion.double()
    kept = torch.arange(len(classes))
    title = "Confusion"
    if len(classes) > MOST_CLASSES:
        off_diagonal = counts - counts.diag().diag()
        confused = off_diagonal.sum(0) + off_diagonal.sum(1)
        kept = confused.topk(MOST_CLASSES).indices.sort().values
        title = f"Confusion among the {MOST_CLASSES} most confused of {len(classes)} classes"
    shares = (counts / counts.sum(1, keepdim=True).clamp(min=1))[kept][:, kept]
    names = [classes[i] for i in kept]

    side = max(5.0, 0.38 * len(names) + 2)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    picture = axes.imshow((100 * shares).numpy(), cmap="Blues", vmin=0, vmax=100)
    axes.set(xlabel="predicted class", ylabel="true class", title=title)
    axes.set_xticks(range(len(names)), names, rotation=90 if max(map(len, names)) > 3 else 0)
    axes.set_yticks(range(len(names)), names)
    for row in range(len(names)):
        for column in range(len(names)):
            count = int(confusion[kept[row], kept[column]])
            if count:
                colour = "white" if shares[row, column] > 0.5 else "black"
                axes.text(column, row, count, ha="center", va="center", color=colour, fontsize=8)
    figure.colorbar(picture, label="share of the true class, %", shrink=0.8)
    figure.savefig(path, dpi=120)
    return path


def errors_picture(path: Path, errors: list[tuple], wrong: int, total: int) -> Path:
    """Draw wrongly classified pictures, (picture, true class, predicted class, confidence) each, in the order given."""
    columns = max(2, min(5, len(errors)))
    rows = max(1, -(-len(errors) // columns))
    figure = Figure(figsize=(2.3 * columns, 2.6 * rows + 0.7), layout="constrained")
    shown = f", the {len(errors)} most confident shown" if len(errors) < wrong else ", most confident first"
    figure.suptitle(f"{wrong} of {total} pictures misclassified" + (shown if wrong else ""))
    for axes in figure.subplots(rows, columns, squeeze=False).flat:
        axes.axis("off")
    for axes, (image, true, predicted, confidence) in zip(figure.axes, errors):
        axes.imshow(image, cmap="gray" if image.mode == "L" else None)
        axes.set_title(f"true: {true}\npredicted: {predicted} ({confidence:.0%})", fontsize=9)
    figure.savefig(path, dpi=120)
    return path
