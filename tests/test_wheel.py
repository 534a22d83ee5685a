"""The wheel, installed where there is no repository."""

import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from .conftest import ROOT

USE = """
import backbones, sys, torch
from backbones.kernels.window import window_attention
model = backbones.create_model("swin_nano", features_only=True)
assert [y.shape[1] for y in model(torch.randn(1, 3, 64, 64))] == model.feature_info.channels()
assert backbones.model_info("dinat_t.shi_in1k")["tags"]["shi_in1k"]["url"]
for module in (backbones, sys.modules[window_attention.__module__], __import__("training")):
    assert module.__file__.startswith(sys.prefix), module.__file__
"""


def pip(*arguments) -> None:
    subprocess.run([sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments], check=True)


@pytest.fixture(scope="session")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy of the tree in which there is also what a developer's has."""
    folder = tmp_path_factory.mktemp("wheel")
    left_out = shutil.ignore_patterns(".*", "build", "dist", "runs", "images", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, folder / "tree", symlinks=True, ignore=left_out)
    (folder / "tree" / "runs" / "digits").mkdir(parents=True)
    (folder / "tree" / "runs" / "digits" / "__init__.py").touch()
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, folder / "tree")
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture
def python(tmp_path, wheel) -> Path:
    """The interpreter of an environment with the wheel, and else with what this one has."""
    folder = tmp_path / "environment"
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    pip("--python", python, "install", "--no-deps", "--no-index", wheel)
    (site,) = folder.glob("lib/python*/site-packages")
    # After installing, and as a path alone: this environment has the project itself, which must be out of reach.
    (site / "others.pth").write_text("\n".join({sysconfig.get_path(p) for p in ("purelib", "platlib")}))
    return python


def run(python: Path, *arguments: str) -> str:
    """What a program prints that runs away from the repository."""
    options = dict(cwd=python.parents[2], capture_output=True, text=True)
    done = subprocess.run([python, *arguments], **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_holds_the_packages_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"backbones", "training"}
    sources = {
        f"{package}/{path.relative_to(ROOT / room)}"
        for room, package in (("backbones", "backbones"), ("kernels", "backbones/kernels"), ("training", "training"))
        for path in (ROOT / room).rglob("*")
        if path.suffix in (".py", ".yaml")
    }
    assert {name for name in names if "dist-info" not in name} == sources
    assert "backbones/kernels/window/reference.py" in sources and "backbones/pretrained/swin.yaml" in sources


def test_an_installed_wheel_works_away_from_the_repository(python):
    run(python, "-c", USE)
    assert "swin_t" in run(python, "-m", "backbones", "list", "swin*").split()


@pytest.mark.slow
def test_the_package_named_kernels_beside_it(python):
    """The kernels of Hugging Face have the import name of our folder. Needs the network."""
    pip("--python", python, "install", "kernels")
    theirs = """
import kernels, sys, torch
from kernels import use_kernel_forward_from_hub
assert kernels.__file__.startswith(sys.prefix) and "backbones" not in kernels.__file__, kernels.__file__
layer = use_kernel_forward_from_hub("Twice")(type("Layer", (torch.nn.Module,), {"forward": lambda self, x: 2 * x}))
assert layer()(torch.ones(2)).tolist() == [2, 2]
"""
    run(python, "-c", USE + theirs)
    run(python, "-c", theirs + USE)
    pip("--python", python, "uninstall", "--yes", "backbones")
    run(python, "-c", theirs)
