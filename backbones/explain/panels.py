"""One panel of a sheet each; places are in pixels of the image that the model gets."""

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize
from matplotlib.patches import Rectangle
from torch import Tensor

from ..subject import Subject, View
from .attention import Attention
from .maps import enlarged, half_sides

HEAT, NORMS = "plasma", "viridis"
LEAST = 1e-12  # weights below, such as those behind a mask, are none
SMALL_REACH = 0.2  # what is seen on less of the picture's sides is shown enlarged as well
TITLE, CAPTION = dict(fontsize=11.5), dict(fontsize=9.5, color="#333333")


def draw_picture(axes: Axes, view: View, point: tuple[float, float], title: str) -> None:
    """What the model is shown, in colour, with the query point."""
    height, width = view.image.shape[2:]
    axes.imshow(view.shown, cmap="gray", extent=(0, width, height, 0))
    _mark(axes, point)
    _frame(axes, view, title)


def draw_answer(axes: Axes, subject: Subject, probabilities: Tensor, label: int) -> None:
    """The likeliest classes as bars; that of `label`, which is among them or added, in another colour."""
    ranked = probabilities.topk(min(5, len(probabilities))).indices.tolist()
    ranked = ranked if label in ranked else [*ranked[:-1], label]
    shares = [float(probabilities[i]) for i in ranked]
    places = range(len(ranked))
    axes.barh(places, shares, color=["#d95f02" if i == label else "#9ecae1" for i in ranked], height=0.42)
    for place, i, share in zip(places, ranked, shares):
        axes.text(0, place - 0.3, f"{_short(subject.classes[i])}  {share:.1%}", fontsize=11)
    axes.set(xlim=(0, 1), ylim=(4.6, -0.7), yticks=[], xticks=[0, 0.5, 1], xticklabels=["0 %", "50 %", "100 %"])
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.set_title("Its answer: likeliest classes", **TITLE)
    axes.set_xlabel("probability; orange: the class of the next panel", **CAPTION)
    axes.set_box_aspect(0.85)


def draw_cam(axes: Axes, view: View, cam: Tensor, name: str) -> None:
    """Grad-CAM over the picture, interpolated from the cells of the last map."""
    height, width = view.image.shape[2:]
    _draw_grey(axes, view)
    largest = float(cam.max())
    share = enlarged(cam / largest if largest > 0 else cam, view.shown.size[::-1]).cpu().numpy()
    heat = ScalarMappable(Normalize(0, 1), HEAT).to_rgba(share)
    heat[..., 3] = 0.35 + 0.4 * share  # the picture shows where little speaks for the class
    axes.imshow(heat, extent=(0, width, height, 0))
    _frame(axes, view, f"Grad-CAM: what speaks for “{_short(name)}”")
    rows, columns = cam.shape
    nothing = "" if largest > 0 else "; nothing speaks for it"
    axes.set_xlabel(f"interpolated from the {rows} × {columns} tokens of the last stage{nothing}", **CAPTION)
    _bar(axes, Normalize(0, 1), HEAT, [0, 1], ["none", "most"])


def draw_field(axes: Axes, view: View, field: Tensor, inputs: int) -> None:
    """The effective receptive field on a logarithmic scale, with the squares that hold half and nearly all of it."""
    height, width = field.shape
    share = (field / field.max()).clamp_min(1e-4).cpu().numpy()
    axes.imshow(share, cmap=HEAT, norm=LogNorm(1e-3, 1), extent=(0, width, height, 0))
    for half, colour, line in zip(half_sides(field.cpu()), ("white", "white"), ("-", "--")):
        edges = np.clip([height / 2 - half, height / 2 + half], 0, height - 0.5)
        sides = np.clip([width / 2 - half, width / 2 + half], 0, width - 0.5)
        corner, size = (sides[0], edges[0]), (sides[1] - sides[0], edges[1] - edges[0])
        axes.add_patch(Rectangle(corner, *size, fill=False, edgecolor=colour, linestyle=line, linewidth=1.8))
    _frame(axes, view, "Effective receptive field of the middle")
    axes.set_xlabel(
        f"how much each pixel moves the middle of the last map;\nmean over {inputs} random crops of this picture.\n"
        "Squares: half of it (solid), 95 % (dashed)",
        **CAPTION,
    )
    _bar(axes, LogNorm(1e-3, 1), HEAT, [1e-3, 1e-2, 1e-1, 1], ["0.1 %", "1 %", "10 %", "most"])


def draw_attention(axes: Axes, view: View, found: Attention, point: tuple[float, float], pixels: int) -> None:
    """Where the token at the point looks, over the picture in grey; `pixels` is the side of a token."""
    weights = found.map.cpu().numpy()
    rows, columns = weights.shape
    most, seen = float(weights.max()), weights > LEAST
    heat = ScalarMappable(Normalize(0, most or 1), HEAT).to_rgba(weights)
    heat[..., 3] = np.where(seen, 0.8, 0)

    def draw(axes: Axes) -> None:
        _draw_grey(axes, view)
        axes.imshow(heat, extent=(0, columns * pixels, rows * pixels, 0), interpolation="nearest")
        _mark(axes, point)

    draw(axes)
    _frame(axes, view, f"Stage {found.stage + 1}, block {found.block + 1}:\n{found.title}")
    _enlarge(axes, view, draw, seen, point, pixels)
    total = float(weights.sum())
    given = "" if abs(total - 1) < 0.005 else f", all together {percent(total)}"
    axes.set_xlabel(
        f"sees {int(seen.sum())} of {rows * columns} tokens;\nlargest weight {percent(most)}{given}", **CAPTION
    )
    _bar(axes, Normalize(0, most or 1), HEAT, [0, most or 1], ["0", percent(most)])


def draw_channels(axes: Axes, found: Attention) -> None:
    """Channel attention: how much each channel of one group reads of each other one."""
    weights = found.weights[0].cpu().numpy()
    axes.imshow(weights, cmap=HEAT, vmin=0, vmax=weights.max(), interpolation="nearest")
    axes.set(xticks=[0, len(weights) - 1], yticks=[0, len(weights) - 1])
    axes.set_xticklabels([1, len(weights)], fontsize=9)
    axes.set_yticklabels([1, len(weights)], fontsize=9)
    axes.set_ylabel("channel that is written", labelpad=-8, **CAPTION)
    axes.set_xlabel(
        f"channel that is read (group 1 of {len(found.weights)});\nfrom the whole map, the same for every token",
        labelpad=1,
        **CAPTION,
    )
    axes.set_title(f"Stage {found.stage + 1}, block {found.block + 1}:\n{found.title}", **TITLE)
    axes.set_box_aspect(1)
    _bar(axes, Normalize(0, weights.max()), HEAT, [0, weights.max()], ["0", percent(weights.max())])


def draw_norms(axes: Axes, view: View, norms: Tensor, stage: int, channels: int, pixels: int) -> None:
    """How long the feature vectors of a stage are."""
    rows, columns = norms.shape
    low, high = float(norms.min()), float(norms.max())
    high = high if high > low else low + 1
    extent = (0, columns * pixels, rows * pixels, 0)
    axes.imshow(norms.cpu().numpy(), cmap=NORMS, vmin=low, vmax=high, extent=extent, interpolation="nearest")
    _frame(axes, view, f"Stage {stage + 1}: {rows} × {columns} tokens of {channels} channels")
    axes.set_xlabel(f"a token is {pixels} × {pixels} pixels", **CAPTION)
    _bar(axes, Normalize(low, high), NORMS, [low, high], [f"{low:.3g}", f"{high:.3g}"])


def draw_nothing(axes: Axes, text: str) -> None:
    """An empty panel that says why."""
    axes.text(0.5, 0.5, text, ha="center", va="center", fontsize=11, color="#666666", transform=axes.transAxes)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_color("#dddddd")
    axes.set_box_aspect(1)


def colour(share: float) -> tuple[float, ...]:
    """Of a share of the largest weight."""
    return colormaps[HEAT](share)


def _draw_grey(axes: Axes, view: View) -> None:
    height, width = view.image.shape[2:]
    grey = 90 + np.asarray(view.shown.convert("L"), np.float32) * (165 / 255)  # paler than anything that is seen
    axes.imshow(grey, cmap="gray", vmin=0, vmax=255, extent=(0, width, height, 0))


def _mark(axes: Axes, point: tuple[float, float]) -> None:
    """The query: a white cross in black, seen on all colours."""
    for width, size, colour in ((4.5, 13, "black"), (2.0, 11, "white")):
        axes.plot(*point, "+", markersize=size, markeredgewidth=width, color=colour)


def _frame(axes: Axes, view: View, title: str) -> None:
    height, width = view.image.shape[2:]
    axes.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
    axes.set_title(title, **TITLE)


def _enlarge(axes: Axes, view: View, draw, seen: np.ndarray, point: tuple[float, float], pixels: int) -> None:
    """What is seen, if that is little, once more and larger in the corner farthest from it."""
    height, width = view.image.shape[2:]
    rows, columns = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
    if not len(rows):
        return
    side = max(rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1) * pixels
    if side > SMALL_REACH * min(height, width):
        return
    middle = [(ends[0] + ends[-1] + 1) / 2 * pixels for ends in (columns, rows)]
    # The corner that is farthest from both what is seen and the query.
    occupied = [[x / width, 1 - y / height] for x, y in (middle, point)]
    corners = [np.array([x, y]) for x in (0.02, 0.54) for y in (0.02, 0.54)]
    corner = max(corners, key=lambda c: min(np.linalg.norm(c + 0.22 - place) for place in occupied))
    inset = axes.inset_axes([*corner, 0.44, 0.44])
    draw(inset)
    half = side * 0.6
    left, top = (min(max(place - half, 0), length - 2 * half) for place, length in zip(middle, (width, height)))
    inset.set(xlim=(left, left + 2 * half), ylim=(top + 2 * half, top), xticks=[], yticks=[])
    axes.indicate_inset_zoom(inset, edgecolor="black", alpha=0.9, linewidth=1.2)


def _bar(axes: Axes, norm: Normalize, colours: str, ticks: list[float], labels: list[str]) -> None:
    bar = axes.figure.colorbar(ScalarMappable(norm, colours), ax=axes, fraction=0.046, pad=0.02, ticks=ticks)
    bar.ax.minorticks_off()
    bar.ax.set_yticklabels(labels, fontsize=9)
    bar.outline.set_visible(False)


def _short(name: str) -> str:
    """A name that fits above a panel."""
    return name if len(name) <= 26 else name[:25] + "…"


def percent(share: float) -> str:
    """A share with two digits that count."""
    return f"{100 * share:.2g} %" if share < 0.995 else f"{100 * share:.0f} %"
