"""Pictures and tables of boxes, masks and maps."""

from itertools import combinations

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

from training.annotation import IGNORED
from training.tasks.dense import overlays, pictures

from .conftest import rows_of

CLASSES = ["circle", "square", "a dog with a long name", "tree"]


def picture(channels=1, height=60, width=80):
    return torch.randint(0, 256, (channels, height, width), dtype=torch.uint8)


def objects(boxes, labels=None, **others):
    labels = list(range(len(boxes))) if labels is None else labels
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return {"boxes": boxes, "labels": torch.tensor(labels, dtype=torch.long), **others}


def pixels(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def tint(canvas: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean colour (3,) of what was drawn, six times as large, over the pixels of a mask (60, 80)."""
    return canvas[:, :360][:, mask.repeat_interleave(6, 0).repeat_interleave(6, 1)].float().mean(1)


@pytest.fixture
def figures(monkeypatch):
    """The figures that are written."""
    seen, save = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (seen.append(self), save(self, *a, **k)))
    return seen


@pytest.fixture
def places(monkeypatch):
    """Where texts are written: their backgrounds."""
    seen, draw = [], ImageDraw.ImageDraw.rectangle

    def rectangle(self, xy, *arguments, **keywords):
        if isinstance(xy, tuple):  # torchvision gives lists for its boxes
            seen.append(xy)
        draw(self, xy, *arguments, **keywords)

    monkeypatch.setattr(ImageDraw.ImageDraw, "rectangle", rectangle)
    return seen


@pytest.fixture
def texts(monkeypatch):
    """What is written."""
    seen, write = [], ImageDraw.ImageDraw.text

    def text(self, xy, text, *arguments, **keywords):
        seen.append(text)
        write(self, xy, text, *arguments, **keywords)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    return seen


def test_classes_have_colours_that_differ():
    colours = [overlays.colour_of(label) for label in range(200)]
    assert colours == [overlays.colour_of(label) for label in range(200)]
    assert all(0 <= part <= 255 for colour in colours for part in colour)
    assert all(np.abs(np.subtract(*pair)).max() > 20 for pair in combinations(colours[:21], 2))
    assert len(set(colours)) == 200


@pytest.mark.parametrize(
    ("shape", "drawn"),
    [((1, 60, 80), (480, 360)), ((3, 480, 640), (640, 480)), ((1, 8, 8), (480, 480)), ((3, 30, 3000), (1024, 10))],
)
def test_small_pictures_are_enlarged_and_large_ones_made_smaller(shape, drawn):
    image = picture(*shape)
    before = image.clone()
    found = objects([[0, 0, 5, 5]], scores=torch.tensor([0.9]))
    for each in (overlays.picture_of(image), overlays.draw_detections(image, found, CLASSES, 0.5)):
        assert each.mode == "RGB" and each.size == drawn
    assert torch.equal(image, before)
    labels = torch.randint(IGNORED, 3, shape[1:], dtype=torch.int16)
    segments = {"segments": torch.randint(-1, 2, shape[1:]), "labels": torch.tensor([0, 2])}
    for each in (
        overlays.draw_map(image, labels, CLASSES),
        overlays.draw_segments(image, segments, CLASSES, [False, False, True, True]),
    ):
        assert each.width == drawn[0] and each.height > drawn[1]  # and a legend
    assert torch.equal(image, before)


@pytest.mark.parametrize("channels", [1, 3])
def test_boxes_are_drawn_from_a_threshold_on(channels):
    image = picture(channels)
    found = objects([[10, 20, 40, 50], [50, 20, 70, 50]], [0, 1], scores=torch.tensor([0.3, 0.9]))
    plain, drawn = (pixels(overlays.draw_detections(image, found, CLASSES, t)) for t in (0.95, 0.5))
    assert torch.equal(plain, pixels(overlays.picture_of(image)))
    for x, y in ((50, 35), (70, 35), (60, 50)):  # the edges, of the whole picture made six times as large
        x, y = min(6 * x, 6 * 70 - 1), min(6 * y, 6 * 50 - 1)
        assert drawn[:, y, x].tolist() == list(overlays.colour_of(1))
    assert torch.equal(drawn[:, :, :290], plain[:, :, :290])  # the other one is too unsure


def test_masks_tint_their_pixels_and_large_ones_do_not_hide_small_ones():
    masks = torch.zeros(2, 60, 80, dtype=torch.uint8)
    masks[0, 30:40, 30:40] = 1
    masks[1, 10:55, 10:70] = 1
    found = objects([[30, 30, 40, 40], [10, 10, 70, 55]], [0, 1], scores=torch.tensor([0.9, 0.8]), masks=masks)
    canvas = pixels(overlays.draw_detections(torch.zeros(1, 60, 80, dtype=torch.uint8), found, CLASSES, 0.5))
    for label, rows in ((0, slice(32, 38)), (1, slice(42, 50))):
        inside = torch.zeros(60, 80, dtype=torch.bool)
        inside[rows, 32:38] = True  # away from outlines
        expected = 0.45 * torch.tensor(overlays.colour_of(label)).float()
        torch.testing.assert_close(tint(canvas, inside), expected, atol=1.5, rtol=0)


def test_texts_do_not_overlap_and_stay_in_the_picture(places):
    torch.manual_seed(0)
    corners = torch.rand(40, 2) * 60 - 5  # some reach out of the picture
    boxes = torch.cat([corners, corners + torch.rand(40, 2) * 40], 1).tolist()
    found = objects(boxes, torch.randint(0, 4, (40,)).tolist(), scores=torch.rand(40))
    image = overlays.draw_detections(picture(), found, CLASSES, 0.0)
    assert 10 < len(places) <= 40
    for left, top, right, bottom in places:
        assert 0 <= left < right <= image.width and 0 <= top < bottom <= image.height
    for one, other in combinations(places, 2):
        assert one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]


def test_a_target_is_drawn_with_what_is_a_crowd(texts):
    target = objects([[5, 20, 20, 40], [50, 20, 70, 40]], [0, 3], crowd=torch.tensor([False, True]))
    overlays.draw_detections(picture(), target, CLASSES, 0.5)
    assert texts == ["circle", "tree (crowd)"]
    texts.clear()
    overlays.draw_detections(picture(), target | {"scores": torch.tensor([0.514, 0.987])}, CLASSES, 0.5)
    assert texts == ["tree 99%", "circle 51%"]
    nothing = objects([], masks=torch.zeros(0, 60, 80), scores=torch.zeros(0), crowd=torch.zeros(0))
    image = picture()
    assert overlays.draw_detections(image, nothing, CLASSES, 0.5) == overlays.picture_of(image)


def test_maps_have_the_colours_of_their_legend():
    labels = torch.full((60, 80), IGNORED, dtype=torch.int16)
    labels[:30, :40], labels[30:, :40] = 0, 3
    canvas = pixels(overlays.draw_map(torch.zeros(3, 60, 80, dtype=torch.uint8), labels, CLASSES))
    for label in (0, 3):
        expected = torch.tensor(overlays.colour_of(label)).float()
        torch.testing.assert_close(tint(canvas, labels == label), 0.6 * expected, atol=1.5, rtol=0)
        assert (canvas[:, 360:] == expected[:, None, None]).all(0).sum() > 100
    assert tint(canvas, labels == IGNORED).tolist() == [0, 0, 0]
    for label in (1, 2):
        assert not (canvas == torch.tensor(overlays.colour_of(label))[:, None, None]).all(0).any()
    nothing = overlays.draw_map(torch.zeros(1, 60, 80, dtype=torch.uint8), torch.full((60, 80), IGNORED), CLASSES)
    assert nothing.size == (480, 360)


def test_segments_of_things_are_outlined_and_differ():
    numbers = torch.full((60, 80), -1)
    for i, rows in enumerate((slice(0, 15), slice(15, 30), slice(30, 45))):
        numbers[rows, :60] = i
    labels = torch.tensor([1, 1, 2])
    black, things = torch.zeros(1, 60, 80, dtype=torch.uint8), [False, True, False, False]
    drawn = overlays.draw_segments(black, {"segments": numbers, "labels": labels}, CLASSES, things)
    masks = (numbers == torch.arange(3)[:, None, None]).to(torch.uint8)
    target = {"masks": masks, "labels": labels, "crowd": torch.zeros(3, dtype=torch.bool)}
    assert overlays.draw_segments(black, target, CLASSES, things) == drawn
    canvas = pixels(drawn)
    inside = torch.zeros(60, 80, dtype=torch.bool)
    inside[:, 10:50] = True
    inside[::15] = inside[14::15] = False
    first, second, stuff = (tint(canvas, (numbers == i) & inside) for i in range(3))
    torch.testing.assert_close(first, 0.6 * torch.tensor(overlays.colour_of(1)).float(), atol=1.5, rtol=0)
    torch.testing.assert_close(stuff, 0.6 * torch.tensor(overlays.colour_of(2)).float(), atol=1.5, rtol=0)
    assert (first - second).abs().max() > 20
    assert (canvas[:, 90, 100:300] == 255).all() and (canvas[:, 180 + 5, 100:300] != 255).any()
    nothing = {"segments": torch.full((60, 80), -1), "labels": torch.zeros(0)}
    assert overlays.draw_segments(black, nothing, CLASSES, things).size == (480, 360)


def test_a_sheet_has_up_to_eight_pictures(tmp_path, figures):
    images = [overlays.picture_of(picture(1, *size)) for size in ((60, 80), (90, 30))]
    rows = [(f"{'long/' * 20}picture {i}.png", *[images[i % 2]] * 3) for i in range(10)]
    heights = []
    for count in (1, 2, 10):
        with Image.open(overlays.sheet(tmp_path / "sheet.png", rows[:count])) as image:
            heights.append(image.height)
    assert heights[0] < heights[1] < heights[2]
    titles = [axes.get_title() for axes in figures[-1].axes]
    assert len(titles) == 24 and titles[1:3] == ["truth", "prediction"]
    assert titles[21].endswith("long/picture 7.png") and len(titles[21]) <= 48


def test_curves_name_the_classes_that_matter(tmp_path, figures):
    curves = {name: np.linspace(1, i / 10, 101) for i, name in enumerate(["a", "b", "c"])}
    assert pictures.precision_recall_picture(tmp_path / "pr.png", curves, "boxes").exists()
    many = {f"class {i}": np.full(101, ((37 * i) % 80) / 100) for i in range(80)}
    pictures.precision_recall_picture(tmp_path / "pr.png", many, "masks")
    few, worst = ([text.get_text() for text in figure.axes[0].get_legend().get_texts()] for figure in figures)
    assert few == ["a (50.0%)", "b (55.0%)", "c (60.0%)", "mean of 3 (55.0%)"]
    expected = sorted(range(80), key=lambda i: (37 * i) % 80)[:6]
    assert worst[:6] == [f"class {i} ({rank / 100:.1%})" for rank, i in enumerate(expected)]
    assert worst[6:] == ["mean of 80 (39.5%)"] and len(figures[1].axes[0].lines) == 81
    assert pictures.precision_recall_picture(tmp_path / "none.png", {}, "boxes").exists()


def test_bars_show_the_worst_classes(tmp_path, figures):
    rows = [{"class": f"class {i}", "iou": ((37 * i) % 80) / 100} for i in range(80)]
    pictures.class_bars(tmp_path / "bars.png", rows, "iou", "IoU")
    (axes,) = figures[0].axes
    assert [bar.get_width() for bar in axes.patches] == pytest.approx(list(range(40)))
    names = [text.get_text() for text in axes.get_yticklabels()]
    assert names[0] == "class 0" and names[1] == f"class {pow(37, -1, 80)}" and len(names) == 40
    assert axes.get_title() == "IoU of 80 classes, mean 39.5 %: the 40 worst"
    pictures.class_bars(tmp_path / "bars.png", rows[:2], "iou", "IoU")
    assert figures[1].axes[0].get_title() == "IoU of 2 classes, mean 18.5 %"
    assert pictures.class_bars(tmp_path / "none.png", [], "iou", "IoU").exists()


def test_pixels_are_confused_in_percent(tmp_path, figures):
    confusion = torch.tensor([[3_000_000, 1_000_000], [0, 0]])
    pictures.pixel_confusion_picture(tmp_path / "confusion.png", confusion, ["a", "b"])
    assert [text.get_text() for text in figures[0].axes[0].texts] == ["75", "25"]


def test_the_table_of_classes(tmp_path):
    rows = [{"class": "a, b", "iou": 1 / 3, "pixels": 12}, {"class": "Straße", "iou": 1.0, "pixels": 0}]
    path = pictures.write_class_table(tmp_path / "classes.csv", rows)
    assert rows_of(path) == [
        {"class": "a, b", "iou": "0.3333", "pixels": "12"},
        {"class": "Straße", "iou": "1.0000", "pixels": "0"},
    ]
    assert pictures.write_class_table(tmp_path / "classes.csv", []).read_text() == ""
