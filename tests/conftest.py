import csv
import json
import os
import re
import struct
import subprocess
import sys
import zlib
from io import BytesIO
from pathlib import Path

import pytest
import yaml
from PIL import Image

# Before torch is imported, and for the programs that tests start: workers beside one another share the cores.
WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
if WORKERS > 1:
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, os.cpu_count() // WORKERS)))

import torch  # noqa: E402

if not torch.cuda.is_available():  # Triton reads this when it is imported
    os.environ.setdefault("TRITON_INTERPRET", "1")

ROOT = Path(__file__).parents[1]

# 22 steps: enough to learn something, in a few seconds.
SHORT = ["trainer.batch_size=128", "trainer.epochs=2", "recipe.schedule.warmup_epochs=0.5"]
# A network of a quarter of the tokens, which takes a third of the time, where it does not matter how well it learns.
COARSE = "backbone.patch_size=4"


# Columns of metrics.csv that are not the same in every run.
TIMES = ("seconds", "images_per_second", "data_wait", "step_ms_p50", "step_ms_p95", "peak_memory_bytes")


def untimed(path) -> list[dict[str, str]]:
    """The rows of a run's metrics.csv, without what depends on the machine's speed."""
    return [{k: v for k, v in row.items() if k not in TIMES} for row in rows_of(path)]


def rows_of(path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def examples(heading: str) -> str:
    """The Python under a heading of docs/interop.md, as one program."""
    section = (ROOT / "docs/interop.md").read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return "\n".join(re.findall(r"```python\n(.*?)```", section, re.DOTALL))


def huge_png() -> bytes:
    """A PNG of some hundred bytes that says that it has 20,000 x 20,000 pixels."""
    content = BytesIO()
    Image.new("L", (16, 16)).save(content, "PNG")
    content = bytearray(content.getvalue())
    content[16:24] = struct.pack(">II", 20_000, 20_000)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    return bytes(content)


def outcome(capsys, code: int, main, *arguments):
    """Call a program's main function; returns what it printed, and checks how it ended."""
    try:
        main(*arguments)
        ended = 0
    except SystemExit as end:
        ended = end.code
    printed = capsys.readouterr()
    assert ended == code, printed.out + printed.err
    return printed


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


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """Call train.main or eval.main in an empty folder; returns what it printed, and checks how it ended."""
    monkeypatch.chdir(tmp_path)

    def run(program, *arguments, code=0):
        monkeypatch.setattr(sys, "argv", [program.__file__, *arguments])
        printed = outcome(capsys, code, program.main, list(arguments))
        return printed.out + printed.err

    return run


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory):
    """A run of a few seconds on the digits."""
    folder = tmp_path_factory.mktemp("run")
    train_in(folder, *SHORT, "run_dir=done")
    return folder / "done"


def train_in(folder, *arguments):
    """Train in this folder and in this process, which has imported already what a program takes seconds to import."""
    import train

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", [train.__file__, *arguments])
        train.main(list(arguments))


@pytest.fixture
def grey_run(tmp_path):
    """A run folder of a network for grey pictures of three classes, as far as the tools look at it."""
    from safetensors.torch import save_file

    import backbones

    model = backbones.create_model("swin_nano", num_classes=3, in_chans=1, img_size=48)
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    classes = json.dumps(["cat", "dog", "7"])
    save_file(model.state_dict(), folder / "checkpoints/best.safetensors", {"classes": classes})
    data = dict(name="imagefolder", img_size=48, channels=1, mean=[0.5], std=[0.2], crop_pct=1.0, crop_mode="squash")
    (folder / "config.yaml").write_text(yaml.safe_dump(dict(backbone=dict(name="swin_nano"), data=data)))
    return folder


def partition(height: int, width: int, segments: int, void: float = 0.2) -> torch.Tensor:
    """A map (H, W) of segments: of the nearest of random points, some of which are of none."""
    points = torch.rand(segments, 2) * torch.tensor([height, width])
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    nearest = torch.cdist(torch.stack([y, x], -1).reshape(-1, 2).float(), points).argmin(1).reshape(height, width)
    numbers = torch.arange(segments)
    numbers[torch.rand(segments) < void] = -1
    return numbers[nearest]


@pytest.fixture
def products_are_slow(monkeypatch):
    """A CPU on which large linear layers are computed as convolutions; never with a single thread."""
    monkeypatch.setattr("backbones.layers.linear.is_product_slow", lambda: True)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)
