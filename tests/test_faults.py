"""What may befall a run: nothing of it is lost."""

import os
import resource
import shutil
import subprocess
import sys

import pytest
import torch

import train
from training.data import Digits
from training.engine import Checkpoints
from training.tasks import Classification

from .conftest import COARSE, ROOT, SHORT, huge_png, rows_of, untimed


def same(one, other):
    """Weights, averages, optimizer and rows of two runs are equal, bit for bit, apart from times."""
    states = [Checkpoints(run / "checkpoints").load() for run in (one, other)]
    for part in ("model", "ema"):
        assert states[0][part].keys() == states[1][part].keys()
        assert all(torch.equal(states[0][part][name], value) for name, value in states[1][part].items())
    moments = [state["optimizer"]["state"] for state in states]
    assert all(torch.equal(moments[0][i][name], value) for i, s in moments[1].items() for name, value in s.items())
    rows = [untimed(run / "metrics.csv") for run in (one, other)]
    assert rows[0] == rows[1]
    return rows[0]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_a_run_that_is_killed_ten_times(run_program, tmp_path, seed):
    """In a step, in an evaluation, or in the middle of writing a file."""
    short = ["trainer.batch_size=128", "trainer.epochs=8", "recipe.ema.decay=0.9", "backbone.drop_path_rate=0.1"]
    run_program("train.py", *short, "run_dir=expected")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    said = run_program("tests/dying.py", seed, 10, *short, "run_dir=out", env=environment).stdout
    assert said.count("died in") == 10
    assert len(same(tmp_path / "out", tmp_path / "expected")) == 8


def nan_at(steps):
    """A training step whose loss is no number the so-manieth times it is called."""
    calls, original = [], Classification.training_step

    def training_step(task, batch):
        calls.append(1)
        losses = original(task, batch)
        return {name: loss * float("nan") if len(calls) in steps else loss for name, loss in losses.items()}

    return training_step


def test_bad_steps_are_left_out(call, monkeypatch, tmp_path):
    monkeypatch.setattr(Classification, "training_step", nan_at({3, 14}))
    said = call(train, *SHORT, "run_dir=out")
    assert "The loss became nan at step 2; the step is left out (1 of 10)" in said
    rows = rows_of(tmp_path / "out/metrics.csv")
    assert [row["bad_steps"] for row in rows] == ["1", "1"] and float(rows[1]["top1"]) > 0.4


def test_too_many_bad_steps_stop_the_run_with_its_state(call, monkeypatch, tmp_path):
    monkeypatch.setattr(Classification, "training_step", nan_at({2, 4, 5}))
    said = call(train, *SHORT, COARSE, "run_dir=out", "trainer.max_bad_steps=2", code=2)
    assert "3 steps had a loss or a gradient that is no number" in said and "resume=out trainer.max_bad_steps=6" in said
    state = Checkpoints(tmp_path / "out/checkpoints").load()
    assert state["progress"]["step"] == 5 and all(value.isfinite().all() for value in state["model"].values())
    monkeypatch.undo()
    os.chdir(tmp_path)
    call(train, "resume=out", "trainer.max_bad_steps=6")
    assert [row["bad_steps"] for row in rows_of(tmp_path / "out/metrics.csv")] == ["3", "0"]


def test_a_checkpoint_within_an_epoch(call, monkeypatch, tmp_path):
    saved, save = [], Checkpoints.save
    monkeypatch.setattr(
        Checkpoints, "save", lambda self, state: (saved.append(state["progress"]["step"]), save(self, state))
    )
    call(train, *SHORT, COARSE, "run_dir=out", "trainer.save_minutes=1e-6")
    assert saved[:10] == list(range(1, 11)) and len(saved) > 20


def test_a_damaged_checkpoint_is_replaced_by_the_previous_one(call, run_folder, tmp_path):
    shutil.copytree(run_folder, tmp_path / "out")
    last = tmp_path / "out/checkpoints/last.pt"
    content = bytearray(last.read_bytes())
    content[len(content) // 3] ^= 4
    last.write_bytes(content)
    said = call(train, "resume=out")
    assert said.count("last.pt is damaged") == 1 and "Resumed at epoch 2, step 11" in said
    assert rows_of(tmp_path / "out/metrics.csv")[-1]["top1"] == rows_of(run_folder / "metrics.csv")[-1]["top1"]


def test_a_trace_of_a_few_steps(call, tmp_path):
    said = call(train, *SHORT, COARSE, "run_dir=out", "trainer.profile=true", "trainer.epochs=1")
    assert "profile.json is a trace of 3 steps" in said
    # A classifier is nearly all backbone; the rest is the optimizer and the loss.
    share = int(said.partition("The backbone took ")[2].partition(" %")[0])
    assert 0 < share <= 100
    assert '"traceEvents"' in (tmp_path / "out/profile.json").read_text()


def test_a_second_run_in_one_folder_is_refused(call, tmp_path):
    command = [sys.executable, ROOT / "train.py", *SHORT, COARSE, "trainer.epochs=50", "run_dir=out"]
    first = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        for line in first.stdout:
            if "in out" in line:
                break
        said = call(train, *command[2:], "resume=auto", code=2)
        assert "Another process is training in out" in said
    finally:
        first.kill()
        first.communicate()


def test_a_disk_that_fills_up(call, monkeypatch, tmp_path):
    """In the second epoch the kernel refuses to write more than some bytes of a file, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    save, saves = Checkpoints.save, []

    def save_on_a_full_disk(checkpoints, state):
        saves.append(state["progress"]["step"])
        if len(saves) > 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
        save(checkpoints, state)

    monkeypatch.setattr(Checkpoints, "save", save_on_a_full_disk)
    try:
        said = call(train, *SHORT, COARSE, "trainer.epochs=3", "run_dir=out", code=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert said.count("could not be written") == 1 and "The previous one is still there" in said
    monkeypatch.undo()
    os.chdir(tmp_path)
    assert f"Resumed at epoch 2, step {saves[0]}" in call(train, "resume=out")
    assert [row["epoch"] for row in rows_of(tmp_path / "out/metrics.csv")] == ["1", "2", "3"]


def test_one_in_a_hundred_pictures_is_damaged(call, tmp_path):
    """Two JPEGs are cut short, and a PNG of a hundred bytes says that it has 20,000 x 20,000 pixels."""
    digits = Digits("digits").splits()[0]
    for i in range(300):
        file = tmp_path / f"data/{'train' if i < 260 else 'val'}/{digits.target(i) % 2}/{i:03}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        digits.picture(i).image().save(file, quality=95)
    files = sorted((tmp_path / "data/train").rglob("*.jpg"))
    for file in (files[17], files[222]):
        file.write_bytes(file.read_bytes()[:500])
    files[100].write_bytes(huge_png())
    bad = [str(files[i].relative_to(tmp_path)) for i in (17, 100, 222)]
    arguments = ["data=imagefolder", "data.root=data", "data.img_size=32", "data.workers=2", "trainer.epochs=2"]
    said = call(train, *arguments, "trainer.batch_size=20", "run_dir=out")
    assert all(said.count(name) == 1 for name in bad) and said.count("Skipped an unreadable picture") == 3
    said = call(train, *arguments, "trainer.batch_size=20", "run_dir=strict", "data.max_bad_images=2", code=2)
    assert "3 pictures are unreadable, and data.max_bad_images allows 2" in said
