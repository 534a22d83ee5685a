"""The folder that a run leaves behind."""

import csv
import fcntl
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from backbones.errors import InputError

from .files import write_text


class RunFolder:
    """`config.yaml`, `metrics.csv`, `summary.json`, `checkpoints/` and pictures of one run."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.config, self.metrics, self.summary = (
            self.path / n for n in ("config.yaml", "metrics.csv", "summary.json")
        )
        self.checkpoints = self.path / "checkpoints"
        self.best = self.checkpoints / "best.safetensors"

    @classmethod
    def create(cls, path: str | Path | None, name: str, config: str) -> "RunFolder":
        """A folder for a new run: at `path`, or `runs/<name>/<time>`; `config` is the text of config.yaml.

        Raises:
            InputError: there is a run at `path` already.
        """
        if path is None:
            run = cls.new_by_time(Path("runs") / name)
        else:
            run = cls(path)
            if run.config.exists():
                raise InputError(
                    f"There is a run in {path} already. Continue it with resume=auto, or choose another run_dir."
                )
            try:
                run.path.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise InputError(f"The run folder {path} cannot be made ({error}). Choose another run_dir.") from error
        run.checkpoints.mkdir(exist_ok=True)
        run.write_config(config)
        return run

    @classmethod
    def new_by_time(cls, parent: Path) -> "RunFolder":
        time = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
        parent.mkdir(parents=True, exist_ok=True)
        for suffix in ("", *(f"-{i}" for i in range(2, 1000))):
            try:
                (parent / f"{time}{suffix}").mkdir()
                return cls(parent / f"{time}{suffix}")
            except FileExistsError:
                continue
        raise InputError(f"A thousand runs in {parent} started in this second. Set run_dir.")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from training in the folder; the lock ends with the process, however that ends."""
        with open(self.path / ".lock", "w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise InputError(
                    f"Another process is training in {self.path}. Wait for it to end, or use another run_dir."
                ) from error
            yield

    def write_config(self, text: str) -> None:
        write_text(self.config, text)

    def write_metrics(self, history: list[dict[str, Any]]) -> None:
        """metrics.csv: a row per epoch."""
        text = io.StringIO()
        writer = csv.DictWriter(text, history[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(history)
        write_text(self.metrics, text.getvalue())

    def write_json(self, name: str, content: dict[str, Any]) -> Path:
        path = self.path / name
        write_text(path, json.dumps(content, indent=2) + "\n")
        return path


def find_unfinished(parent: Path, config: str) -> RunFolder | None:
    """The newest run below `parent` that has this config.yaml and no summary."""
    runs = [RunFolder(path) for path in sorted(parent.iterdir(), reverse=True)] if parent.is_dir() else []
    for run in runs:
        if run.config.is_file() and not run.summary.exists() and run.config.read_text() == config:
            return run
    return None
