"""The last two states of a run on the disk, each with checksums, so that one that is damaged is noticed and replaced.

A state is `last.pt`, written by the first process; or, where the model is sharded, the folder `last` with a safetensors
file per process, written in the background by torch.distributed.checkpoint.
"""

import hashlib
import io
import json
import logging
import os
import shutil
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter

from backbones.checkpoints import read_file
from backbones.errors import InputError, first_line

from ..distributed import barrier, broadcast, rank
from .files import write_atomically, write_text

log = logging.getLogger(__name__)

SUMS = "SHA256SUMS"  # in the format of the program sha256sum
STATE = "state.json"


class Checkpoints:
    """`last` and `previous` in a folder; whenever the process dies, at least one of them is whole.

    Args:
        folder: where they are.
        sharded: whether a state is a folder of shards.
    """

    def __init__(self, folder: Path, sharded: bool = False):
        self.folder, self.sharded = folder, sharded
        names = ("last", "previous") if sharded else ("last.pt", "previous.pt")
        self.last, self.previous = (folder / name for name in names)
        self._writing = self._group = None

    def exist(self) -> bool:
        """Whether there is anything to go on from.

        Raises:
            InputError: there is, but of the other kind.
        """
        if self.last.exists() or self.previous.exists():
            return True
        other = Checkpoints(self.folder, not self.sharded)
        if other.last.exists() or other.previous.exists():
            raise InputError(
                f"The checkpoints in {self.folder} are {'' if other.sharded else 'not '}sharded. Go on with "
                f"trainer.strategy={'fsdp' if other.sharded else 'ddp'} as the run began."
            )
        return False

    def save(self, state: dict[str, Any]) -> None:
        """Make `state` the last one; the first process writes it.

        Raises:
            InputError: the disk refuses; what was there is still there.
        """
        if rank() > 0:
            return
        content = io.BytesIO()
        torch.save(state, content)
        digest = hashlib.sha256(content.getbuffer()).hexdigest()
        new = self.folder / ".new.pt"
        write_atomically(new, content.getbuffer(), called=self.last)
        # The sum is known before the file has its name: a file whose sum is not known is damaged.
        known = [line for line in self._sums(self.folder) if line[1] == self.last.name][:9]
        lines = [(digest, self.last.name), *known, *((old, self.previous.name) for old, _ in known)]
        write_text(self.folder / SUMS, "".join(f"{old}  {name}\n" for old, name in lines))
        if self.last.exists():
            os.replace(self.last, self.previous)
        os.replace(new, self.last)

    def load(self) -> dict[str, Any]:
        """The last state that is whole. Raises InputError where none is."""
        for path in self._whole():
            try:
                return read_file(path)
            except InputError as error:
                log.warning("%s", error)
        raise self._nothing_whole()

    def save_shards(self, tensors: dict[str, Tensor], plain: dict[str, Any]) -> None:
        """Begin to write every process's part of `tensors`, and `plain`, which JSON can hold; all processes call it.

        The tensors are copied before it returns. What goes wrong in the background is raised by the next call, or by
        `finish`.
        """
        self.finish()
        new = self.folder / ".new"
        if rank() == 0:
            shutil.rmtree(new, ignore_errors=True)
            new.mkdir(parents=True)
            write_text(new / STATE, json.dumps(plain))
        barrier()
        # What the processes tell one another in the background must not meet what they tell in a step.
        self._group = self._group or dist.new_group(backend="gloo")
        writer = HuggingFaceStorageWriter(path=str(new), save_distributed=True)
        self._writing = dcp.async_save(tensors, storage_writer=writer, process_group=self._group)

    def finish(self) -> None:
        """Wait for what is being written, and make it the last state; all processes call it."""
        if self._writing is None:
            return
        writing, self._writing = self._writing, None
        try:
            writing.result()
        except Exception as error:
            raise InputError(
                f"{self.last} could not be written ({first_line(error)}). The previous one is still there. Make room "
                "on the disk, then resume the run."
            ) from error
        if rank() == 0:
            new = self.folder / ".new"
            files = sorted(path for path in new.iterdir() if path.name != SUMS)
            write_text(new / SUMS, "".join(f"{_digest(path)}  {path.name}\n" for path in files))
            if self.last.exists():
                shutil.rmtree(self.previous, ignore_errors=True)
                os.replace(self.last, self.previous)
            os.replace(new, self.last)
        barrier()

    def load_plain(self) -> tuple[Path, dict[str, Any]]:
        """The folder of the last whole sharded state, the same in all processes, and its `plain`."""
        path = broadcast(next(iter(self._whole()), None) if rank() == 0 else None)
        if path is None:
            raise self._nothing_whole()
        return path, json.loads((path / STATE).read_text())

    def _whole(self) -> Iterable[Path]:
        """Those that exist and have their sums, the last first; of the others a line is said."""
        for path in (self.last, self.previous):
            if not path.exists():
                continue
            if self._is_whole(path):
                yield path
            else:
                log.warning("%s is damaged: its checksum is not the one that was written.", path)

    def _is_whole(self, path: Path) -> bool:
        if path.is_dir():
            sums = self._sums(path)
            return bool(sums) and all((path / n).is_file() and _digest(path / n) == digest for digest, n in sums)
        sums = self._sums(path.parent)
        return not sums or (_digest(path), path.name) in sums

    @staticmethod
    def _sums(folder: Path) -> list[tuple[str, str]]:
        file = folder / SUMS
        return [tuple(line.split(None, 1)) for line in file.read_text().splitlines()] if file.exists() else []

    def _nothing_whole(self) -> InputError:
        return InputError(
            f"The run cannot be resumed: neither {self.last} nor {self.previous} is whole. Its best weights may be: "
            f"start a new run with backbone.checkpoint_path={self.folder / 'best.safetensors'}."
        )


def load_shards(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Fill this process's parts of `tensors` from a sharded state, whatever the number of processes that wrote it."""
    dcp.load(tensors, storage_reader=HuggingFaceStorageReader(path=str(folder)))


def weights_of(folder: Path, averaged: bool = False) -> dict[str, Tensor]:
    """The whole weights in a run's last state, sharded or not, by one process.

    Args:
        folder: the run's `checkpoints`.
        averaged: the moving average of the weights rather than these.

    Raises:
        InputError: there is no whole state, or it has no average.
    """
    part = "ema" if averaged else "model"
    checkpoints = Checkpoints(folder, sharded=not (folder / "last.pt").exists())
    if checkpoints.sharded:
        reader = HuggingFaceStorageReader(path=str(checkpoints.load_plain()[0]))
        found = reader.read_metadata().state_dict_metadata.items()
        names = {name: metadata for name, metadata in found if name.startswith(f"{part}.")}
        tensors = {name: torch.empty(m.size, dtype=m.properties.dtype) for name, m in names.items()}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")  # as it is meant to be
            dcp.load(tensors, storage_reader=reader, no_dist=True)
        weights = {name.removeprefix(f"{part}."): value for name, value in tensors.items()}
    else:
        weights = checkpoints.load()[part]
    if not weights:
        raise InputError(f"The run keeps no average of its weights: there is none in {folder}.")
    return weights


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
