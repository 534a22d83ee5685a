import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def same_numbers_every_time():
    torch.manual_seed(0)


@pytest.fixture
def run_program(tmp_path):
    """Run a program of the repository in an empty folder; returns the finished process."""

    def run(*arguments: str, code: int | None = 0, **options) -> subprocess.CompletedProcess:
        command = [sys.executable, str(ROOT / arguments[0]), *map(str, arguments[1:])]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, **options)
        assert code is None or done.returncode == code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    return run
