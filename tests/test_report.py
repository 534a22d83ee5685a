"""python -m training report: runs side by side."""

import json
import re
import shutil
import sys

import pytest
import yaml
from matplotlib.figure import Figure
from PIL import Image

import train
from training.__main__ import main
from training.engine.curves import LABELS, comparison_picture

from .conftest import COARSE, SHORT, outcome, rows_of

HEADER = "epoch,steps,train_loss,top1,loss,lr,images_per_second,seconds"


@pytest.fixture
def tool(monkeypatch, capsys, tmp_path):
    """Call the program in an empty folder; returns what it printed, and checks how it ended."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments, code: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", ["training", *map(str, arguments)])
        printed = outcome(capsys, code, main)
        return printed.out or printed.err

    return run


@pytest.fixture
def figures(monkeypatch):
    """The figures that are saved, as objects."""
    saved, save = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (saved.append(self), save(self, *a, **k)))
    return saved


def write_run(folder, *metrics: str, backbone="swin_nano"):
    """A run folder by hand: a config.yaml, and metrics.csv of these lines if there are any."""
    folder.mkdir(parents=True)
    config = dict(backbone=dict(name=backbone), data=dict(name="digits"), trainer=dict(epochs=5))
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    if metrics:
        (folder / "metrics.csv").write_text("\n".join(metrics) + "\n")
    return folder


def cells(printed: str) -> list[dict[str, str]]:
    """The rows of a Markdown table by their headings."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in printed.splitlines()]
    return [dict(zip(lines[0], line, strict=True)) for line in lines[2:]]


def test_real_runs_of_different_columns(tool, call, run_folder, tmp_path):
    """A finished run, and one with an average that stopped after an epoch and was resumed."""
    more = [COARSE, "recipe.ema.decay=0.9", "run_dir=averaged"]
    call(train, *SHORT, *more, "trainer.max_steps=11")
    first = rows_of(tmp_path / "averaged/metrics.csv")
    call(train, "resume=averaged", "trainer.max_steps=22")
    table = cells(tool("report", run_folder, "averaged", "--picture", "a/b.png", "--json", "rows.json"))
    assert min(Image.open("a/b.png").size) > 400
    rows = json.loads((tmp_path / "rows.json").read_text())
    for row, shown, folder in zip(rows, table, (run_folder, tmp_path / "averaged")):
        metrics, summary = rows_of(folder / "metrics.csv"), json.loads((folder / "summary.json").read_text())
        rates = [float(epoch["top1"]) for epoch in metrics]
        assert row["best"] == max(rates) and row["last"] == rates[-1] and row["epochs"] == 2 and row["finished"]
        assert row["loss"] == float(metrics[-1]["loss"]) and row["parameters"] == summary["parameters"]
        assert row["images_per_second"] == pytest.approx(summary["images_per_second"])
        assert shown["best, %"] == f"{100 * max(rates):.2f}" and shown["backbone"] == "swin_nano"
        assert shown["memory, MiB"] == f"{summary['peak_memory_bytes'] / 2**20:.0f}"
    assert rows_of(tmp_path / "averaged/metrics.csv")[0] == first[0]
    averages = [float(epoch["ema_top1"]) for epoch in rows_of(tmp_path / "averaged/metrics.csv")]
    assert rows[1]["ema_best"] == max(averages) and rows[1]["ema_last"] == averages[-1]
    assert rows[0]["ema_best"] is None and table[0]["EMA best, %"] == "–" and table[1]["EMA best, %"] != "–"


def test_unfinished_runs_and_other_tasks(tool, figures, tmp_path):
    write_run(tmp_path / "runs/a/1", HEADER, "1,3,2.0,0.5,1.5,0.1,100,2", "2,3,1.0,0.25,1.25,0.2,50,6")
    write_run(tmp_path / "runs/a/2")
    detection = "epoch,steps,train_loss,box_ap,box_ap50,lr,images_per_second,seconds"
    write_run(tmp_path / "runs/b/1", detection, "1,3,2.0,0.125,0.5,,100,2", backbone="swin_t")
    one, none, other = cells(tool("report", *sorted(tmp_path.glob("runs/*/*"))))
    assert one == {
        "run": "a/1", "backbone": "swin_nano", "data": "digits", "epochs": "2 of 5", "metric": "top-1",
        "best, %": "50.00", "last, %": "25.00", "loss": "1.2500", "train loss": "1.0000", "images/s": "62.5",
    }  # fmt: skip
    assert none["epochs"] == "0 of 5" and none["best, %"] == "–"
    assert other["metric"] == "box AP" and other["last, %"] == "12.50" and other["loss"] == "–"
    loss, rates, lr = figures[0].axes
    assert rates.get_ylabel() == "top-1 / box AP, %" and loss.get_xlabel() == "epoch"
    assert [list(line.get_ydata()) for line in rates.lines] == [[50.0, 25.0], [12.5]]
    assert [list(line.get_ydata()) for line in lr.lines] == [[0.1, 0.2]]  # the other run's rate is not on record


def test_a_run_named_twice_is_drawn_once(tool, tmp_path):
    run = write_run(tmp_path / "one", HEADER, "1,3,2.0,0.5,1.5,0.1,100,2")
    (row,) = cells(tool("report", run, tmp_path / "one/../one/", "one"))
    assert row["run"] == "one" and (tmp_path / "report.png").exists()


def test_colours_tell_runs_apart_and_lines_tell_what_is_drawn(figures, tmp_path):
    rows = [dict(epoch=float(e), train_loss=2.0, loss=1.0, ema_loss=1.5, top1=0.5, lr=0.1) for e in (1, 2)]
    runs = {f"_run of ${i}$": rows for i in range(10)}  # names that mean something else to matplotlib
    comparison_picture(tmp_path / "ten.png", runs)
    legend = figures[0].legends[0]
    assert [text.get_text().strip().replace("\\", "") for text in legend.get_texts()] == list(runs)
    assert len({line.get_color() for line in figures[0].axes[2].lines}) == 10
    assert len({line.get_linestyle() for line in figures[0].axes[0].lines}) == 3
    texts = [text.get_text() for text in figures[0].axes[0].get_legend().get_texts()]
    assert texts == [LABELS["loss"], LABELS["train_loss"], LABELS["ema_loss"]]
    figures[0].canvas.draw()
    assert legend.get_window_extent().width < figures[0].bbox.width


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("config.yaml", None, "There is no run in .*run: it has no config.yaml. Name run folders"),
        ("metrics.csv", None, "no epoch is on record in .*run. metrics.csv gets a row"),
        ("metrics.csv", HEADER, "no epoch is on record"),
        ("metrics.csv", f"{HEADER}\n1,3,many", "metrics.csv is damaged .*many.*Leave that run out"),
        ("metrics.csv", "top1\n0.5", "metrics.csv is damaged .a row has no epoch"),
        ("metrics.csv", f"{HEADER}\n1,3,2.0,0.5,1.5,0.1,100,2,7", "metrics.csv is damaged"),
        ("config.yaml", "a: [", "config.yaml is damaged"),
        ("config.yaml", "null", "config.yaml is damaged"),
        ("config.yaml", "backbone: {}", "config.yaml is damaged"),
        ("summary.json", "{", "summary.json is damaged"),
    ],
)
def test_what_is_no_run_is_said_in_a_paragraph(tool, tmp_path, name, content, said):
    run = write_run(tmp_path / "run", HEADER, "1,3,2.0,0.5,1.5,0.1,100,2")
    if content is None:
        (run / name).unlink()
    else:
        (run / name).write_text(content)
    message = tool("report", run, code=2)
    assert re.fullmatch(f"Error: .*{said}.*\n", message), message
    assert not (tmp_path / "report.png").exists()


def test_a_picture_or_table_that_cannot_be_written(tool, tmp_path):
    run = write_run(tmp_path / "run", HEADER, "1,3,2.0,0.5,1.5,0.1,100,2")
    assert "Format 'nothing' is not supported" in tool("report", run, "--picture", "a.nothing", code=2)
    assert "run/config.yaml" in tool("report", run, "--picture", "run/config.yaml/a.png", code=2)
    shutil.rmtree(run)
    assert "There is no run in" in tool("report", run, code=2)
    assert "required: RUN" in tool("report", code=2)
