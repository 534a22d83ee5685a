"""Batches of pictures, the same whatever the number of workers and wherever a run was interrupted."""

import logging
import signal
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from backbones.errors import InputError

from ..seeding import seed_everything
from .decode import BadImageError
from .settings import Source
from .transforms import Transform

log = logging.getLogger(__name__)


class Batch(NamedTuple):
    """Pictures uint8 (B, channels, H, W), labels (B,), and their indices in the source (B,)."""

    images: Tensor
    targets: Tensor
    indices: Tensor


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
    """Batches of one split.

    With a seed, it is a training loader: the order is a permutation by (seed, epoch), the draws of a picture's
    augmentation depend on (seed, epoch, index) alone, an unreadable picture is replaced by the next readable one, and
    a last batch that is not full is left out. Without one, it goes through the split once, in order, and an
    unreadable picture is left out.
    """

    def __init__(
        self,
        source: Source,
        transform: Transform,
        batch_size: int,
        bad_images: BadImages,
        workers: int = 0,
        seed: int | None = None,
        pin_memory: bool = False,
    ):
        if seed is not None and batch_size > len(source):
            raise InputError(
                f"A batch of {batch_size} is larger than the training set of {len(source)} pictures. "
                "Lower trainer.batch_size."
            )
        self.source, self.batch_size, self.bad_images = source, batch_size, bad_images
        self._keys = _Keys(len(source), batch_size, seed)
        self._loader = DataLoader(
            _Samples(source, transform, seed),
            batch_sampler=self._keys,
            num_workers=workers,
            collate_fn=_collate,
            persistent_workers=workers > 0,
            pin_memory=pin_memory,
            worker_init_fn=_leave_signals_to_the_parent,
        )

    def __len__(self) -> int:
        """Batches in an epoch."""
        return self._keys.batches

    def epoch(self, epoch: int = 0, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch, from number `start` on; those before are not decoded."""
        self._keys.epoch, self._keys.start = epoch, start
        for batch, bad in self._loader:
            for name, reason in bad:
                self.bad_images.add(name, reason)
            if len(batch.targets):
                yield batch


class _Keys(Sampler[list[tuple[int, int]]]):
    """The (epoch, index) pairs of each batch; carrying the epoch lets workers outlive it."""

    def __init__(self, samples: int, batch_size: int, seed: int | None):
        self.samples, self.batch_size, self.seed = samples, batch_size, seed
        self.batches = samples // batch_size if seed is not None else -(-samples // batch_size)
        self.epoch = self.start = 0

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = range(self.samples)
        if self.seed is not None:
            seed_everything(self.seed, "order", self.epoch)
            order = torch.randperm(self.samples).tolist()
        for i in range(self.start, self.batches):
            yield [(self.epoch, index) for index in order[i * self.batch_size : (i + 1) * self.batch_size]]


class _Samples(Dataset):
    """A picture, its label and index, and the unreadable ones met on the way to it."""

    def __init__(self, source: Source, transform: Transform, seed: int | None):
        self.source, self.transform, self.seed = source, transform, seed

    def __getitem__(self, key: tuple[int, int]):
        epoch, index = key
        bad = []
        for _ in range(len(self.source) if self.seed is not None else 1):
            if self.seed is not None:
                seed_everything(self.seed, "sample", epoch, key[1])
            try:
                image = self.transform(self.source.picture(index))
            except BadImageError as error:
                bad.append((self.source.name(index), str(error)))
                index = (index + 1) % len(self.source)
                continue
            return image, self.source.target(index), index, bad
        return None, 0, 0, bad


def _collate(samples: list) -> tuple[Batch, list[tuple[str, str]]]:
    bad = [entry for sample in samples for entry in sample[3]]
    images, targets, indices = ([s[i] for s in samples if s[0] is not None] for i in range(3))
    # Transforms give pictures that lie channels last in memory: stacked so, nothing has to be moved about.
    stacked = (
        torch.stack([image.movedim(0, -1) for image in images]).movedim(-1, 1)
        if images
        else torch.empty(0, dtype=torch.uint8)
    )
    return Batch(stacked, torch.tensor(targets), torch.tensor(indices)), bad


def _leave_signals_to_the_parent(worker: int) -> None:
    """Ctrl-C reaches the whole group, but only the parent saves; and its handlers must not survive in a worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
