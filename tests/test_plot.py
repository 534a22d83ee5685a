"""python -m backbones plot: published accuracy against measured speed and size."""

import csv
import itertools
import random
import sys

import pytest
from matplotlib.image import imread
from matplotlib.text import Text

import backbones
from backbones import InputError
from backbones.__main__ import main
from backbones.plot import COLOURS, PANELS, SHAPES, Point, draw, plot

from .conftest import outcome

SETTING = dict(
    machine="a computer", clock="wall", threads="2", device="cpu", mode="inference", dtype="float32", compile="none"
)
ROW = SETTING | dict(batch="4", side="ours", size="224", images_per_second="20", parameters_m="28.3", gmacs="4.5")


def write_table(path, rows) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["model", "reason", *ROW])
        writer.writeheader()
        writer.writerows(ROW | row for row in rows)


def test_a_picture_of_a_table(tmp_path, monkeypatch, capsys):
    rows = [
        dict(model="swin_b"),  # published at 224 px with and without ImageNet-22k
        dict(model="swin_b", side="timm"),
        dict(model="swin_nano", size="32"),
        dict(model="nat_m", images_per_second="50"),
        dict(model="volo_d1", size="384"),
        dict(model="overlock_xt", images_per_second="", reason="out of memory"),
    ]
    write_table(tmp_path / "table.csv", rows)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["backbones", "plot", "table.csv"])
    said = outcome(capsys, 0, main).out
    assert "3 models are in plot.png. Without published top-1 at that size: swin_nano." in said
    pixels = imread(tmp_path / "plot.png")
    assert pixels.shape[1] > 1500 and (pixels < 0.5).any()


def test_what_cannot_be_drawn(tmp_path):
    table = tmp_path / "table.csv"
    with pytest.raises(InputError, match="no table at"):
        plot(table, tmp_path / "p.png", {})
    table.write_text("model,ms\n")
    with pytest.raises(InputError, match="has no column batch, clock, compile"):
        plot(table, tmp_path / "p.png", {})
    write_table(table, [dict(model="swin_t"), dict(model="nat_t", batch="8")])
    with pytest.raises(InputError, match=r"differ in batch: 4, 8. Choose by --only 'batch=4'"):
        plot(table, tmp_path / "p.png", {})
    with pytest.raises(InputError, match="no measured row of ours with"):
        plot(table, tmp_path / "p.png", {"batch": "16"})
    with pytest.raises(InputError, match="cannot be written"):
        plot(table, tmp_path / "p.docx", {"batch": "8"})
    write_table(table, [dict(model="swin_nano")])
    with pytest.raises(InputError, match=r"No model in .* has published ImageNet-1k weights"):
        plot(table, tmp_path / "p.png", {})


def test_labels_cover_nothing_and_families_are_told_apart():
    draw_from = random.Random(0)
    points = []
    for family, size in itertools.product(backbones.list_families(), "tsbl"):
        # Crowded: accuracies and costs are nearly alike, as those of real families are.
        step = "tsbl".index(size)
        row = ROW | {column: f"{10 * 2**step * draw_from.uniform(0.9, 1.1)}" for column, _, _ in PANELS}
        points.append(Point(f"{family}_{size}", family, 82 + step + draw_from.uniform(0, 0.4), size == "l", row))
    figure = draw(points, ROW)
    figure.draw_without_rendering()
    for axes in figure.axes:
        assert len(axes.texts) == len(points) == 36
        words = [Text.get_window_extent(text) for text in axes.texts]  # without the lines that lead to the marks
        assert not any(one.overlaps(other) for one, other in itertools.combinations(words, 2))
        marks = axes.transData.transform([text.xy for text in axes.texts])
        for box in words:
            assert not any(box.contains(x, y) for x, y in marks) and axes.bbox.x0 < box.x0 and box.x1 < axes.bbox.x1
    entries = [text.get_text() for text in figure.legends[0].get_texts()]
    assert entries == [*backbones.list_families(), "hollow: pre-trained on ImageNet-22k"]
    assert len(set(COLOURS)) == len(set(SHAPES)) == len(backbones.list_families())
