"""A trace of a few steps, by PyTorch's profiler, and the backbone's share of their time."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile, schedule, supported_activities
from torch.utils._pytree import tree_iter

log = logging.getLogger(__name__)

WAIT, WARMUP, ACTIVE = 2, 1, 3  # steps that pass, that warm the profiler up, and that are recorded


class NoProfiler:
    """Takes the place of a profiler where none is wanted."""

    def step(self) -> None:
        """Nothing is recorded."""


class BackboneClock:
    """The share of the steps' time that the backbone has.

    Its forward pass is timed as it is called. Its backward pass is the last part of one: from the moment when the
    gradients of all that it returned are there until that of its first parameter is.

    Args:
        model: the backbone, or with one inside: the first module that has `feature_info`.
    """

    def __init__(self, model: nn.Module, device: torch.device):
        self.device, self.own = device, 0.0
        self._begun = self._entered = self._ready = None
        backbone = next((module for module in model.modules() if hasattr(module, "feature_info")), model)
        learning = [parameter for parameter in backbone.parameters() if parameter.requires_grad]
        self._hooks = [backbone.register_forward_pre_hook(self._enter), backbone.register_forward_hook(self._leave)]
        self._hooks += [parameter.register_post_accumulate_grad_hook(self._finish) for parameter in learning[:1]]

    def start(self) -> None:
        """Count from now on."""
        self.own, self._begun = 0.0, self._now()

    def stop(self) -> float:
        """The backbone's share since the start."""
        for hook in self._hooks:
            hook.remove()
        return self.own / max(self._now() - self._begun, 1e-9)

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def _enter(self, *_) -> None:
        self._entered = self._now()

    def _leave(self, module: nn.Module, inputs, outputs) -> None:
        self.own += self._now() - self._entered
        for x in tree_iter(outputs):
            if isinstance(x, Tensor) and x.requires_grad:
                x.register_hook(self._gradient)

    def _gradient(self, gradient: Tensor) -> None:
        self._ready = self._now()

    def _finish(self, parameter: Tensor) -> None:
        if self._ready is not None:
            self.own, self._ready = self.own + self._now() - self._ready, None


@contextmanager
def profiled(path: Path | None, model: nn.Module, device: torch.device) -> Iterator:
    """Record a few steps of the block, which calls `step()` after each, into a trace at `path`, unless there is one."""
    if path is None or path.exists():
        yield NoProfiler()
        return
    clock = BackboneClock(model, device)

    def write(profiler: profile) -> None:
        share = clock.stop()
        profiler.export_chrome_trace(str(path))
        log.info(
            "%s is a trace of %d steps; open it in Perfetto or chrome://tracing. The backbone took %.0f %% of them.",
            path,
            ACTIVE,
            100 * share,
        )

    activities = supported_activities() & {ProfilerActivity.CPU, ProfilerActivity.CUDA}
    plan = schedule(wait=WAIT, warmup=WARMUP, active=ACTIVE, repeat=1)
    with profile(activities=activities, schedule=plan, on_trace_ready=write) as profiler:
        yield _Started(profiler, clock)


class _Started:
    """A profiler whose clock starts with the first step that is recorded."""

    def __init__(self, profiler: profile, clock: BackboneClock):
        self.profiler, self.clock, self.steps = profiler, clock, 0

    def step(self) -> None:
        self.steps += 1
        if self.steps == WAIT + WARMUP:
            self.clock.start()
        self.profiler.step()
