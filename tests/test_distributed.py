"""Several processes: the same training, checkpoints for any number of them, and what may befall one of them."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

import backbones
from backbones.checkpoints import read_checkpoint
from training.engine import Checkpoints

from .conftest import COARSE, ROOT, rows_of, untimed

COMMON = ["trainer.device=cpu", "recipe.regularize.mixup=0.8", "recipe.regularize.cutmix=1.0", "seed=1"]
LONG = [*COMMON, COARSE, "trainer.epochs=3", "trainer.max_steps=50", "recipe.ema.decay=0.9"]


def start(folder, processes, *arguments, restarts=0, program=("tests/torchrun.py", "."), **more):
    """Start training in `folder` with so many processes, and `more` in their environment."""
    launcher = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}", "--standalone"]
    command = [*launcher, f"--max-restarts={restarts}", ROOT / program[0], *program[1:], *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    environment |= more
    environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"  # as docs/reliability.md says for restarts
    return subprocess.Popen(
        list(map(str, command)),
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(folder, processes, *arguments, code=0, **options):
    """Train to the end; returns what was printed."""
    folder.mkdir(exist_ok=True)
    process = start(folder, processes, *arguments, **options)
    output, _ = process.communicate(timeout=500)
    assert code is None or process.returncode == code, output
    return output


def losses(folder, processes, accumulation):
    """The loss of each step: the mean over all processes and parts."""
    texts = [(folder / f"losses{rank}").read_text() for rank in range(processes)]
    each = [torch.tensor([float(line) for line in text.splitlines()]) for text in texts]
    return torch.stack(each).unflatten(1, (-1, accumulation)).mean((0, 2))


def take_losses(folder):
    """The losses of two processes, of which the files are removed, for those of a resumed run."""
    taken = losses(folder, 2, 1)
    for rank in range(2):
        (folder / f"losses{rank}").unlink()
    return taken


def check_losses(found, expected):
    """Losses of the same steps agree but for the order of additions."""
    assert ((found - expected) / expected).abs().max() < 1e-4


def size(batch, accumulation):
    return [f"trainer.batch_size={batch}", f"trainer.accumulation_steps={accumulation}", "run_dir=out"]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A finished run of two processes."""
    folder = tmp_path_factory.mktemp("two")
    run(folder, 2, *size(32, 1), *LONG)
    return folder


def same_weights(one, other):
    states = [Checkpoints(folder / "out/checkpoints").load() for folder in (one, other)]
    for part in ("model", "ema"):
        assert all(torch.equal(states[0][part][name], value) for name, value in states[1][part].items())
    assert untimed(one / "out/metrics.csv") == untimed(other / "out/metrics.csv")


@pytest.mark.parametrize(("processes", "accumulation"), [(1, 2), pytest.param(4, 1, marks=pytest.mark.slow)])
def test_the_same_training_in_any_number_of_processes(two, tmp_path, processes, accumulation):
    """Drop path and mixing included: the draws are of the picture or of the part of a step, never of the process."""
    batch = 64 // processes // accumulation
    run(
        tmp_path,
        processes,
        *size(batch, accumulation),
        *LONG,
    )
    expected = losses(two, 2, 1)
    assert len(expected) == 50
    check_losses(losses(tmp_path, processes, accumulation), expected)
    rows, others = (rows_of(folder / "out/metrics.csv") for folder in (tmp_path, two))
    for row, other in zip(rows, others, strict=True):
        assert float(row["train_loss"]) == pytest.approx(float(other["train_loss"]), rel=1e-4)
        assert float(row["top1"]) == pytest.approx(float(other["top1"]), abs=0.006)  # two of 360 pictures


def test_a_process_that_is_killed_is_started_again(two, tmp_path):
    process = start(tmp_path, 2, *size(32, 1), *LONG, restarts=1)
    wait_for(tmp_path / "out/metrics.csv", process)
    time.sleep(0.5)
    kill_a_worker(process)
    output, _ = process.communicate(timeout=500)
    assert process.returncode == 0, output
    assert "Resumed at epoch" in output
    same_weights(tmp_path, two)


@pytest.mark.slow
def test_processes_that_are_killed_ten_times(two, tmp_path):
    """In a step, in an evaluation, or in the middle of writing a file; each time the launcher starts both again."""
    said = run(tmp_path, 2, *size(32, 1), *LONG, restarts=10, SEED="0", DEATHS="10")
    assert said.count("died in") == 10
    same_weights(tmp_path, two)


@pytest.mark.parametrize(
    ("number", "processes"),
    [
        (signal.SIGTERM, 2),
        pytest.param(signal.SIGTERM, 1, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, 4, marks=pytest.mark.slow),
    ],
)
def test_pre_emption_of_the_launcher(two, tmp_path, number, processes):
    """The run goes on with the same training in as many processes, in more or in fewer."""
    interrupted(tmp_path, number)
    if processes == 2:
        run(tmp_path, 2, "resume=out")
        same_weights(tmp_path, two)
        return
    before = len(take_losses(tmp_path))
    accumulation = 2 // processes or 1
    batch = 64 // processes // accumulation
    run(tmp_path, processes, "resume=out", f"trainer.batch_size={batch}", f"trainer.accumulation_steps={accumulation}")
    expected = losses(two, 2, 1)[before:]
    check_losses(losses(tmp_path, processes, accumulation), expected)


def interrupted(folder, number, *arguments):
    """Start with two processes, and send the launcher this signal in the second epoch."""
    process = start(folder, 2, *size(32, 1), *LONG, *arguments)
    wait_for(folder / "out/metrics.csv", process)
    process.send_signal(number)
    output, _ = process.communicate(timeout=100)
    assert process.returncode != 0 and "Nothing is lost" in output, output


def test_an_evaluation_by_several_processes(two):
    """Every picture is counted once, though two processes in batches of 32 do not divide 360 pictures."""
    summary = json.loads((two / "out/summary.json").read_text())
    output = run(two, 2, "run=out", "trainer.device=cpu", program=["eval.py"])
    result = json.loads((two / "out/eval.json").read_text())
    assert result["images"] == 360 and output.count("on 360 pictures of digits") == 1
    assert result["top1"] == summary["top1"] and result["loss"] == pytest.approx(summary["loss"], rel=1e-6)


@pytest.mark.slow
def test_a_rehearsal_in_two_processes(tmp_path):
    run(tmp_path, 2, "experiment=swin/swin_b_384_in1k", "trainer.rehearse=true", "trainer.device=cpu", "run_dir=out")
    for name in ("out_start", "out"):
        assert (tmp_path / name / "summary.json").exists()


@pytest.mark.slow
def test_a_process_that_hangs(tmp_path):
    process = start(tmp_path, 2, *size(32, 1), *LONG, "trainer.timeout=5")
    wait_for(tmp_path / "out/metrics.csv", process)
    kill_a_worker(process, signal.SIGSTOP)
    output, _ = process.communicate(timeout=120)
    assert process.returncode != 0 and "has not answered for 5 seconds" in output and "in train_together" not in output
    assert Checkpoints(tmp_path / "out/checkpoints").load()["progress"]["epoch"] == 1


@pytest.mark.slow
def test_running_statistics_are_evaluated_as_they_are_saved(tmp_path):
    run(tmp_path, 2, *size(32, 1), "backbone=biformer_nano", "trainer.epochs=2", "trainer.device=cpu")
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    best = max(rows_of(tmp_path / "out/metrics.csv"), key=lambda row: float(row["top1"]))
    assert summary["top1"] == float(best["top1"]) and summary["loss"] == pytest.approx(float(best["loss"]), rel=1e-6)


def wait_for(path, process):
    deadline = time.monotonic() + 300
    while not path.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert path.exists(), process.communicate()[0]


def kill_a_worker(launcher, number=signal.SIGKILL):
    children = subprocess.check_output(["pgrep", "-P", str(launcher.pid)], text=True).split()
    os.kill(int(children[-1]), number)


@pytest.mark.slow
def test_sharded_training(two, tmp_path):
    """FSDP computes what DDP does, and its checkpoints suit another number of processes."""
    interrupted(tmp_path, signal.SIGTERM, "trainer.strategy=fsdp")
    before = take_losses(tmp_path)
    expected = losses(two, 2, 1)
    check_losses(before, expected[: len(before)])
    output = run(tmp_path, 4, "resume=out", "trainer.batch_size=16")
    assert f"step {len(before)}" in output
    after = losses(tmp_path, 4, 1)
    assert len(before) + len(after) == 50
    check_losses(after, expected[len(before) :])
    whole = read_checkpoint(tmp_path / "out/checkpoints/best.safetensors")
    assert whole.keys() == read_checkpoint(two / "out/checkpoints/best.safetensors").keys()
    for flag in ([], ["--ema"]):
        command = [sys.executable, "-m", "training", "weights", "out", "one.safetensors", *flag]
        subprocess.run(command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True)
        model = backbones.create_model(
            "swin_nano", num_classes=10, in_chans=1, patch_size=4, checkpoint_path=tmp_path / "one.safetensors"
        )
        assert all(value.isfinite().all() for value in model.state_dict().values())
    output = run(tmp_path, 1, "resume=out", "trainer.batch_size=64", code=None)
    assert "are sharded. Go on with trainer.strategy=fsdp" in output
