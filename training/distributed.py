"""The processes that train together: who they are, and what they tell one another.

PyTorch's launcher starts them (`torchrun --nproc-per-node 2 train.py …`); without it a run is one process.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from backbones.errors import InputError, first_line


def rank() -> int:
    """Number of this process among those that train together, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def restarted() -> bool:
    """Whether the launcher started one of the processes again after a failure; every process must call it."""
    return max(gather(int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)))) > 0


def choose_device(name: str) -> torch.device:
    """The device of that name; "auto" is the GPU where there is one, and each process of a machine has its own."""
    if name not in ("auto", "cpu", "cuda"):
        raise InputError(f"trainer.device is {name!r}, but must be auto, cpu or cuda.")
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("trainer.device is cuda, but PyTorch finds no GPU here. Use trainer.device=auto.")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    number = int(os.environ.get("LOCAL_RANK", 0))
    if number >= torch.cuda.device_count():
        raise InputError(
            f"Process {number} of this machine has no GPU of its own: there are {torch.cuda.device_count()}. "
            "Start torchrun with as many --nproc-per-node."
        )
    torch.cuda.set_device(number)
    return torch.device("cuda", number)


@contextmanager
def joined(device: torch.device, timeout: float) -> Iterator[None]:
    """Join the processes that torchrun started, if it did. A program can do so once.

    Raises:
        InputError: another process has ended, or has not answered for `timeout` seconds.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield
        return
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=timedelta(seconds=timeout))
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        raise InputError(
            f"Another process of this run has ended, or has not answered for {timeout:.0f} seconds "
            f"({first_line(error)}). Look for its message above. The run can be resumed from its last checkpoint; if "
            "the processes are only slow, raise trainer.timeout."
        ) from error
    finally:
        dist.destroy_process_group()


def broadcast(value: Any) -> Any:
    """The first process's value, in every process."""
    if world_size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0, device=torch.device("cpu"))
    return values[0]


def gather(value: Any) -> list[Any]:
    """Every process's value, in order of rank, in every process."""
    if world_size() == 1:
        return [value]
    values = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def barrier() -> None:
    """Wait until every process is here."""
    gather(None)


def sum_later(values: list[float]) -> Callable[[], list[float]]:
    """Start to add up numbers of all processes; what is returned waits for the sums.

    Alone, the sums are the values. Together, a step need not wait for the slowest process if it asks a step later.
    """
    if world_size() == 1:
        return lambda: values
    sums = torch.tensor(values, dtype=torch.float64)
    work = dist.all_reduce(sums, async_op=True)

    def wait() -> list[float]:
        work.wait()
        return sums.tolist()

    return wait
