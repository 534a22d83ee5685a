"""Picture of how a training went."""

from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator


def curves_picture(path: Path, history: list[dict[str, float]]) -> Path:
    """Draw loss, rates and learning rate over the epochs of `history`, the rows of metrics.csv."""
    epochs = [row["epoch"] for row in history]
    names = [name for name in history[-1] if isinstance(history[-1][name], float)]
    panels = {
        "loss": [name for name in names if name.endswith("loss")],
        "accuracy, %": [name for name in names if "top" in name],
        "learning rate": [name for name in names if name == "lr"],
    }
    figure = Figure(figsize=(13, 4), layout="constrained")
    for axes, (label, columns) in zip(figure.subplots(1, 3), panels.items()):
        for name in columns:
            scale = 100 if "top" in name else 1
            values = [scale * row[name] if row.get(name) is not None else float("nan") for row in history]
            axes.plot(epochs, values, marker="." if len(epochs) < 30 else None, label=name)
        axes.set(xlabel="epoch", ylabel=label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        if len(columns) > 1:
            axes.legend()
    figure.savefig(path, dpi=120)
    return path
