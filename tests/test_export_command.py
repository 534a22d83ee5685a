"""`python -m backbones export`: files that give the model's numbers, for any batch and many image sizes."""

import json
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_image

import backbones
from backbones.export import command

from .test_tools import tool  # noqa: F401

NANO = backbones.list_models("*_nano")
REAL = (
    "swin_t", "litv2_s", "biformer_t", "dinat_t", "volo_d1", "gcvit_xxt", "davit_t", "l2vit_t", "overlock_xt"
)  # fmt: skip


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_a_run_becomes_an_onnx_file_with_its_facts(tool, grey_run):  # noqa: F811
    Image.fromarray(load_sample_image("flower.jpg")).resize((90, 60)).save("flower.png")
    printed = tool("export", "swin_nano", "--format", "onnx", "--checkpoint", str(grey_run), "--image", "flower.png")
    onnx.checker.check_model("swin_nano.onnx", full_check=True)
    facts = json.loads(Path("swin_nano.onnx.json").read_text())
    assert facts["size"] == [48, 48] and facts["classes"] == ["cat", "dog", "7"] and facts["mean"] == [0.5]
    assert set(facts["mismatch"]) == {"flower.png", "1 random of 48 x 48", "3 random of 48 x 48"}
    assert 0 < max(facts["mismatch"].values()) < 1e-4 and facts["versions"]["onnxruntime"] == onnxruntime.__version__
    assert "any batch and 48 x 48 px" in printed and f"{facts['milliseconds']['ratio']:.2f} x" in printed
    assert not list(grey_run.parent.glob("*.unchecked"))

    session = onnxruntime.InferenceSession("swin_nano.onnx")
    model = backbones.create_model(
        "swin_nano", num_classes=3, in_chans=1, img_size=48, checkpoint_path=grey_run / "checkpoints/best.safetensors"
    ).eval()
    images = torch.randn(4, 1, 48, 48)
    (logits,) = session.run(["logits"], dict(images=images.numpy()))
    torch.testing.assert_close(torch.from_numpy(logits), model(images), rtol=1e-4, atol=1e-4)


def test_one_graph_for_many_sizes(tool):  # noqa: F811
    options = ["--size", "64", "80", "--dynamic", "--features"]
    printed = tool("export", "swin_nano", "--format", "exported-program", *options)
    assert "sides from 48 px on in steps of 16" in printed
    exported = torch.export.load("swin_nano.pt2").module()
    torch.manual_seed(0)  # with which random weights are drawn
    model = backbones.create_model("swin_nano", features_only=True).eval()
    images = torch.randn(1, 3, 176, 48)
    maps = exported(images)
    assert len(maps) == 4
    for y, expected in zip(maps, model(images)):
        torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)


def test_a_file_with_other_numbers_gets_no_name(tool, monkeypatch, tmp_path):  # noqa: F811
    monkeypatch.setattr(command, "TOLERANCE", -1.0)
    printed = tool("export", "swin_nano", "--format", "exported-program", code=2)
    assert "does not give the model's numbers" in printed and "swin_nano.pt2.unchecked" in printed
    assert not (tmp_path / "swin_nano.pt2").exists() and (tmp_path / "swin_nano.pt2.unchecked/swin_nano.pt2").exists()


def test_what_cannot_be_exported_is_said(tool, grey_run, monkeypatch):  # noqa: F811
    onnx = ["export", "swin_nano", "--format", "onnx"]
    assert "invalid choice: 'tflite'" in tool("export", "swin_nano", "--format", "tflite", code=2)
    assert "Did you mean swin_nano" in tool("export", "swin_nan", "--format", "onnx", code=2)
    assert "at least 32 pixels a side, but got 32 x 16" in tool(*onnx, "--size", "32", "16", code=2)
    assert "from 48 pixels on in steps of 16" in tool(*onnx, "--size", "96", "72", "--dynamic", code=2)
    assert "from 48 pixels on in steps of 16" in tool(*onnx, "--size", "32", "96", "--dynamic", code=2)
    assert "not with davit_nano" in tool("export", "davit_nano", *onnx[2:], "--checkpoint", str(grey_run), code=2)
    assert "no checkpoint at absent" in tool(*onnx, "--checkpoint", "absent", code=2)
    assert "absent.png cannot be read" in tool(*onnx, "--image", "absent.png", code=2)
    assert "ends in .onnx" in tool(*onnx, "--output", "swin.pt2", code=2)
    assert "cannot be written" in tool(*onnx, "--output", "no/folder/swin.onnx", code=2)
    monkeypatch.setitem(command.PACKAGES, "onnx", ("onnx", "not_installed"))
    assert 'needs not_installed. Install the extra: pip install "backbones[export]"' in tool(*onnx, code=2)


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("format", command.SUFFIXES)
@pytest.mark.parametrize("name", NANO)
def test_every_family_in_every_form(tool, name, format, dynamic):  # noqa: F811
    least, step = backbones.create_model(name).export_sizes()
    size = [str(least + step), str(least)] if dynamic else ["64", "48"]
    tool("export", name, "--format", format, "--size", *size, *(["--dynamic"] if dynamic else []))
    facts = json.loads(Path(f"{name}{command.SUFFIXES[format]}.json").read_text())
    assert max(facts["mismatch"].values()) <= command.TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_real_sizes(tool, name):  # noqa: F811
    tool("export", name, "--format", "onnx", "--size", "224", "224")
    assert max(json.loads(Path(f"{name}.onnx.json").read_text())["mismatch"].values()) <= command.TOLERANCE
