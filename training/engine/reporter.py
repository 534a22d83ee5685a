"""What a run says while it runs: progress bars and a table on a terminal, plain lines elsewhere, and loggers."""

import logging
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from .curves import METRICS

# Beginnings of columns that metrics.csv and the loggers have, and the console leaves out.
FOR_FILES = ("grad_norm", "bad_steps", "data_wait", "step_ms_p50", "step_ms_p95", "peak_memory_bytes")
FOR_FILES += ("box_ap75", "box_ap_", "box_ar", "mask_ap75", "mask_ap_", "mask_ar")
FOR_FILES += ("sq", "rq", "pq_", "pixel_accuracy", "boundary_iou")
LINE_SECONDS = 60  # between two lines about one epoch, where there is no terminal for a bar


class Reporter:
    """Says everything once: to the console, and to the loggers.

    Args:
        quiet: write nothing to the console, as all processes of a run but the first.
        loggers: objects with `start`, `epoch`, `pictures` and `finish`, such as those of `loggers.LOGGERS`.
    """

    def __init__(self, loggers: Iterable = (), quiet: bool = False):
        self.console = Console(soft_wrap=True, highlight=False, quiet=quiet)
        self.loggers = list(loggers)
        self._columns: tuple[str, ...] = ()
        # What the packages log, a skipped picture say, is said the same way.
        logging.basicConfig(level=logging.WARNING, handlers=[_NoteHandler(self)], format="%(message)s", force=True)
        for package in ("backbones", "training"):
            logging.getLogger(package).setLevel(logging.INFO)

    def note(self, message: str) -> None:
        """One line for the person who watches."""
        self.console.print(message, markup=False)

    def start(self, config: dict[str, Any], folder: Path) -> None:
        for logger in self.loggers:
            logger.start(config, folder)

    def bar(self, items: Iterable, total: int, title: str, images: int, session=None) -> Iterator:
        """Yield the items, of so many images each, beside a bar with rate, loss, learning rate and time left."""
        if not self.console.is_terminal:
            yield from self._lines(items, total, title, images, session)
            return
        columns = (
            TextColumn("{task.description:>14}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[state]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self.console, transient=True) as progress:
            task = progress.add_task(title, total=total, state="")
            started = time.perf_counter()
            for done, item in enumerate(items, start=1):
                yield item
                progress.update(task, advance=1, state=_state(session, done * images, started))

    def _lines(self, items: Iterable, total: int, title: str, images: int, session) -> Iterator:
        started = said = time.perf_counter()
        for done, item in enumerate(items, start=1):
            yield item
            if time.perf_counter() - said > LINE_SECONDS:
                said = time.perf_counter()
                left = (said - started) / done * (total - done)
                self.note(f"{title}: {done} of {total}, {_state(session, done * images, started)}, {left:.0f} s left")

    def epoch(self, row: dict[str, Any]) -> None:
        """One line of the table, with a heading before the first."""
        shown = {name: value for name, value in row.items() if not name.removeprefix("ema_").startswith(FOR_FILES)}
        if self._columns != tuple(shown):
            self._columns = tuple(shown)
            self.note("  ".join(f"{_heading(name):>10}" for name in shown))
        self.note("  ".join(f"{_format(name, value):>10}" for name, value in shown.items()))
        for logger in self.loggers:
            logger.epoch(row)

    def pictures(self, paths: dict[str, Path], epoch: int) -> None:
        """Files by name, as they are after an epoch."""
        for logger in self.loggers:
            logger.pictures(paths, epoch)

    def finish(self, summary: dict[str, Any]) -> None:
        for logger in self.loggers:
            logger.finish(summary)


class _NoteHandler(logging.Handler):
    def __init__(self, reporter: Reporter):
        super().__init__()
        self.reporter = reporter

    def emit(self, record: logging.LogRecord) -> None:
        self.reporter.note(self.format(record))


def _state(session, images: int, started: float) -> str:
    rate = f"{images / (time.perf_counter() - started):.0f} images/s"
    if session is None:
        return rate
    loss = session.progress.loss_sum / max(1, session.progress.step_in_epoch - 1)
    return f"{rate}  loss {loss:.4f}  lr {session.lr:.2e}"


def _heading(name: str) -> str:
    return {"images_per_second": "images/s", "train_loss": "train loss", "seconds": "seconds"}.get(name, name)


def _format(name: str, value: Any) -> str:
    if isinstance(value, int):
        return str(value)
    if name.removeprefix("ema_").startswith(("top", "mean_acc", *METRICS)):
        return f"{100 * value:.2f} %"
    if name == "lr":
        return f"{value:.2e}"
    return f"{value:.1f}" if name in ("seconds", "images_per_second") else f"{value:.4f}"
