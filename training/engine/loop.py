"""The training loop, read from top to bottom.

A task has `model`, `metric` (the name of what the best checkpoint is best in), `training_step(batch) -> losses`,
`start_evaluation()`, `evaluation_step(batch)`, `compute_metrics() -> dict` and `write_pictures(folder, source)`.
A loader has a length, `source`, and `epoch(number, start)`, which yields batches; the loop never looks inside one.
"""

import math
import resource
import time
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from backbones.checkpoints import read_checkpoint
from backbones.errors import InputError

from ..seeding import seed_everything
from .curves import curves_picture
from .optimization import Precision, choose_device
from .reporter import Reporter
from .run_folder import RunFolder
from .session import Session, save_weights
from .settings import EmaSettings, OptimizerSettings, ScheduleSettings, TrainerSettings
from .stopping import Interrupted, StopSignals


def fit(
    task,
    train_loader,
    val_loader,
    trainer: TrainerSettings,
    optimizer: OptimizerSettings,
    schedule: ScheduleSettings,
    ema: EmaSettings,
    run: RunFolder,
    reporter: Reporter,
    seed: int,
) -> dict[str, Any]:
    """Train a task, from the start or from the run folder's last checkpoint, and evaluate its best weights.

    Returns:
        epochs, steps, the task's metrics, images_per_second, wall_seconds, peak_memory_bytes, parameters, checkpoint.

    Raises:
        InputError: the settings cannot work, or the loss is not finite.
        Interrupted: a signal came; the state is in the run folder.
    """
    device = choose_device(trainer.device)
    task.to(device)
    if trainer.accumulation_steps > len(train_loader):
        raise InputError(
            f"trainer.accumulation_steps is {trainer.accumulation_steps}, but an epoch has {len(train_loader)} batches."
        )
    steps_per_epoch = len(train_loader) // trainer.accumulation_steps
    session = Session(task.model, device, trainer, optimizer, schedule, ema, steps_per_epoch)
    if run.last.exists():
        session.restore(run.last)
        reporter.note(f"Resumed {run.path} at epoch {session.progress.epoch}, step {session.progress.step}.")
    if trainer.compile:
        task.model.compile()
    progress, started = session.progress, time.perf_counter() - session.progress.wall_seconds

    with StopSignals() as stop:
        while not session.done:
            if stop.received:  # in an evaluation: the epoch before it is saved
                raise Interrupted(f"Stopped by {stop.received} after epoch {progress.epoch}.", run.path)
            _train_epoch(task, train_loader, session, trainer, run, reporter, stop, seed, started)
            metrics = {}
            for prefix, model in session.candidates().items():
                values = evaluate(task, val_loader, session.precision, reporter, model)
                metrics |= {prefix + name: value for name, value in values.items()}
                if progress.best is None or values[task.metric] > progress.best:
                    progress.best = values[task.metric]
                    save_weights(run.best, model, {task.metric: str(progress.best)})
            _finish_epoch(session, metrics, trainer, run, reporter, started)

    task.model.load_state_dict(read_checkpoint(run.best))
    metrics = evaluate(task, val_loader, session.precision, reporter)
    pictures = [curves_picture(run.path / "curves.png", progress.history)]
    pictures += task.write_pictures(run.path, val_loader.source)
    reporter.pictures(pictures)
    return {
        "epochs": len(progress.history),
        "steps": progress.step,
        **metrics,
        "images_per_second": _rate(progress.step, progress.train_seconds, trainer),
        "wall_seconds": time.perf_counter() - started,
        "peak_memory_bytes": peak_memory(device),
        "parameters": sum(p.numel() for p in task.model.parameters()),
        "checkpoint": str(run.best),
    }


def evaluate(task, loader, precision: Precision, reporter: Reporter, model=None) -> dict[str, float]:
    """The task's metrics over one pass of a loader, with its own model or another of the same kind."""
    own, task.model = task.model, model or task.model
    try:
        task.eval()
        task.start_evaluation()
        with torch.inference_mode(), precision.autocast():
            for batch in reporter.bar(loader.epoch(), len(loader), "evaluating"):
                task.evaluation_step(batch)
        return task.compute_metrics()
    finally:
        task.model = own


def _train_epoch(task, loader, session, trainer, run, reporter, stop, seed, started) -> None:
    """Train to the end of the epoch or of the run, whichever is first."""
    progress, parts = session.progress, trainer.accumulation_steps
    steps = min(session.steps_per_epoch - progress.step_in_epoch, session.total_steps - progress.step)
    batches = islice(loader.epoch(progress.epoch, progress.step_in_epoch * parts), steps * parts)
    parameters = [p for p in task.model.parameters() if p.requires_grad]
    # The last step, its rate and its loss: looked at one step later, when a GPU has it ready, so that no step waits.
    pending: tuple[int, float, Tensor] | None = None
    task.train()
    clock = time.perf_counter()
    for _ in reporter.bar(range(steps), steps, f"epoch {progress.epoch + 1}/{trainer.epochs}", session=session):
        session.schedule.step_update(progress.step)
        loss = torch.zeros((), device=parameters[0].device)
        for part in range(parts):
            batch = next(batches)
            seed_everything(seed, "step", progress.step, part)
            with session.precision.autocast():
                losses = task.training_step(batch)
            part_loss = sum(losses.values()) / parts
            session.precision.backward(part_loss)
            loss += part_loss.detach()
        session.precision.step(session.optimizer, parameters, session.clip_grad)
        if session.ema is not None:
            session.ema.update(task.model, step=progress.step)
        _account(session, pending, run)
        pending = (progress.step, session.lr, loss)
        progress.step += 1
        progress.step_in_epoch += 1
        now = time.perf_counter()
        progress.train_seconds += now - clock
        clock = now
        if stop.received:
            break
    _account(session, pending, run)
    if stop.received:
        progress.wall_seconds = time.perf_counter() - started
        session.save(run.last)
        raise Interrupted(f"Stopped by {stop.received} after step {progress.step}.", run.path)


def _account(session: Session, pending: tuple[int, float, Tensor] | None, run: RunFolder) -> None:
    """Add a step's loss to the epoch's; stop where it is not a number."""
    if pending is None:
        return
    step, lr, loss = pending
    value = loss.item()
    if not math.isfinite(value):
        saved = f"The last good checkpoint is {run.last}" if run.last.exists() else "No checkpoint was saved before it"
        raise InputError(
            f"The loss became {value} at step {step}, with a learning rate of {lr:.3g}. {saved}. Lower "
            "recipe.optimizer.lr, set recipe.optimizer.clip_grad, or use trainer.precision=bf16 or fp32."
        )
    session.progress.loss_sum += value


def _finish_epoch(session, metrics, trainer, run, reporter, started) -> None:
    """Put the epoch's row on record: checkpoint first, so that a row is never there twice."""
    progress = session.progress
    done = sum(row["steps"] for row in progress.history)
    seconds = progress.train_seconds - sum(row["seconds"] for row in progress.history)
    progress.history.append(
        {
            "epoch": progress.epoch + 1,
            "steps": progress.step - done,
            "train_loss": progress.loss_sum / max(1, progress.step_in_epoch),
            **metrics,
            "lr": session.lr,
            "images_per_second": _rate(progress.step - done, seconds, trainer),
            "seconds": seconds,
        }
    )
    progress.epoch, progress.step_in_epoch, progress.loss_sum = progress.epoch + 1, 0, 0.0
    progress.wall_seconds = time.perf_counter() - started
    session.save(run.last)
    run.write_metrics(progress.history)
    reporter.epoch(progress.history[-1])


def peak_memory(device: torch.device) -> int:
    """Most memory in use so far, in bytes: the GPU's, or the process's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts it in KiB


def _rate(steps: int, seconds: float, trainer: TrainerSettings) -> float:
    return steps * trainer.batch_size * trainer.accumulation_steps / max(seconds, 1e-9)
