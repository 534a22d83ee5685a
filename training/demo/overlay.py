"""Where a network looks, as colours over the picture, and the legends to them."""

from html import escape
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import to_hex
from PIL import Image, ImageDraw
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

from backbones.explain import Attention
from backbones.explain.panels import HEAT, LEAST, percent

from ..tasks.dense.overlays import picture_of
from .networks import Classifier, Seen

COLOURS = colormaps[HEAT]


def draw_attention(network: Classifier, seen: Seen, found: Attention, point: tuple[float, float]) -> Image.Image:
    """The weights of a token, as `found`, over the picture in grey; what it does not see stays grey."""
    weights = found.map.cpu().numpy()
    shares = np.where(weights > LEAST, weights / (weights.max() or 1), np.nan)
    picture = _lay_over(seen, shares, network.pixels(found.stage), Image.Resampling.NEAREST, lambda share: 0.8)
    return _mark(picture, seen, point)


def draw_cam(network: Classifier, seen: Seen, cam: Tensor) -> Image.Image:
    """Grad-CAM over the picture in grey, interpolated."""
    shares = cam.cpu().numpy() / (float(cam.max()) or 1)
    # The picture shows where little speaks for the class.
    return _lay_over(seen, shares, network.pixels(-1), Image.Resampling.BILINEAR, lambda share: 0.35 + 0.4 * share)


def attention_legend(network: Classifier, found: Attention) -> str:
    """What the colours of `draw_attention` mean, in HTML."""
    most, total, seen = float(found.map.max()), float(found.map.sum()), int((found.map > LEAST).sum())
    side = network.pixels(found.stage)
    together = "" if abs(total - 1) < 0.005 else f"; all weights together are {percent(total)}"
    return _legend(
        "0",
        percent(most),
        f"Where the token under the cross looks, mean of its heads: bright is most. It sees {seen} of "
        f"{found.map.numel()} tokens of {side} × {side} pixels each{together}. Grey is not seen.",
    )


def cam_legend(name: str, cam: Tensor) -> str:
    """What the colours of `draw_cam` mean, in HTML."""
    rows, columns = cam.shape
    nothing = "" if cam.any() else " <b>Nothing speaks for it.</b>"
    return _legend(
        "none",
        "most",
        f"What speaks for <b>“{escape(name)}”</b>: bright places do.{nothing} Interpolated from the {rows} × {columns} "
        "tokens of the last stage, so the places are rough.",
    )


def table_of(found: list[dict[str, Any]]) -> str:
    """What is found, in HTML: a row each, and a column for each key."""
    if not found:
        return "Nothing is found."
    head = "".join(f"<th>{escape(key)}</th>" for key in found[0])
    rows = ("".join(f"<td>{escape(str(value))}</td>" for value in entry.values()) for entry in found)
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return f'<table style="width: 100%; text-align: left"><tr>{head}</tr>{body}</table>'


def canvas_of(picture: Image.Image) -> Image.Image:
    """A picture in the size that it is shown and drawn on: small ones are enlarged, large ones made smaller."""
    return picture_of(pil_to_tensor(picture))


def point_of(seen: Seen, place: tuple[int, int]) -> tuple[float, float]:
    """The point of the picture at a place of its canvas."""
    canvas = canvas_of(seen.picture)
    return tuple(x * side / shown for x, side, shown in zip(place, seen.picture.size, canvas.size))


def _lay_over(seen: Seen, shares: np.ndarray, pixels: int, resample: Image.Resampling, opacity) -> Image.Image:
    """Colours over the grey picture; what the network does not see is dark.

    Args:
        shares: (h, w), of the largest value; NaN has no colour.
        pixels: side of a cell of `shares`, in pixels of what the network gets.
        opacity: of a share.
    """
    canvas = canvas_of(seen.picture)
    scale = canvas.width / seen.picture.width
    left, top, right, bottom = (round(edge * scale) for edge in seen.box)
    height, width = seen.image.shape[2:]
    # A map may reach beyond what the network gets, by cells that only fill it up.
    side = (
        round(shares.shape[1] * pixels * (right - left) / width),
        round(shares.shape[0] * pixels * (bottom - top) / height),
    )
    shares = np.array(Image.fromarray(shares.astype(np.float32)).resize(side, resample))
    shares = shares[: bottom - top, : right - left]
    heat = COLOURS(np.nan_to_num(shares))
    heat[..., 3] = np.where(np.isnan(shares), 0, opacity(shares))

    grey = np.asarray(canvas.convert("L"), np.float32)
    seen_part = np.s_[max(0, top) : max(0, bottom), max(0, left) : max(0, right)]
    base = 0.3 * grey
    base[seen_part] = 90 + grey[seen_part] * (165 / 255)  # paler than any colour
    base = Image.fromarray(base.round().astype(np.uint8)).convert("RGB")
    heat = Image.fromarray((255 * heat).round().astype(np.uint8))
    base.paste(heat, (left, top), heat)
    return base


def _mark(picture: Image.Image, seen: Seen, point: tuple[float, float]) -> Image.Image:
    """A white cross in black, which is seen on all colours."""
    scale, arm = picture.width / seen.picture.width, max(picture.size) // 40
    x, y = (place * scale for place in point)
    draw = ImageDraw.Draw(picture)
    for width, longer, colour in ((9, 2, "black"), (4, 0, "white")):
        draw.line((x - arm - longer, y, x + arm + longer, y), colour, width)
        draw.line((x, y - arm - longer, x, y + arm + longer), colour, width)
    return picture


def _legend(low: str, high: str, text: str) -> str:
    stops = ", ".join(to_hex(COLOURS(share)) for share in np.linspace(0, 1, 9))
    bar = f'<div style="flex: 1; height: 0.8em; border-radius: 4px; background: linear-gradient(90deg, {stops})"></div>'
    scale = f'<div style="display: flex; gap: 0.6em; align-items: center">{low}{bar}{high}</div>'
    return f"{scale}<p>{text}</p>"
