"""Runs that are stopped, killed and continued."""

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from omegaconf import OmegaConf

import eval as evaluation
import train
from backbones.checkpoints import read_checkpoint

from .conftest import COARSE, ROOT, SHORT, rows_of, train_in, untimed


def test_resume_auto_finds_the_unfinished_run_and_finishes_it(call, tmp_path):
    call(train, *SHORT, COARSE, "run_dir=runs/digits_swin_nano/2001")
    (tmp_path / "runs/digits_swin_nano/2001/summary.json").unlink()
    said = call(train, *SHORT, COARSE, "resume=auto")
    assert "in runs/digits_swin_nano/2001" in said and "Resumed at epoch 3, step 22" in said
    said = call(train, *SHORT, COARSE, "resume=auto", "trainer.max_steps=1", "run_dir=new")
    assert "a new one begins" in said and (tmp_path / "new/summary.json").exists()
    said = call(train, *SHORT, COARSE, "resume=auto", "run_dir=new", code=2)
    assert "The run in new has another configuration" in said
    said = call(train, *SHORT, COARSE, "run_dir=new", code=2)
    assert "There is a run in new already" in said
    # A folder that is named is the one that is used, also beside an unfinished run of the same configuration.
    (tmp_path / "runs/digits_swin_nano/2001/summary.json").unlink()
    call(train, *SHORT, COARSE, "resume=auto", "run_dir=other")
    assert (tmp_path / "other/summary.json").exists()


def test_a_bad_override_on_resume_harms_nothing(call, run_folder, tmp_path):
    shutil.copytree(run_folder, tmp_path / "copy")
    before = (tmp_path / "copy/config.yaml").read_text()
    overrides = ["trainer.device=tpu", "backbone.dim=48", "recipe.optimizer.name=adamx", "data.name=flowers"]
    for override in [*overrides, "backbone=swin_t", "trainer.batch_size=64"]:
        call(train, "resume=copy", override, code=2)
        assert (tmp_path / "copy/config.yaml").read_text() == before
    assert "run_dir has no place" in call(train, "resume=copy", "run_dir=x", code=2)
    said = call(train, "resume=copy", "trainer.epochs=3")
    assert "Resumed at epoch 3, step 22" in said and len(rows_of(tmp_path / "copy/metrics.csv")) == 3
    assert OmegaConf.load(tmp_path / "copy/config.yaml").trainer.epochs == 3


def test_a_resumed_run_does_not_need_the_weights_it_began_with(call, run_folder, tmp_path):
    shutil.copy(run_folder / "checkpoints/best.safetensors", "start.safetensors")
    start = ["backbone.checkpoint_path=start.safetensors", "run_dir=out"]
    call(train, *SHORT, *start)
    assert float(rows_of(tmp_path / "out/metrics.csv")[0]["top1"]) > 0.5
    os.remove("start.safetensors")
    call(train, "resume=out", "trainer.epochs=3")
    call(evaluation, "run=out")


def test_a_signal_in_the_last_step_of_all(call, monkeypatch, tmp_path):
    """The epoch that it ends is still to be evaluated when the run goes on."""
    from training.tasks import Classification

    steps, training_step = [], Classification.training_step

    def last_step_is_interrupted(task, batch):
        steps.append(batch)
        if len(steps) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return training_step(task, batch)

    monkeypatch.setattr(Classification, "training_step", last_step_is_interrupted)
    said = call(train, *SHORT, COARSE, "run_dir=out", "trainer.max_steps=3", code=75)
    assert "Stopped by SIGTERM after step 3. Nothing is lost; go on with: python train.py resume=out" in said
    assert not (tmp_path / "out/metrics.csv").exists()
    call(train, "resume=out")
    assert [row["steps"] for row in rows_of(tmp_path / "out/metrics.csv")] == ["3"] and len(steps) == 3


LONG = [COARSE, "trainer.epochs=4", "trainer.batch_size=64", "recipe.ema.decay=0.99", "backbone.drop_path_rate=0.1"]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    train_in(folder, *LONG, "run_dir=out")
    return folder / "out"


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGTERM,
        pytest.param(signal.SIGKILL, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, marks=pytest.mark.slow),
    ],
    ids=lambda number: number.name,
)
def test_a_run_that_was_stopped_ends_as_the_uninterrupted_one(run_program, uninterrupted, tmp_path, number):
    """The signal reaches all processes of the run, as from a terminal or from Slurm."""
    command = [sys.executable, ROOT / "train.py", *LONG, "data.workers=1", "run_dir=out"]
    options = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)
    process = subprocess.Popen(command, cwd=tmp_path, **options)
    metrics, deadline = tmp_path / "out/metrics.csv", time.monotonic() + 200
    while not metrics.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.4)  # into the second epoch
    os.killpg(process.pid, number)
    output, _ = process.communicate(timeout=60)
    if number == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
    else:
        assert process.returncode == 75 and f"Stopped by {number.name}" in output, output
        assert "python train.py resume=out" in output
    assert not (tmp_path / "out/summary.json").exists()

    run_program("train.py", "resume=out")
    ended, expected = (
        torch.load(p / "checkpoints/last.pt", weights_only=True) for p in (tmp_path / "out", uninterrupted)
    )
    for part in ("model", "ema"):
        assert ended[part].keys() == expected[part].keys()
        for name, value in expected[part].items():
            assert torch.equal(ended[part][name], value), name
    best = [read_checkpoint(p / "checkpoints/best.safetensors") for p in (tmp_path / "out", uninterrupted)]
    assert all(torch.equal(best[0][name], best[1][name]) for name in best[1])
    assert untimed(metrics) == untimed(uninterrupted / "metrics.csv") and len(rows_of(metrics)) == 4
