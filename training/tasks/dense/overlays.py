"""Pictures with what was found, or what is true, drawn on them."""

import colorsys
from functools import cache
from pathlib import Path

import matplotlib
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

from ...annotation import IGNORED, Target
from .metrics.panoptic_quality import segments_of

SMALLEST, LARGEST = 480, 1024  # the long side of what is drawn, in pixels: text must be readable on it
MOST_PICTURES = 8  # in a sheet
# Distinct with any colour vision (Okabe and Ito, https://jfly.uni-koeln.de/color), without black.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442")
Colour = tuple[int, int, int]


def colour_of(label: int) -> Colour:
    """The colour of a class, always the same: those of COLOURS, then paler, then darker ones, then any hue."""
    shade, number = divmod(label, len(COLOURS))
    if shade >= 3:
        hue, saturation, value = label * 0.618034 % 1, (0.9, 0.5, 0.75)[label % 3], (0.95, 0.85, 0.6)[label // 3 % 3]
        return tuple(round(255 * part) for part in colorsys.hsv_to_rgb(hue, saturation, value))
    colour = tuple(int(COLOURS[number][i : i + 2], 16) for i in (1, 3, 5))
    return _blend(colour, (0, 255, 0)[shade], (0, 0.5, 0.45)[shade])


def picture_of(image: Tensor) -> Image.Image:
    """A picture, uint8 (1 or 3, H, W), in colour and of the size that others are drawn in."""
    return to_pil_image(_scaled(image, *image.shape[1:]))


def draw_detections(image: Tensor, objects: dict[str, Tensor], classes: list[str], threshold: float) -> Image.Image:
    """Draw boxes and, where there are some, masks, with the names of classes.

    Args:
        image: uint8 (1 or 3, H, W).
        objects: a target of the kind "boxes" or "masks", or a prediction of them, which has `scores` as well.
        classes: names of the labels.
        threshold: objects with a lower score are left out.
    """
    height, width = image.shape[1:]
    canvas = _scaled(image, height, width)
    objects = {name: values.cpu() for name, values in objects.items()}
    order = torch.arange(len(objects["labels"]))
    if "scores" in objects:
        order = objects["scores"].argsort(descending=True)
        order = order[objects["scores"][order] >= threshold]
    labels = objects["labels"][order].tolist()
    colours = [colour_of(label) for label in labels]
    if "masks" in objects and labels:
        masks = _resized(objects["masks"][order] > 0, canvas)
        upmost = torch.full(canvas.shape[1:], -1)  # small masks lie on large ones; the library draws none where two are
        for i in masks.sum((1, 2)).argsort(descending=True).tolist():
            upmost[masks[i]] = i
        upmost = upmost == torch.arange(len(masks))[:, None, None]
        canvas = draw_segmentation_masks(canvas, upmost, alpha=0.45, colors=colours)
        for mask, visible, colour in zip(masks, upmost, colours):
            canvas[:, _outline(mask) & visible] = torch.tensor(colour, dtype=torch.uint8)[:, None]
    # Predicted boxes may lie a little outside the picture, and may be empty.
    sizes = torch.tensor([width, height] * 2)
    boxes = objects["boxes"][order].float().clamp(min=0).minimum(sizes)
    boxes = (boxes * torch.tensor([canvas.shape[2] / width, canvas.shape[1] / height] * 2)).round()
    boxes[:, 2:] = (boxes[:, 2:] - 1).maximum(boxes[:, :2])
    if labels:
        canvas = draw_bounding_boxes(canvas, boxes, colors=colours, width=2)
    texts = [classes[label] for label in labels]
    if "scores" in objects:
        texts = [f"{text} {score:.0%}" for text, score in zip(texts, objects["scores"][order].tolist())]
    elif "crowd" in objects:
        texts = [f"{text} (crowd)" if crowd else text for text, crowd in zip(texts, objects["crowd"][order].tolist())]
    return _with_texts(to_pil_image(canvas), boxes.tolist(), texts, colours)


def draw_map(image: Tensor, labels: Tensor, classes: list[str]) -> Image.Image:
    """Draw a map of labels (H, W) over a picture, uint8 (1 or 3, H, W), above the names of the classes that occur."""
    canvas = _grey(_scaled(image, *labels.shape))
    labels = _resized(labels[None].cpu(), canvas)[0]
    occurring = [label for label in labels.unique().tolist() if label != IGNORED]
    if occurring:
        masks = torch.stack([labels == label for label in occurring])
        canvas = draw_segmentation_masks(canvas, masks, alpha=0.6, colors=[colour_of(label) for label in occurring])
    return _with_legend(to_pil_image(canvas), [(classes[label], colour_of(label)) for label in occurring])


def draw_segments(
    image: Tensor, segments: dict[str, Tensor] | Target, classes: list[str], things: list[bool]
) -> Image.Image:
    """Draw a panoptic map over a picture, above the names of the classes that occur.

    Things are outlined, and several of a class differ in shade.

    Args:
        image: uint8 (1 or 3, H, W).
        segments: a prediction, `segments` (H, W) with the numbers of segments, or -1, and their `labels` (S,); or a
            target of the kind "segments".
        classes: names of the labels.
        things: whether the objects of a label are counted.
    """
    numbers = segments["segments"] if "segments" in segments else segments_of(segments)
    canvas = _grey(_scaled(image, *numbers.shape))
    numbers = _resized(numbers[None].cpu(), canvas)[0]
    occurring = [number for number in numbers.unique().tolist() if number >= 0]
    labels = {number: int(segments["labels"][number]) for number in occurring}
    masks = torch.stack([numbers == number for number in occurring]) if occurring else numbers[None] >= 0
    seen: dict[int, int] = {}  # things of each class
    colours = []
    for label in labels.values():
        colours.append(_shade(colour_of(label), seen.get(label, 0)) if things[label] else colour_of(label))
        seen[label] = seen.get(label, 0) + 1
    if occurring:
        canvas = draw_segmentation_masks(canvas, masks, alpha=0.6, colors=colours)
    for mask, label in zip(masks, labels.values()):
        if things[label]:
            canvas[:, _outline(mask)] = 255
    return _with_legend(to_pil_image(canvas), [(classes[label], colour_of(label)) for label in sorted(seen)])


def sheet(path: Path, rows: list[tuple[str, Image.Image, Image.Image, Image.Image]]) -> Path:
    """Draw up to MOST_PICTURES pictures: each one with its name, itself, the truth and the prediction, side by side."""
    rows = rows[:MOST_PICTURES]
    width = 4.5  # of one picture, in inches
    # A picture that is much higher than wide is drawn less wide.
    heights = [width * min(1.25, max(image.height / image.width for image in images)) + 0.3 for _, *images in rows]
    figure = Figure(figsize=(3 * width, sum(heights) + 0.3), layout="constrained")
    grid = figure.subplots(len(rows), 3, squeeze=False, height_ratios=heights)
    for row, (name, *images) in zip(grid, rows):
        for axes, image, title in zip(row, images, (_shortened(name, 48), "truth", "prediction")):
            axes.imshow(image, interpolation="antialiased")
            axes.set_title(title, fontsize=11)
            axes.set_anchor("N")
            axes.axis("off")
    figure.savefig(path, dpi=120)
    return path


def _scaled(image: Tensor, height: int, width: int) -> Tensor:
    """A picture in colour, enlarged by a whole number or made smaller so that text is readable on it."""
    longest = max(height, width)
    factor = -(-SMALLEST // longest) if longest < SMALLEST else min(1.0, LARGEST / longest)
    size = [max(1, round(side * factor)) for side in (height, width)]
    image = image.cpu().expand(3, -1, -1)
    if factor == 1:
        return image
    mode = dict(mode="nearest-exact") if factor > 1 else dict(mode="bilinear", antialias=True)
    return F.interpolate(image[None].float(), size, **mode)[0].round().to(torch.uint8)


def _resized(maps: Tensor, canvas: Tensor) -> Tensor:
    """Maps or masks (N, H, W) in the size of the canvas (3, H', W')."""
    return F.interpolate(maps[None].float(), canvas.shape[1:], mode="nearest-exact")[0].to(maps.dtype)


def _grey(canvas: Tensor) -> Tensor:
    """Without colours, so that those of the classes are the only ones."""
    red, green, blue = canvas.float()
    return (0.299 * red + 0.587 * green + 0.114 * blue).round().to(torch.uint8).expand(3, -1, -1).clone()


def _outline(mask: Tensor) -> Tensor:
    """The outermost two pixels of a mask (H, W)."""
    outside = F.pad((~mask)[None, None].float(), [2] * 4, value=1.0)
    return mask & (F.max_pool2d(outside, 5, 1)[0, 0] > 0)


def _blend(colour: Colour, grey: int, amount: float) -> Colour:
    return tuple(round((1 - amount) * part + amount * grey) for part in colour)


def _shade(colour: Colour, number: int) -> Colour:
    """One of six shades of a colour."""
    amount = (0, 0.4, 0.35, 0.6, 0.55, 0.2)[number % 6]
    return _blend(colour, 255 if number % 2 else 0, amount)


def _with_texts(image: Image.Image, boxes: list[list[float]], texts: list[str], colours: list[Colour]) -> Image.Image:
    """Write the texts at their boxes where no other is; for the last ones of a crowd there may be no room."""
    draw, font, taken = ImageDraw.Draw(image), _font(max(image.size)), []
    for (left, top, right, bottom), text, colour in zip(boxes, texts, colours):
        width, height = draw.textlength(text, font) + 6, font.size + 5
        for x, y in (
            (left, top - height),
            (left, bottom),
            (left, top),
            (left, bottom - height),
            (right - width, top - height),
            (right - width, bottom),
            (right - width, top),
            (right + 1, top),
            (left - width - 1, top),
        ):
            x = min(max(x, 0), max(image.width - width, 0))
            place = (x, y, x + width, y + height)
            if y >= 0 and place[3] <= image.height and not any(_overlap(place, other) for other in taken):
                taken.append(place)
                draw.rectangle(place, fill=colour)
                draw.text((x + 3, y + height / 2), text, fill=_readable_on(colour), font=font, anchor="lm")
                break
    return image


def _with_legend(image: Image.Image, entries: list[tuple[str, Colour]]) -> Image.Image:
    """The picture above names with their colours, in as many lines as they need."""
    font = _font(max(image.size))
    step = font.size + 10
    x, y, places = 6, image.height + 6, []
    for name, _ in entries:
        wide = 2 * font.size + font.getlength(name) + 8
        if x + wide > image.width and x > 6:
            x, y = 6, y + step
        places.append((x, y))
        x += wide + 6
    whole = Image.new("RGB", (image.width, y + step if entries else image.height), "white")
    whole.paste(image)
    draw = ImageDraw.Draw(whole)
    for (x, y), (name, colour) in zip(places, entries):
        draw.rectangle((x, y, x + 1.5 * font.size, y + font.size), fill=colour, outline="black")
        draw.text((x + 2 * font.size, y + font.size / 2), name, fill="black", font=font, anchor="lm")
    return whole


@cache
def _font(longest: int) -> ImageFont.FreeTypeFont:
    """The font for a picture with this long side; matplotlib's own, which is there on every machine."""
    path = Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf")
    return ImageFont.truetype(path, max(13, round(longest / 36)))


def _readable_on(colour: Colour) -> str:
    red, green, blue = colour
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 120 else "white"


def _overlap(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _shortened(text: str, most: int) -> str:
    """A path's end says more than its beginning."""
    return text if len(text) <= most else f"…{text[1 - most :]}"
