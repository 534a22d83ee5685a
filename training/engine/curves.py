"""Picture of how a training went."""

from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

LABELS = {"loss": "validation", "train_loss": "training (augmented)", "ema_loss": "validation, average"}


def curves_picture(path: Path, history: list[dict[str, float]]) -> Path:
    """Draw loss, rates and learning rate over the epochs of `history`, the rows of metrics.csv."""
    names = [name for name, value in history[-1].items() if isinstance(value, float)]
    panels = {
        "loss": ([name for name in names if name.endswith("loss")], 1),
        "validation accuracy, %": ([name for name in names if "top" in name], 100),
        "learning rate": (["lr"], 1),
    }
    figure = Figure(figsize=(13, 4), layout="constrained")
    for axes, (label, (columns, scale)) in zip(figure.subplots(1, 3), panels.items()):
        for name in columns:
            points = [(row["epoch"], scale * row[name]) for row in history]
            axes.plot(*zip(*points), marker="." if len(points) < 30 else None, label=LABELS.get(name, name))
        axes.set(xlabel="epoch", ylabel=label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        axes.grid(alpha=0.3)
        if len(columns) > 1:
            axes.legend()
    figure.savefig(path, dpi=120)
    return path
