"""Batches of pictures, the same whatever the number of workers and processes, and wherever a run was interrupted."""

import atexit
import logging
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from backbones.errors import InputError, first_line

from ..seeding import seed_everything
from .decode import BadImageError
from .prefetch import prefetched

log = logging.getLogger(__name__)

PATIENCE = 30  # seconds without a batch after which it is said


class Key(NamedTuple):
    """What the draws of a training picture depend on, beside the seed."""

    epoch: int
    index: int
    copy: int


class Samples(Protocol):
    """What a loader makes batches of: the pictures of a source, transformed."""

    source: Any  # of pictures by index, as `Source` is

    def read(self, index: int) -> Any:
        """A sample; draws come from the global generators. Raises BadImageError."""

    def collate(self, samples: list) -> Any:
        """A batch of at least one sample: tensors in tuples, lists or dictionaries."""


class BadImages:
    """The unreadable pictures of a run: each is named once, and too many are an error."""

    def __init__(self, limit: int):
        self.limit = limit
        self.reasons: dict[str, str] = {}  # by name

    def add(self, name: str, reason: str) -> None:
        if name in self.reasons:
            return
        self.reasons[name] = reason
        log.warning("Skipped an unreadable picture: %s (%s)", name, reason)
        if len(self.reasons) > self.limit:
            raise InputError(
                f"{len(self.reasons)} pictures are unreadable, and data.max_bad_images allows {self.limit}. The last "
                f"one is {name} ({reason}). Repair or remove them, or raise data.max_bad_images."
            )


class Loader:
    """Batches of one split, or this process's share of them.

    The stream of batches is cut from one order of all pictures, and dealt to the processes in turn: batch n of
    process r is number n * processes + r. So a step sees the same pictures whatever the number of processes, as long as
    their batches make up as many.

    With a seed, it is a training loader: the order is a permutation by (seed, epoch), the draws of a picture's
    augmentation depend on (seed, epoch, index, copy) alone, and a last round of batches that is not full is left out.
    Without one, it goes through the split in order, and where pictures are too few for the last round, a process sees
    the first picture again: whoever counts goes by `indices`. In the place of an unreadable picture stands the next
    readable one.

    Args:
        workers: processes that decode and augment; 0 does it in this one.
        device: where the batches are to be; the CPU where none is given.
        timeout: seconds to wait for a batch.
        repeats: how often a picture occurs in a step, each time augmented anew (repeated augmentation,
            arXiv:1902.05509); an epoch has as many pictures as without, so it sees fewer different ones.
        step: pictures of one optimizer step, by all processes.
        rank, processes: this one of how many.
        wide: whether each picture is wider than high: those of a step then are all wide or all high, as far as there
            are enough of each, so that they need little padding to be put side by side.
    """

    def __init__(
        self,
        samples: Samples,
        batch_size: int,
        bad_images: BadImages,
        workers: int = 0,
        seed: int | None = None,
        device: torch.device | None = None,
        timeout: float = 600,
        repeats: int = 1,
        step: int | None = None,
        rank: int = 0,
        processes: int = 1,
        wide: np.ndarray | None = None,
    ):
        source = samples.source
        if seed is not None and batch_size * processes > len(source):
            raise InputError(
                f"A batch of {batch_size * processes} is larger than the training set of {len(source)} pictures. "
                "Lower trainer.batch_size."
            )
        self.source, self.batch_size, self.bad_images, self.timeout = source, batch_size, bad_images, timeout
        self._device = device or torch.device("cpu")
        step = step or batch_size * processes
        self._keys = _Keys(len(source), batch_size, seed, repeats, step, rank, processes, wide)
        self._loader = DataLoader(
            _ReadableSamples(samples, seed),
            batch_sampler=self._keys,
            num_workers=workers,
            collate_fn=partial(_collate, samples.collate),
            persistent_workers=workers > 0,
            pin_memory=device is not None and device.type == "cuda",
            worker_init_fn=_leave_signals_to_the_parent,
        )
        atexit.register(_kill_workers, weakref.ref(self._loader))

    def __len__(self) -> int:
        """Batches of this process in an epoch."""
        return self._keys.batches

    def epoch(self, epoch: int = 0, start: int = 0) -> Iterator:
        """The batches of an epoch, from number `start` on; those before are not decoded.

        Raises:
            InputError: no batch came in time, a worker died, or too many pictures are unreadable.
        """
        self._keys.epoch, self._keys.start = epoch, start
        return prefetched(self._batches(), self._device)

    def _batches(self) -> Iterator:
        batches = iter(self._loader)
        while True:
            with impatient(self.timeout):
                try:
                    batch, bad = next(batches)
                except StopIteration:
                    return
                except RuntimeError as error:
                    if "DataLoader worker" not in str(error):
                        raise
                    raise InputError(
                        f"A process that loads data has died ({first_line(error)}). It may have been out of memory: "
                        "lower data.workers. The run can be resumed from its last checkpoint."
                    ) from error
            for name, reason in bad:
                self.bad_images.add(name, reason)
            if batch is not None:
                yield batch


@contextmanager
def impatient(timeout: float) -> Iterator[None]:
    """Say so where the block takes long, and end it after `timeout` seconds with InputError.

    Only the main thread can have an alarm; in others the block takes as long as it takes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    started = time.monotonic()

    def look(number: int, frame: FrameType | None) -> None:
        seconds = time.monotonic() - started
        if seconds >= timeout:
            raise InputError(
                f"No batch of pictures came within {timeout:.0f} seconds. Look whether the storage answers; if it is "
                "only slow, raise trainer.timeout. The run can be resumed from its last checkpoint."
            )
        log.warning("No batch of pictures for %.0f seconds; still waiting.", seconds)

    previous = signal.signal(signal.SIGALRM, look)
    signal.setitimer(signal.ITIMER_REAL, min(PATIENCE, timeout), min(PATIENCE, timeout))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


class _Keys(Sampler[list[Key]]):
    """The keys of each batch; carrying the epoch lets workers outlive it."""

    def __init__(
        self,
        samples: int,
        batch_size: int,
        seed: int | None,
        repeats: int,
        step: int,
        rank: int,
        processes: int,
        wide: np.ndarray | None,
    ):
        self.wide = wide
        self.samples, self.batch_size, self.seed = samples, batch_size, seed
        self.repeats, self.step, self.rank, self.processes = repeats, step, rank, processes
        together = batch_size * processes
        self.batches = samples // together if seed is not None else -(-samples // together)
        self.epoch = self.start = 0

    def __iter__(self) -> Iterator[list[Key]]:
        order = range(self.samples)
        if self.seed is not None:
            seed_everything(self.seed, "order", self.epoch)
            order = torch.randperm(self.samples).numpy()
            if self.wide is not None:
                order = _alike(order, self.wide, self.step)
        for n in range(self.start, self.batches):
            first = (n * self.processes + self.rank) * self.batch_size
            places = self._places(first) if self.seed is not None else range(first, first + self.batch_size)
            keys = [
                Key(self.epoch, int(order[place // self.repeats]), place % self.repeats)
                for place in places
                if place < self.samples
            ]
            yield keys or [Key(self.epoch, 0, 0)]

    def _places(self, first: int) -> list[int]:
        """The places in the order of a training batch that begins with number `first`.

        Copies of a picture follow one another in the order. In a step all first copies come first, then all second
        ones, so that none is mixed with another of its own. Mixup pairs a batch with itself reversed: so that the pairs
        are the same whatever the size of a batch, neighbours stand at opposite ends.
        """
        start = first - first % self.step
        places = sorted(range(start, start + self.step), key=lambda place: place % self.repeats)
        places = places[first - start : first - start + self.batch_size]
        return places[::2] + places[1::2][::-1]


def _alike(order: np.ndarray, wide: np.ndarray, step: int) -> np.ndarray:
    """The order changed as little as need be for every `step` pictures to be all wide or all high, but for the last."""
    whole, rest = [], []
    for places in (np.flatnonzero(wide[order]), np.flatnonzero(~wide[order])):
        end = len(places) // step * step
        whole += list(places[:end].reshape(-1, step))
        rest.append(places[end:])
    whole.sort(key=lambda places: places[-1])
    return order[np.concatenate([*whole, np.sort(np.concatenate(rest))])]


class _ReadableSamples(Dataset):
    """What a key stands for, and the unreadable pictures met on the way to it."""

    def __init__(self, samples: Samples, seed: int | None):
        self.samples, self.seed = samples, seed

    def __getitem__(self, key: Key) -> tuple[Any, list[tuple[str, str]]]:
        source, index, bad = self.samples.source, key.index, []
        for _ in range(len(source)):
            if self.seed is not None:
                seed_everything(self.seed, "sample", *key)
            try:
                return self.samples.read(index), bad
            except BadImageError as error:
                bad.append((source.name(index), str(error)))
                index = (index + 1) % len(source)
        return None, bad


def _collate(collate: Callable[[list], Any], samples: list) -> tuple[Any, list[tuple[str, str]]]:
    bad = [entry for _, found in samples for entry in found]
    good = [sample for sample, _ in samples if sample is not None]
    return collate(good) if good else None, bad


def _leave_signals_to_the_parent(worker: int) -> None:
    """Ctrl-C and Slurm's SIGTERM reach a whole group, of which the parent saves; a dead worker would end it first."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.setitimer(signal.ITIMER_REAL, 0)


def _kill_workers(loader: weakref.ref) -> None:
    """End workers that hang, at the end of the program: asked to, they do not, and it would wait for them."""
    for worker in getattr(getattr(loader(), "_iterator", None), "_workers", ()):
        worker.kill()
