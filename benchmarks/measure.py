"""What the benchmarks share: turns of work, their times and their peak memory."""

import os
import platform
import re
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import timm
import torch
import torchvision
from torch.utils.flop_counter import FlopCounterMode

Run = Callable[[], None]


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def headline(precision: str = "fp32, eager") -> str:
    """Where and on what a benchmark runs."""
    on_cuda = device().type == "cuda"
    where = torch.cuda.get_device_name() if on_cuda else f"{platform.machine()}, {torch.get_num_threads()} threads"
    return f"{device().type} ({where}), torch {torch.__version__}, timm {timm.__version__}, {precision}"


def machine(on: torch.device) -> dict[str, str]:
    """Where and with what something is measured, for the rows of a table."""
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=Path(__file__).parent, capture_output=True)
    return dict(
        machine=torch.cuda.get_device_name(on) if on.type == "cuda" else _cpu(),
        cores=str(os.cpu_count()),
        threads=str(torch.get_num_threads()),
        python=platform.python_version(),
        torch=torch.__version__,
        torchvision=torchvision.__version__,
        timm=timm.__version__,
        commit=commit.stdout.decode().strip() or "unknown",
    )


def _cpu() -> str:
    """What the processor calls itself."""
    cpuinfo = Path("/proc/cpuinfo")
    named = re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text()) if cpuinfo.exists() else None
    return named[1] if named else platform.processor() or platform.machine()


def inference(model: torch.nn.Module, images: torch.Tensor) -> Run:
    """A forward pass without gradients."""
    model.eval()

    @torch.inference_mode()
    def run() -> None:
        model(images)

    return run


def training(model: torch.nn.Module, images: torch.Tensor) -> Run:
    """Forward, backward and a step of AdamW."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters())
    targets = torch.arange(len(images), device=images.device)

    def run() -> None:
        torch.nn.functional.cross_entropy(model(images), targets).backward()
        optimizer.step()
        optimizer.zero_grad()

    return run


def medians(
    runs: Sequence[Run], rounds: int, warmup: int = 2, clock: Callable[[], float] = time.perf_counter
) -> list[float]:
    """Median seconds of each, run in turn so that what disturbs the machine disturbs all alike."""
    for _ in range(warmup):
        for run in runs:
            run()
    times = [[_seconds(run, clock) for run in runs] for _ in range(rounds)]
    return [statistics.median(side) for side in zip(*times)]


def macs(model: torch.nn.Module, images: torch.Tensor) -> float:
    """Multiply-adds of one image, by PyTorch's flop counter."""
    with FlopCounterMode(display=False) as counter:
        inference(model, images[:1])()
    return counter.get_total_flops() / 2


def peak_memory(run: Run, on: torch.device | None = None) -> int:
    """Most bytes that a run holds at once beyond what it found, after one run to warm up."""
    run()
    if (on or device()).type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def _seconds(run: Run, clock: Callable[[], float]) -> float:
    if device().type == "cuda":
        torch.cuda.synchronize()
    started = clock()
    run()
    if device().type == "cuda":
        torch.cuda.synchronize()
    return clock() - started
