"""The steps of one epoch: forward, backward, update, and what is measured on the way."""

import logging
import math
import time
from collections import deque
from itertools import islice

import torch
from torch import Tensor

from backbones.errors import InputError

from ..distributed import rank, sum_later, world_size
from ..seeding import seed_everything, seed_torch
from .checkpoints import Checkpoints
from .profiling import profiled
from .reporter import Reporter
from .run_folder import RunFolder
from .session import Session
from .stopping import StopSignals

log = logging.getLogger(__name__)

WAITING = 0.2  # share of the time that may be spent waiting for data without a word


class Meter:
    """Seconds of each step of an epoch, and of its wait for data."""

    def __init__(self):
        self.steps: list[float] = []
        self.waits: list[float] = []

    def summary(self) -> dict[str, float]:
        """data_wait, the share of time spent waiting for data, and percentiles of the steps' milliseconds."""
        if not self.steps:
            return {"data_wait": 0.0, "step_ms_p50": 0.0, "step_ms_p95": 0.0}
        times = 1000 * torch.tensor(self.steps)
        return {
            "data_wait": sum(self.waits) / max(sum(self.steps), 1e-9),
            "step_ms_p50": times.quantile(0.5).item(),
            "step_ms_p95": times.quantile(0.95).item(),
        }


def train_epoch(
    task, loader, session: Session, run: RunFolder, checkpoints: Checkpoints, reporter: Reporter, stop: StopSignals
) -> Meter:
    """Train to the end of the epoch or of the run, whichever is first, or to the step in which a signal comes.

    Every `trainer.save_minutes` the state is saved on the way.
    """
    progress, trainer, parts = session.progress, session.trainer, session.trainer.accumulation_steps
    steps = min(progress.steps_per_epoch - progress.step_in_epoch, session.total_steps - progress.step)
    batches = islice(loader.epoch(progress.epoch, progress.step_in_epoch * parts), steps * parts)
    parameters = [p for p in session.model.parameters() if p.requires_grad]
    account = _Account(session, checkpoints)
    meter = Meter()
    task.train()
    task.start_epoch(progress.epoch, trainer.epochs)

    clock = saved = time.perf_counter()
    title = f"epoch {progress.epoch + 1}/{trainer.epochs}"
    trace = run.path / "profile.json" if trainer.profile and rank() == 0 else None
    with profiled(trace, session.model, session.device) as profiler:
        for _ in reporter.bar(range(steps), steps, title, session.images_per_step, session):
            session.schedule.step_update(progress.step)
            loss, waited = torch.zeros((), device=session.device), 0.0
            for part in range(parts):
                asked = time.perf_counter()
                batch = next(batches)
                waited += time.perf_counter() - asked
                # What mixes pictures draws the same in all parts of a step, whichever process computes them; what is
                # random in the network, by torch's generator, is each part's own.
                seed_everything(session.seed, "step", progress.step)
                seed_torch(session.seed, "part", progress.step, part * world_size() + rank())
                with session.gathering(part):
                    with session.precision.autocast():
                        losses = task.training_step(batch)
                    part_loss = sum(losses.values()) / parts
                    session.precision.backward(part_loss)
                loss += part_loss.detach()
            norm = session.precision.step(
                session.optimizer, parameters, session.clip_grad, session.clip_mode, wary=trainer.max_bad_steps > 0
            )
            if session.ema is not None:
                session.ema.update(session.model, step=progress.step)
            progress.step += 1
            progress.step_in_epoch += 1
            now = time.perf_counter()
            meter.steps.append(now - clock)
            meter.waits.append(waited)
            progress.train_seconds += now - clock
            clock = now
            account.step(loss, norm, stop.received is not None, now - saved > 60 * trainer.save_minutes)
            profiler.step()
            if account.stopping:
                break
            if 0 < trainer.max_bad_steps < progress.bad_steps:
                account.finish()
                session.save(checkpoints)
                checkpoints.finish()
                raise InputError(
                    f"{progress.bad_steps} steps had a loss or a gradient that is no number, and trainer.max_bad_steps "
                    f"allows {trainer.max_bad_steps}. They were left out, and the state is saved. Lower "
                    "recipe.optimizer.lr or set recipe.optimizer.clip_grad, and go on with resume="
                    f"{run.path} trainer.max_bad_steps={2 * progress.bad_steps}."
                )
            if account.saving:
                account.finish()
                session.save(checkpoints)
                clock = saved = time.perf_counter()
    account.finish()
    if not all(p.isfinite().all() for p in parameters):
        raise diverged("A weight is not finite", progress.step - 1, session.lr, checkpoints)
    return meter


class _Account:
    """What the processes tell one another of each step: its loss, and whether one of them wants to stop or to save.

    A step's loss is looked at one step later, when a GPU has it ready, and other processes' news of it yet another
    later, so that no step waits for them. Alone on a CPU there is no wait, and all is known at once.
    """

    def __init__(self, session: Session, checkpoints: Checkpoints):
        self.session, self.checkpoints = session, checkpoints
        self.stopping = self.saving = False
        self._computed: deque = deque()  # (step, lr, loss, norm), still on the device
        self._told: deque = deque()  # (step, lr, what returns the sums over all processes)

    def step(self, loss: Tensor, norm: Tensor, stop: bool, save: bool) -> None:
        """Take in a step that was just computed, and pass on what is known of earlier ones."""
        progress = self.session.progress
        self._computed.append((progress.step - 1, self.session.lr, loss, norm))
        self._tell(len(self._computed) > (self.session.device.type != "cpu"), stop, save)
        if len(self._told) > (world_size() > 1):
            self._take_in()

    def finish(self) -> None:
        """Wait for all that is under way."""
        while self._computed:
            self._tell(True, self.stopping, False)
        while self._told:
            self._take_in()

    def _tell(self, computed: bool, stop: bool, save: bool) -> None:
        step, lr, loss, norm = self._computed.popleft() if computed else (None, 0.0, None, None)
        values = [0.0, 0.0] if loss is None else [loss.item() / world_size(), norm.item() / world_size()]
        self._told.append((step, lr, sum_later([*values, stop, save])))

    def _take_in(self) -> None:
        step, lr, wait = self._told.popleft()
        loss, norm, stop, save = wait()
        self.stopping, self.saving = stop > 0, save > 0
        progress, limit = self.session.progress, self.session.trainer.max_bad_steps
        if step is None:
            return
        # fp16 scales its loss until gradients are finite, so there only the loss itself tells.
        if math.isfinite(loss) and (math.isfinite(norm) or self.session.precision.scaler.is_enabled()):
            progress.loss_sum += loss
            progress.norm_sum += norm if math.isfinite(norm) else 0.0
            return
        what = f"The loss became {loss}" if not math.isfinite(loss) else f"The gradient's norm became {norm}"
        if limit == 0:
            raise diverged(what, step, lr, self.checkpoints)
        progress.bad_steps += 1
        progress.bad_in_epoch += 1
        log.warning("%s at step %d; the step is left out (%d of %d).", what, step, progress.bad_steps, limit)


def diverged(what: str, step: int, lr: float, checkpoints: Checkpoints) -> InputError:
    """The error of a run that cannot go on."""
    saved = (
        f"The last good checkpoint is {checkpoints.last}"
        if checkpoints.exist()
        else "No checkpoint was saved before it"
    )
    return InputError(
        f"{what} at step {step}, with a learning rate of {lr:.3g}. {saved}. Lower recipe.optimizer.lr, set "
        "recipe.optimizer.clip_grad, or use trainer.precision=bf16 or fp32."
    )
