"""Search for launch settings that suit a GPU better than those in `settings.py`."""

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from . import settings
from .dispatch import use
from .workloads import Workload

CANDIDATES = dict(
    num_warps=(2, 4, 8), num_stages=(1, 2, 3), SIZE=(16, 32, 64, 128), programs=(512, 1024, 2048, 4096, 8192)
)
Timer = Callable[[Callable[[], object]], float]


class Asked(dict):
    """The settings of a GPU class, which keeps account of the kernels they were asked for."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.kernels: set[str] = set()

    def get(self, kernel, default=None):
        self.kernels.add(kernel)
        return super().get(kernel, default)


def tune(
    workloads: Sequence[Workload],
    batch: int,
    dtype: torch.dtype,
    device: torch.device,
    timer: Timer,
    candidates: dict[str, Sequence[int]] = CANDIDATES,
    report: Callable[[str], None] = print,
) -> dict[str, dict[str, int]]:
    """The best settings of every kernel that the workloads launch.

    Each kernel is timed by the forward or backward pass of all workloads that launch it, with every combination of the
    candidates for the settings that it has; the geometric mean of the times decides. `timer` takes a function and
    returns the time of a call of it.
    """
    gpu = settings.gpu_class(device)
    before = settings.TUNED.get(gpu, {})
    best = Asked(before)
    settings.TUNED[gpu] = best
    try:
        users: dict[str, list[Callable[[], object]]] = {}
        for workload in workloads:
            for run in _passes(workload, batch, dtype, device):
                best.kernels.clear()
                run()
                for kernel in best.kernels:
                    users.setdefault(kernel, []).append(run)
        for kernel, runs in sorted(users.items()):
            start = settings.DEFAULT[kernel] | before.get(kernel, {})
            times = {}
            for values in itertools.product(*(candidates.get(name, (start[name],)) for name in start)):
                best[kernel] = dict(zip(start, values))
                times[values] = _mean_time(runs, timer)
            values = min(times, key=times.get)
            reference = times.get(tuple(start.values()), math.inf)
            best[kernel] = dict(zip(start, values))
            report(f"{kernel:28} {best[kernel]}: {times[values]:.3f} ms, before {reference:.3f} ms")
        return dict(best)
    finally:
        settings.TUNED[gpu] = before


def milliseconds(run: Callable[[], object]) -> float:
    """Median time of a call on a GPU."""
    from triton.testing import do_bench

    return do_bench(run, warmup=10, rep=40, return_mode="median")


def _passes(workload: Workload, batch: int, dtype: torch.dtype, device: torch.device) -> list[Callable[[], object]]:
    """The forward pass of a workload, and its backward pass alone."""
    inputs = {n: x.detach().requires_grad_() for n, x in workload.tensors(batch, dtype, device).items()}

    def forward() -> Tensor:
        with use("triton"):
            return workload.call(**inputs)

    out = forward()
    cotangent = torch.randn_like(out)
    return [forward, lambda: torch.autograd.grad(out, list(inputs.values()), cotangent, retain_graph=True)]


def _mean_time(runs: list[Callable[[], object]], timer: Timer) -> float:
    """Geometric mean; infinite where the settings ask too much of the GPU."""
    from triton.runtime.errors import OutOfResources

    try:
        return math.exp(sum(math.log(timer(run)) for run in runs) / len(runs))
    except OutOfResources:
        return math.inf
