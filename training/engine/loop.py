"""The training loop, read from top to bottom.

A task is a module with `model`, `metric` (the name of what the best checkpoint is best in),
`start_epoch(epoch, epochs)`, `training_step(batch) -> losses`, `start_evaluation()`, `evaluation_step(batch)`,
`compute_metrics() -> dict`, `write_pictures(folder, source)`, and `metadata() -> dict` to keep with the weights. A
loader has a length, `source`, and `epoch(number, start)`, which yields batches; the loop never looks inside one.
"""

import math
import resource
import time
from collections.abc import Callable
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from backbones.checkpoints import read_checkpoint
from backbones.errors import InputError

from ..seeding import seed_everything
from .curves import curves_picture
from .optimization import Precision
from .reporter import Reporter
from .run_folder import RunFolder
from .session import Session, save_weights
from .stopping import Interrupted, StopSignals


def fit(task, train_loader, val_loader, session: Session, run: RunFolder, reporter: Reporter) -> dict[str, Any]:
    """Train a task from where the session is, and evaluate its best weights.

    Returns:
        epochs, steps, the task's metrics, images_per_second, wall_seconds, peak_memory_bytes, parameters, checkpoint.

    Raises:
        InputError: the loss or the weights are not finite, or the disk is full.
        Interrupted: a signal came; the state is in the run folder.
    """
    progress, started = session.progress, time.perf_counter() - session.progress.wall_seconds
    if session.trainer.compile:
        task.model.compile()

    with StopSignals() as stop:

        def stop_if_asked() -> None:
            if stop.received:
                if not session.done:
                    progress.wall_seconds = time.perf_counter() - started
                    session.save(run.last)
                raise Interrupted(f"Stopped by {stop.received} after step {progress.step}.", run.path)

        while not session.done:
            _train_epoch(task, train_loader, session, run, reporter, stop)
            stop_if_asked()
            metrics = {}
            for prefix, model in session.candidates().items():
                values = evaluate(task, val_loader, session.precision, reporter, model, stop_if_asked)
                if not all(map(math.isfinite, values.values())):
                    raise _diverged("The evaluation gave no number", progress.step - 1, session.lr, run)
                metrics |= {prefix + name: value for name, value in values.items()}
                if progress.best is None or values[task.metric] > progress.best:
                    progress.best = values[task.metric]
                    save_weights(run.best, model, task.metadata())
            _finish_epoch(session, metrics)
            progress.wall_seconds = time.perf_counter() - started
            session.save(run.last)
            run.write_metrics(progress.history)
            reporter.epoch(progress.history[-1])

        task.model.load_state_dict(read_checkpoint(run.best))
        metrics = evaluate(task, val_loader, session.precision, reporter, check=stop_if_asked)
        reporter.pictures([curves_picture(run.path / "curves.png", progress.history)])
        reporter.pictures(task.write_pictures(run.path, val_loader.source))
    return {
        "epochs": len(progress.history),
        "steps": progress.step,
        **metrics,
        "images_per_second": progress.step * session.images_per_step / progress.train_seconds,
        "wall_seconds": time.perf_counter() - started,
        "peak_memory_bytes": peak_memory(session.device),
        "parameters": sum(p.numel() for p in task.model.parameters()),
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

    `check` is called after each batch; what it raises ends the pass.
    """
    own, task.model = task.model, model or task.model
    try:
        task.eval()
        task.start_evaluation()
        with torch.inference_mode(), precision.autocast():
            for batch in reporter.bar(loader.epoch(), len(loader), "evaluating", loader.batch_size):
                task.evaluation_step(batch)
                check()
        return task.compute_metrics()
    finally:
        task.model = own


def _train_epoch(task, loader, session: Session, run: RunFolder, reporter: Reporter, stop: StopSignals) -> None:
    """Train to the end of the epoch or of the run, whichever is first, or to the step in which a signal comes."""
    progress, parts = session.progress, session.trainer.accumulation_steps
    steps = min(progress.steps_per_epoch - progress.step_in_epoch, session.total_steps - progress.step)
    batches = islice(loader.epoch(progress.epoch, progress.step_in_epoch * parts), steps * parts)
    parameters = [p for p in task.model.parameters() if p.requires_grad]
    # The last step, its rate and its loss: looked at one step later, when a GPU has it ready, so that no step waits.
    pending: tuple[int, float, Tensor] | None = None
    task.train()
    task.start_epoch(progress.epoch, session.trainer.epochs)

    clock = time.perf_counter()
    title = f"epoch {progress.epoch + 1}/{session.trainer.epochs}"
    for _ in reporter.bar(range(steps), steps, title, session.images_per_step, session):
        session.schedule.step_update(progress.step)
        loss = torch.zeros((), device=session.device)
        for part in range(parts):
            batch = next(batches)
            seed_everything(session.seed, "step", progress.step, part)
            with session.precision.autocast():
                losses = task.training_step(batch)
            part_loss = sum(losses.values()) / parts
            session.precision.backward(part_loss)
            loss += part_loss.detach()
        session.precision.step(session.optimizer, parameters, session.clip_grad, session.clip_mode)
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
    if not all(p.isfinite().all() for p in parameters):
        raise _diverged("A weight is not finite", progress.step - 1, session.lr, run)


def _account(session: Session, pending: tuple[int, float, Tensor] | None, run: RunFolder) -> None:
    """Add a step's loss to the epoch's; stop where it is not a number."""
    if pending is None:
        return
    step, lr, loss = pending
    value = loss.item()
    if not math.isfinite(value):
        raise _diverged(f"The loss became {value}", step, lr, run)
    session.progress.loss_sum += value


def _diverged(what: str, step: int, lr: float, run: RunFolder) -> InputError:
    saved = f"The last good checkpoint is {run.last}" if run.last.exists() else "No checkpoint was saved before it"
    return InputError(
        f"{what} at step {step}, with a learning rate of {lr:.3g}. {saved}. Lower recipe.optimizer.lr, set "
        "recipe.optimizer.clip_grad, or use trainer.precision=bf16 or fp32."
    )


def _finish_epoch(session: Session, metrics: dict[str, float]) -> None:
    """Add the epoch's row to the history, and go on to the next."""
    progress = session.progress
    steps = progress.step - sum(row["steps"] for row in progress.history)
    seconds = progress.train_seconds - sum(row["seconds"] for row in progress.history)
    progress.history.append(
        {
            "epoch": progress.epoch + 1,
            "steps": steps,
            "train_loss": progress.loss_sum / progress.step_in_epoch,
            **metrics,
            "lr": session.lr,
            "images_per_second": steps * session.images_per_step / seconds,
            "seconds": seconds,
        }
    )
    progress.epoch, progress.step_in_epoch, progress.loss_sum = progress.epoch + 1, 0, 0.0


def peak_memory(device: torch.device) -> int:
    """Most memory in use so far, in bytes: the GPU's, or the process's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts it in KiB
