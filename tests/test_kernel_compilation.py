"""Every kernel compiles for every GPU, without one, and fits into it."""

import json
import os
import subprocess
import sys

import pytest

from .conftest import ROOT

SHARED = {"sm_80": 163 * 1024, "sm_90": 227 * 1024, "sm_100": 227 * 1024, "gfx942": 64 * 1024}  # bytes of a program


KERNELS = {"forward", "backward", "backward_q", "backward_kv", "backward_bias", "backward_v", "backward_logits"}
# Between them they launch every kernel of every operator.
SOME = ("window 7, shifted", "neighbourhood 7", "aggregate 13, softmax", "outlook 3", "routed, 64 tokens")


def check_compilation(target, dtype, cache, *options):
    command = [sys.executable, "-m", "tests.compile_kernels", target, "--dtype", dtype, *options]
    environment = os.environ | dict(TRITON_INTERPRET="0", TRITON_CACHE_DIR=str(cache))
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    print(f"\n{target}, {dtype}: registers of a thread, bytes of a thread spilled, bytes of shared memory")
    for row in rows:
        print(f"  {row['case']:25}{row['kernel']:17}{row['registers']:5}{row['spills']:7}{row['shared']:8}")
    assert {row["kernel"] for row in rows} == KERNELS
    assert all(row["shared"] <= SHARED[target] for row in rows)
    if dtype == "bfloat16":
        assert not [row for row in rows if row["kernel"] == "forward" and row["spills"]]


@pytest.mark.parametrize("target", ["sm_90", "gfx942"])
def test_kernels_of_each_operator_compile_and_fit(target, tmp_path):
    check_compilation(target, "bfloat16", tmp_path, "--cases", *SOME)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("target", SHARED)
def test_all_kernels_compile_and_fit(target, dtype, tmp_path):
    check_compilation(target, dtype, tmp_path)
