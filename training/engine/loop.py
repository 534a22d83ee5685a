"""The training loop, read from top to bottom.

A task is a module with `model`, `metric` (the name of what the best checkpoint is best in),
`start_epoch(epoch, epochs)`, `training_step(batch) -> losses`, `start_evaluation()`, `evaluation_step(batch)`,
`compute_metrics() -> dict`, `draw_samples(path, source)` and `write_pictures(folder, source)`, which return what they
drew by name, and `metadata() -> dict` to keep with the weights. A loader has a length, `source`, and
`epoch(number, start)`, which yields batches; the loop never looks inside one.
"""

import logging
import math
import os
import resource
import time
from collections.abc import Callable
from typing import Any

import torch

from backbones.checkpoints import read_checkpoint

from ..distributed import barrier, rank, sum_later, world_size
from .checkpoints import Checkpoints
from .curves import curves_picture
from .optimization import Precision
from .parallel import load_full_weights, share_buffers
from .reporter import Reporter
from .run_folder import RunFolder
from .session import Session, save_weights
from .steps import WAITING, Meter, diverged, train_epoch
from .stopping import Interrupted, StopSignals

log = logging.getLogger(__name__)


def fit(
    task, train_loader, val_loader, session: Session, run: RunFolder, checkpoints: Checkpoints, reporter: Reporter
) -> dict[str, Any]:
    """Train a task from where the session is, and evaluate its best weights.

    With several processes, each calls it with its own loaders, and the first one writes.

    Returns:
        epochs, steps, the task's metrics, images_per_second, wall_seconds, peak_memory_bytes, parameters, checkpoint.

    Raises:
        InputError: the loss or the weights are not finite, the disk is full, or the data does not come.
        Interrupted: a signal came; the state is in the run folder.
    """
    progress, started = session.progress, time.perf_counter() - session.progress.wall_seconds
    task.model = session.trained
    if session.trainer.compile:
        getattr(session.model, "compile_backbone", task.model.compile)()

    with StopSignals() as stop:

        def stop_if_asked() -> None:
            [asked] = sum_later([stop.received is not None])()
            if asked:
                if not session.done:
                    progress.wall_seconds = time.perf_counter() - started
                    session.save(checkpoints)
                checkpoints.finish()
                by = stop.received or "a signal to another process"
                raise Interrupted(f"Stopped by {by} after step {progress.step}.", f"python train.py resume={run.path}")

        while not session.done:
            meter = train_epoch(task, train_loader, session, run, checkpoints, reporter, stop)
            stop_if_asked()
            metrics = {}
            for prefix, model in session.candidates().items():
                share_buffers(model)  # the first process's are the ones that are saved
                values = evaluate(task, val_loader, session.precision, reporter, model, stop_if_asked)
                if not all(map(math.isfinite, values.values())):
                    raise diverged("The evaluation gave no number", progress.step - 1, session.lr, checkpoints)
                metrics |= {prefix + name: value for name, value in values.items()}
                if progress.best is None or values[task.metric] > progress.best:
                    progress.best = values[task.metric]
                    save_weights(run.best, model, task.metadata())
            _finish_epoch(session, metrics, meter)
            progress.wall_seconds = time.perf_counter() - started
            session.save(checkpoints)
            if rank() == 0:
                run.write_metrics(progress.history)
            reporter.epoch(progress.history[-1])
            if rank() == 0:
                drawn = task.draw_samples(run.path / f"samples/epoch_{progress.epoch:04}.png", val_loader.source)
                reporter.pictures(drawn, progress.epoch)
        checkpoints.finish()

        barrier()  # until the first process has written the best weights
        load_full_weights(session.model, read_checkpoint(run.best))
        metrics = evaluate(task, val_loader, session.precision, reporter, session.model, stop_if_asked)
        if rank() == 0:
            drawn = {"curves": curves_picture(run.path / "curves.png", progress.history)}
            reporter.pictures(drawn | task.write_pictures(run.path, val_loader.source), progress.epoch)
    return {
        "epochs": len(progress.history),
        "steps": progress.step,
        **metrics,
        "images_per_second": progress.step * session.images_per_step / progress.train_seconds,
        "wall_seconds": time.perf_counter() - started,
        "peak_memory_bytes": peak_memory(session.device),
        "parameters": sum(p.numel() for p in session.model.parameters()),
        "checkpoint": str(run.best),
    }


def evaluate(
    task,
    loader,
    precision: Precision,
    reporter: Reporter,
    model: torch.nn.Module | None = None,
    check: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """The task's metrics over one pass of a loader, with its own model or another of the same kind.

    Of several processes each sees its share of the pictures, and all get the metrics of the whole.

    `check` is called after each batch; what it raises ends the pass.
    """
    own, task.model = task.model, model or task.model
    try:
        task.eval()
        task.start_evaluation()
        # Shards are put together by hooks that inference mode does not allow.
        with torch.no_grad() if world_size() > 1 else torch.inference_mode(), precision.autocast():
            for batch in reporter.bar(loader.epoch(), len(loader), "evaluating", loader.batch_size):
                task.evaluation_step(batch)
                check()
        return task.compute_metrics()
    finally:
        task.model = own


def _finish_epoch(session: Session, metrics: dict[str, float], meter: Meter) -> None:
    """Add the epoch's row to the history, and go on to the next."""
    progress = session.progress
    steps = progress.step - sum(row["steps"] for row in progress.history)
    seconds = progress.train_seconds - sum(row["seconds"] for row in progress.history)
    good = max(1, progress.step_in_epoch - progress.bad_in_epoch)
    progress.history.append(
        {
            "epoch": progress.epoch + 1,
            "steps": steps,
            "train_loss": progress.loss_sum / good,
            **metrics,
            "lr": session.lr,
            "grad_norm": progress.norm_sum / good,
            "bad_steps": progress.bad_in_epoch,
            "images_per_second": steps * session.images_per_step / seconds,
            "seconds": seconds,
            **meter.summary(),
            "peak_memory_bytes": peak_memory(session.device),
        }
    )
    progress.epoch, progress.step_in_epoch, progress.bad_in_epoch = progress.epoch + 1, 0, 0
    progress.loss_sum = progress.norm_sum = 0.0
    waited = progress.history[-1]["data_wait"]
    if waited > WAITING:
        cores = os.cpu_count()
        log.warning(
            "%.0f %% of the time went into waiting for data. Raise data.workers (%d cores).", 100 * waited, cores
        )


def peak_memory(device: torch.device) -> int:
    """Most memory in use so far, in bytes: the GPU's, or the process's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts it in KiB
