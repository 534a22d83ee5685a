"""The tools of `python -m backbones`, and the search for launch settings behind one of them."""

import json
import subprocess
import sys

import pytest
import torch

import backbones
from backbones.__main__ import main
from backbones.kernels import settings, workloads
from backbones.kernels.tune import tune

from .conftest import ROOT, outcome


@pytest.fixture
def tool(monkeypatch, capsys):
    """Call the program; returns what it printed, and checks how it ended."""

    def call(*arguments: str, code: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", ["backbones", *arguments])
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        printed = outcome(capsys, code, main)
        return printed.out or printed.err

    return call


def test_list_and_info(tool):
    assert tool("list", "swin*").split() == backbones.list_models("swin*")
    assert tool("list", "--pretrained", "l2vit_b*").split() == backbones.list_models("l2vit_b*", pretrained=True)
    info = json.loads(tool("info", "nat_m"))
    assert info["name"] == "nat_m" and info["strides"] == [4, 8, 16, 32] and info["parameters"] == 19_984_174
    assert "Did you mean nat_t" in tool("info", "nat_x", code=2)
    assert "No model is named like 'resnet*'" in tool("list", "resnet*", code=2)
    assert "PyTorch sees none" in tool("tune", code=2)
    assert "required: COMMAND" in tool(code=2)


def test_a_closed_pipe_ends_the_program_quietly():
    done = subprocess.run(
        f"{sys.executable} -m backbones list | head -n 1", shell=True, cwd=ROOT, capture_output=True, text=True
    )
    assert done.stdout.strip() == backbones.list_models()[0] and "Traceback" not in done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="measures with a clock that only a CPU can fake")
def test_tuning_finds_the_fastest_settings():
    """With a clock by which a kernel is the faster the more warps, and the fewer programs, it has."""
    before = dict(settings.TUNED)
    asked = []

    def clock(run) -> float:
        run()
        chosen = settings.TUNED["cpu"]
        asked.append({name: dict(values) for name, values in chosen.items()})
        return sum(v.get("programs", 1) / v["num_warps"] for v in chosen.values())

    printed = []
    candidates = dict(num_warps=(2, 8, 4), programs=(512, 64, 128))
    chosen = [workloads.window(4, 1, 2), workloads.outlook(4, 1)]
    best = tune(chosen, 1, torch.float32, torch.device("cpu"), clock, candidates, printed.append)
    assert set(best) == {
        "window_forward", "window_backward", "outlook_forward", "outlook_backward_v", "outlook_backward_logits"
    }  # fmt: skip
    assert all(values["num_warps"] == 8 for values in best.values())
    assert best["window_forward"]["programs"] == 64 and best["outlook_forward"]["SIZE"] == 64
    assert len(printed) == len(best) and settings.TUNED.get("cpu", {}) == before.get("cpu", {})
    assert {a["window_forward"]["num_warps"] for a in asked if "window_forward" in a} == {2, 4, 8}


def test_settings_of_a_gpu_class_take_the_place_of_the_defaults(monkeypatch):
    monkeypatch.setitem(settings.TUNED, "cpu", {"routed_forward": dict(num_warps=2)})
    x = torch.zeros(1, dtype=torch.float16)
    assert settings.settings("routed_forward", x) == settings.DEFAULT["routed_forward"] | dict(num_warps=2)
    assert settings.settings("routed_forward", x.float())["num_warps"] == 4
    assert settings.settings("routed_backward_q", x, 16)["num_warps"] == 2


def test_every_workload_runs():
    """On the reference, at its real size, with a batch of one."""
    for workload in workloads.WORKLOADS:
        tensors = workload.tensors(1, torch.float32, "cpu")
        out = workload.call(**tensors)
        assert out.shape == (1, *workload.maps["v"])
        assert workload.elements(2) == 2 * workload.elements(1)
