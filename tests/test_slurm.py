"""docs/slurm/train.sbatch, with programs in the places of Slurm's and of torchrun."""

import os
import signal
import subprocess
import time

import pytest

from .conftest import ROOT

SCRIPT = ROOT / "docs/slurm/train.sbatch"
PROGRAMS = {
    "srun": 'exec "$@"',
    "scontrol": 'echo "$@" >> scontrol; [ "$1" = show ] && printf "node7\\nnode8\\n"',
    "torchrun": 'echo "$@" >> torchrun; . ./training',
}
STOPPED = "trap 'touch saved; exit 1' USR1; touch started; while true; do sleep 0.05; done"


@pytest.fixture
def start(tmp_path):
    """Start the script, with shell code as the training; returns the process."""
    (tmp_path / "bin").mkdir()
    for name, body in PROGRAMS.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    job = dict(SLURM_JOB_ID="42", SLURM_JOB_NODELIST="node[7-8]", SLURM_JOB_NUM_NODES="2", SLURM_GPUS_ON_NODE="8")
    environment = os.environ | job | dict(PATH=f"{tmp_path}/bin:{os.environ['PATH']}")

    def run(training: str, *arguments: str) -> subprocess.Popen:
        (tmp_path / "training").write_text(training)
        return subprocess.Popen(["bash", SCRIPT, *arguments], cwd=tmp_path, env=environment, stderr=subprocess.PIPE)

    return run


def test_a_signal_saves_and_queues_the_job_again(start, tmp_path):
    job = start(STOPPED, "run", "data.root=/a b", "seed=1")
    while not (tmp_path / "started").exists():
        assert job.poll() is None, job.stderr.read()
        time.sleep(0.02)
    job.send_signal(signal.SIGUSR1)
    assert job.wait(timeout=60) == 1 and (tmp_path / "saved").exists()
    assert (tmp_path / "scontrol").read_text().splitlines() == ["show hostnames node[7-8]", "requeue 42"]
    said = (tmp_path / "torchrun").read_text()
    assert said.startswith("--nnodes 2 --nproc-per-node 8 ") and "--rdzv-endpoint node7:29500" in said
    assert "SIGUSR1 train.py run_dir=run resume=auto data.root=/a b seed=1\n" in said


@pytest.mark.parametrize(("training", "code"), [("mkdir run; touch run/summary.json", 0), ("exit 3", 3)])
def test_what_ends_by_itself_is_not_queued_again(start, tmp_path, training, code):
    assert start(training, "run").wait(timeout=60) == code
    assert "requeue" not in (tmp_path / "scontrol").read_text()


def test_a_run_folder_is_needed(start, tmp_path):
    job = start("exit 0")
    assert job.wait(timeout=60) != 0 and b"usage: sbatch" in job.stderr.read()
    assert not (tmp_path / "torchrun").exists()


def test_torchrun_has_these_options():
    from torch.distributed.run import get_args_parser

    line = SCRIPT.read_text().replace("\\\n", " ")
    (command,) = (line.partition("srun torchrun ")[2] for line in line.splitlines() if line.startswith("srun "))
    options = get_args_parser().parse_args([word.strip('"') for word in command.split()])
    assert options.training_script == "train.py" and "SIGUSR1" in options.signals_to_handle
