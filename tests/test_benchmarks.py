"""The table of python -m benchmarks models: sides, reasons, going on; and the list of all benchmarks."""

import subprocess
import sys

import pytest
import torch

from .conftest import ROOT, outcome, rows_of

FAST = ["--mode", "inference", "--batch", "2", "--size", "32", "--rounds", "1", "--device", "cpu"]


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import models

    return models


@pytest.fixture
def measured(script, monkeypatch, capsys, tmp_path):
    """Call the program; returns the table that it leaves, and what it printed."""

    def call(*arguments: str, code: int = 0):
        table = tmp_path / "table.csv"
        monkeypatch.setattr(sys, "argv", ["models", *arguments, "--output", str(table)])
        printed = outcome(capsys, code, script.main)
        return rows_of(table) if table.exists() else [], printed.out + printed.err

    return call


def test_every_benchmark_is_listed():
    command = [sys.executable, "-m", "benchmarks"]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    names = {path.stem for path in (ROOT / "benchmarks").glob("*.py")} - {"__init__", "__main__", "measure", "table"}
    assert {line.split()[0] for line in said.splitlines() if line.startswith("  ")} == names and "models" in names
    wrong = subprocess.run([*command, "model"], cwd=ROOT, capture_output=True, text=True)
    assert wrong.returncode == 2 and "no benchmark 'model'" in wrong.stderr and "  models" in wrong.stderr


def test_a_table_is_gone_on_with(measured):
    first, said = measured("swin_nano", *FAST, "--against", "timm,reference")
    assert [(row["side"], row["reason"]) for row in first] == [
        ("ours", ""),
        ("timm", "timm has no swin_nano"),
        ("reference", ""),
    ]
    ours, theirs, reference = first
    assert ours["speed_ratio"] == ours["memory_ratio"] == "1" and theirs["ms"] == "" and float(ours["ms"]) > 0
    assert float(ours["images_per_second"]) == pytest.approx(2000 / float(ours["ms"]), rel=1e-3)
    assert float(reference["speed_ratio"]) == pytest.approx(float(reference["ms"]) / float(ours["ms"]), rel=1e-3)
    assert ours["parameters_m"] == reference["parameters_m"] and float(ours["memory_mib"]) > 0.05
    assert ours["torch"] == torch.__version__ and ours["commit"] and ours["machine"] and ours["threads"].isdigit()
    assert "geometric mean of the speeds to reference's" in said and "timm has no swin_nano" in said

    # What is there stays as it was measured; another model and another side are added.
    table, said = measured("swin_nano", "davit_*nano", *FAST, "--against", "timm,torchvision,reference")
    assert table[:3] == first
    assert [(row["model"], row["side"]) for row in table[3:]] == [
        ("swin_nano", "torchvision"),
        *(("davit_nano", side) for side in ("ours", "timm", "torchvision", "reference")),
    ]


def test_what_does_not_fit_into_memory_is_a_row(measured):
    arguments = ["swin_nano", *FAST, "--against", "none", "--mode", "training", "--dtype", "bfloat16"]
    huge, small = measured(*arguments, "--batch", f"{10**10},2")[0]
    assert huge["batch"] == str(10**10) and huge["reason"] == "out of memory" and huge["ms"] == ""
    assert small["batch"] == "2" and small["dtype"] == "bfloat16" and small["mode"] == "training" and float(small["ms"])


def test_the_peers_are_the_same_networks(measured):
    rows, _ = measured("swin_t", *FAST, "--size", "64", "--batch", "1", "--against", "timm,torchvision")
    assert [row["peer"] for row in rows] == ["swin_t", "swin_tiny_patch4_window7_224", "swin_t"]
    assert [row["reason"] for row in rows] == ["", "", ""]


def test_wrong_arguments(measured, tmp_path):
    assert "no model is named like swin_x" in measured("swin_x", code=2)[1]
    if not torch.cuda.is_available():
        assert "PyTorch finds no GPU here" in measured("--device", "cpu,cuda", code=2)[1]
    assert "int8 is none of float32, bfloat16" in measured("--dtype", "int8", code=2)[1]
    (tmp_path / "table.csv").write_text("model,ms\n")
    assert "has other columns" in measured("swin_nano", code=2)[1]


@pytest.mark.slow
def test_all_peers_have_as_many_parameters(script):
    for name, peers in script.PEERS.items():
        size = 384 if name.endswith("384") else 224
        case = script.Case("wall", "cpu", "inference", "float32", "none", 1, size, name)
        with torch.device("meta"):
            counts = {side: sum(p.numel() for p in script.build(side, case).parameters()) for side in ("ours", *peers)}
        assert len(set(counts.values())) == 1, (name, counts)


@pytest.mark.slow
def test_compiled(measured):
    [row] = measured("swin_nano", *FAST, "--against", "none", "--compile", "default")[0]
    assert row["compile"] == "default" and not row["reason"] and float(row["ms"]) > 0
