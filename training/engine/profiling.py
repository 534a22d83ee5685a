"""A trace of a few steps, by PyTorch's profiler."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch.profiler import ProfilerActivity, profile, schedule, supported_activities

log = logging.getLogger(__name__)

WAIT, WARMUP, ACTIVE = 2, 1, 3  # steps that pass, that warm the profiler up, and that are recorded


class NoProfiler:
    """Takes the place of a profiler where none is wanted."""

    def step(self) -> None:
        """Nothing is recorded."""


@contextmanager
def profiled(path: Path | None) -> Iterator[profile | NoProfiler]:
    """Record a few steps of the block, which calls `step()` after each, into a trace at `path`, unless there is one."""
    if path is None or path.exists():
        yield NoProfiler()
        return

    def write(profiler: profile) -> None:
        profiler.export_chrome_trace(str(path))
        log.info("%s is a trace of %d steps; open it in Perfetto or chrome://tracing.", path, ACTIVE)

    activities = supported_activities() & {ProfilerActivity.CPU, ProfilerActivity.CUDA}
    plan = schedule(wait=WAIT, warmup=WARMUP, active=ACTIVE, repeat=1)
    with profile(activities=activities, schedule=plan, on_trace_ready=write) as profiler:
        yield profiler
