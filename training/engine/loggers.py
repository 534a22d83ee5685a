"""Where the numbers of a run go besides the console and metrics.csv.

A logger has `start(config, folder)`, `epoch(row)`, `pictures(paths by name, epoch)` and `finish(summary)`.
"""

import logging
import os
import secrets
from pathlib import Path
from typing import Any

from backbones.errors import InputError, first_line

from .files import write_text

log = logging.getLogger(__name__)

CONNECT_SECONDS = 20


class WandbLogger:
    """Weights & Biases; offline where there is no key or network, and never a reason to stop training.

    Args:
        project: name of the W&B project.
    """

    def __init__(self, project: str):
        self.project = project
        self._run = None

    def start(self, config: dict[str, Any], folder: Path) -> None:
        import wandb

        # One W&B run per run folder, however often it is resumed.
        known = folder / "wandb_id"
        if not known.exists():
            write_text(known, secrets.token_hex(4))
        name = "-".join(folder.resolve().parts[-2:])
        options = dict(project=self.project, name=name, id=known.read_text(), dir=folder, config=config)
        options |= dict(
            settings=wandb.Settings(silent=True, init_timeout=CONNECT_SECONDS, login_timeout=CONNECT_SECONDS)
        )
        try:
            mode = os.environ.get("WANDB_MODE", "online")
            if mode == "online":
                reason = self._connect(options)
                if reason is None:
                    return
                log.warning("W&B logs offline: %s. Later: wandb sync %s/wandb/offline-*", reason, folder)
                mode = "offline"
            self._run = wandb.init(mode=mode, **options)
        except Exception as error:
            self._give_up(error)

    def _connect(self, options: dict[str, Any]) -> str | None:
        """Start an online run; the reason where that is not possible."""
        import wandb

        try:
            if not wandb.login(prompt=False):
                return "there is no API key (wandb login)"
            self._run = wandb.init(resume="allow", **options)
            return None
        except Exception as error:
            return f"the service cannot be reached ({first_line(error)})"

    def epoch(self, row: dict[str, Any]) -> None:
        self._try(lambda: self._run.log(row, step=row["epoch"]))

    def pictures(self, paths: dict[str, Path], epoch: int) -> None:
        import wandb

        self._try(lambda: self._run.log({name: wandb.Image(str(path)) for name, path in paths.items()}, step=epoch))

    def finish(self, summary: dict[str, Any]) -> None:
        self._try(lambda: (self._run.summary.update(summary), self._run.finish()))

    def _try(self, action) -> None:
        if self._run is not None:
            try:
                action()
            except Exception as error:
                self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        """W&B's failures are of many kinds, and none of them is worth a training run."""
        self._run = None
        log.warning("W&B is off for the rest of this run (%s). metrics.csv has all numbers.", first_line(error))


class TensorboardLogger:
    """TensorBoard event files in the run folder."""

    def __init__(self):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise InputError("logger=tensorboard needs TensorBoard: pip install tensorboard.") from error
        self._writer_class = SummaryWriter

    def start(self, config: dict[str, Any], folder: Path) -> None:
        self._writer = self._writer_class(folder / "tensorboard")

    def epoch(self, row: dict[str, Any]) -> None:
        for name, value in row.items():
            if name != "epoch":
                self._writer.add_scalar(name, value, row["epoch"])
        self._writer.flush()

    def pictures(self, paths: dict[str, Path], epoch: int) -> None:
        import numpy as np
        from PIL import Image

        for name, path in paths.items():
            pixels = np.asarray(Image.open(path).convert("RGB"))
            self._writer.add_image(name, pixels, epoch, dataformats="HWC")

    def finish(self, summary: dict[str, Any]) -> None:
        self._writer.close()


LOGGERS = {"wandb": WandbLogger, "tensorboard": TensorboardLogger}
