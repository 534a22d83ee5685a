"""Draw docs/images/kernels.png: what one program of each kernel reads and writes.

python docs/draw_kernels.py
"""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.patches import Patch, Rectangle

NOTHING, READ, BOTH, WRITTEN, EDGE = range(5)
COLOURS = ["#f2f2f2", "#a6cee3", "#fdbf6f", "#e31a1c", "#d9d9d9"]
LABELS = [
    "not touched",
    "keys and values read",
    "queries of the tile, keys too",
    "one query (or pixel)",
    "beyond the map",
]


def show(axes: Axes, cells: np.ndarray, title: str, caption: str) -> None:
    axes.imshow(cells, cmap=ListedColormap(COLOURS), vmin=0, vmax=len(COLOURS) - 1)
    rows, columns = cells.shape
    axes.set_xticks(np.arange(-0.5, columns), minor=True)
    axes.set_yticks(np.arange(-0.5, rows), minor=True)
    axes.grid(which="minor", color="white", linewidth=0.8)
    axes.tick_params(which="both", bottom=False, left=False, labelbottom=False, labelleft=False)
    axes.set_title(title, fontsize=12)
    axes.set_xlabel(caption, fontsize=9)


def outline(axes: Axes, row: float, column: float, height: float, width: float, **style) -> None:
    axes.add_patch(Rectangle((column - 0.5, row - 0.5), width, height, fill=False, linewidth=2, **style))


def draw_window(axes: Axes) -> None:
    """A shifted window of 7 at the corner of a map of 18 x 18, filled up to 21 x 21."""
    side, whole, window, shift = 18, 21, 7, 3
    cells = np.full((whole, whole), NOTHING)
    cells[side:] = cells[:, side:] = EDGE
    corner = (np.arange(whole - window, whole) + shift) % whole  # where the roll brings the last window from
    for row in corner:
        for column in corner:
            cells[row, column] = BOTH if cells[row, column] == NOTHING else EDGE
    cells[17, 17] = WRITTEN
    show(axes, cells, "window attention, 7 x 7, shifted", "the last window: four regions that do not see each other")
    for at_r, rows in ((17, 4), (0, 3)):
        for at_c, columns in ((17, 4), (0, 3)):
            outline(axes, at_r, at_c, rows, columns, color="black")


def draw_neighborhood(axes: Axes, dilation: int) -> None:
    """A tile of 8 x 8 queries of one class, and the union of their 7 x 7 windows."""
    side, kernel = (24, 7) if dilation == 1 else (24, 5)
    cells = np.full((side, side), NOTHING)
    members = side // dilation
    queries = range(8) if dilation == 1 else range(min(8, members))
    first, last = (8, 15) if dilation == 1 else (0, len(queries) - 1)
    keys = range(max(0, first - kernel // 2), min(members, last + kernel // 2 + 1))
    for row in keys:
        for column in keys:
            cells[row * dilation, column * dilation] = READ
    for row in range(first, last + 1):
        for column in range(first, last + 1):
            cells[row * dilation, column * dilation] = BOTH
    query = 10 if dilation == 1 else 4
    cells[query * dilation, query * dilation] = WRITTEN
    title = f"neighbourhood {kernel} x {kernel}" + (f", dilation {dilation}" if dilation > 1 else "")
    show(axes, cells, title, "8 x 8 queries of a class and the union of their windows")
    reach = (query - kernel // 2) * dilation
    outline(axes, reach, reach, (kernel - 1) * dilation + 1, (kernel - 1) * dilation + 1, color="#e31a1c")
    if dilation == 1:
        for row in range(2):
            for column in range(2):
                outline(axes, 5 + 8 * row, 5 + 8 * column, 8, 8, color="black", linestyle=":")


def draw_outlook(axes: Axes) -> None:
    """The windows of 3 x 3, two apart, that cover a pixel."""
    cells = np.full((12, 12), NOTHING)
    pixel = 5  # odd: two windows along each axis
    for row in (4, 6):
        for column in (4, 6):
            cells[row - 1 : row + 2, column - 1 : column + 2] = READ
    cells[pixel, pixel] = WRITTEN
    show(axes, cells, "outlook attention, 3 x 3, stride 2", "a pixel receives from the windows over it")
    for row in (4, 6):
        for column in (4, 6):
            outline(axes, row - 1, column - 1, 3, 3, color="black")


def draw_routed(axes: Axes) -> None:
    """A region of 4 x 4 and the three that it chose, itself among them."""
    cells = np.full((20, 20), NOTHING)
    for row, column in ((0, 3), (3, 0)):
        cells[4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = READ
    cells[8:12, 8:12] = BOTH
    cells[9, 10] = WRITTEN
    show(axes, cells, "routed attention, 3 of 5 x 5 regions", "a region reads its chosen ones where they are")
    for row in range(5):
        for column in range(5):
            outline(axes, 4 * row, 4 * column, 4, 4, color="grey", alpha=0.5)
    for row, column in ((0, 3), (3, 0)):
        axes.annotate(
            "",
            (4 * column + 1.5, 4 * row + 1.5),
            (10, 9),
            arrowprops=dict(arrowstyle="->", color="black", linewidth=1.5),
        )


def main() -> None:
    figure, axes = plt.subplots(1, 5, figsize=(20, 5.2))
    draw_window(axes[0])
    draw_neighborhood(axes[1], 1)
    draw_neighborhood(axes[2], 3)
    draw_outlook(axes[3])
    draw_routed(axes[4])
    handles = [Patch(facecolor=colour, label=label) for colour, label in zip(COLOURS, LABELS)]
    figure.legend(handles=handles, loc="lower center", ncols=len(handles), fontsize=11, frameon=False)
    figure.subplots_adjust(left=0.01, right=0.99, bottom=0.15, top=0.93, wspace=0.06)
    figure.savefig(Path(__file__).parent / "images/kernels.png", dpi=80)


if __name__ == "__main__":
    main()
